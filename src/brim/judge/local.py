"""A judge in this process: a transformers model that writes its reply greedily."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from brim.errors import ConfigError, RunError
from brim.judge.asking import LocalBackend, RejectedError
from brim.judge.store import Reply
from brim.models import Decoding, LanguageModel, load_model
from brim.support.files import sha256_file
from brim.training.accelerator import make_accelerator
from brim.types import Example

MAX_TOKENS = 512


def local_identity(model: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """All that a reply depends on; of a folder also the bytes of its files.

    Raises:
        ConfigError: a setting that a local model has not.
    """
    unknown = sorted(request.keys() - {"max_tokens"})
    if unknown:
        raise ConfigError(f"--request: a local judge has max_tokens only, not {unknown[0]}")
    max_tokens = request.get("max_tokens", MAX_TOKENS)
    if type(max_tokens) is not int or max_tokens < 1:
        raise ConfigError("--request: max_tokens is a whole number from 1 on")
    identity = {"backend": "local", "model": model, "request": {"max_tokens": max_tokens}}
    folder = _folder(model)
    if folder.is_dir():
        files = sorted(path for path in folder.iterdir() if path.is_file())
        identity["files"] = {path.name: sha256_file(path) for path in files}
    return identity


def local_backend(
    identity: Mapping[str, Any], *, batch: int, say: Callable[[str], None]
) -> LocalBackend:
    """The model, loaded.

    Args:
        identity: of `local_identity`.
        batch: prompts that are written to together.
        say: told what the person who watches should know.

    Raises:
        ModelError: the model cannot be loaded.
    """
    folder = _folder(identity["model"])
    model = load_model(folder if folder.is_dir() else identity["model"], dtype="auto")
    model = model.to(make_accelerator().device)
    if model.tokenizer.chat_template is None:
        say(f"{identity['model']}: has no chat template; the prompts are given as they are")
    max_tokens = identity["request"]["max_tokens"]
    return LocalBackend(identity, lambda prompts: write(model, prompts, max_tokens), batch=batch)


def write(model: LanguageModel, prompts: Sequence[str], max_tokens: int) -> list[Reply]:
    """A greedy reply to each prompt, in the tokenizer's chat template if it has one.

    Raises:
        RejectedError: a prompt has not room in the model.
        RunError: they have not room in memory.
    """
    batch = model.encode([_example(model, prompt) for prompt in prompts], max_tokens=None)
    room = model.num_positions
    longest = int(batch.prompt_mask.sum(dim=1).max())
    if room is not None and longest + max_tokens > room:
        raise RejectedError(
            f"too long for the judge: {longest} tokens and {max_tokens} of the reply, where it "
            f"has {room}"
        )
    try:
        rollout = model.generate(batch, Decoding(max_tokens=max_tokens, strategy="greedy"))
    except torch.OutOfMemoryError:
        raise RunError("the judge has not enough memory; lower --concurrency") from None
    return [
        Reply(text=text, finish_reason="length" if cut else "stop", prompt_tokens=asked,
              completion_tokens=written)
        for text, cut, asked, written in zip(
            model.decode(rollout),
            rollout.truncated.tolist(),
            batch.prompt_mask.sum(dim=1).tolist(),
            rollout.lengths.tolist(),
            strict=True,
        )
    ]  # fmt: skip


def _example(model: LanguageModel, prompt: str) -> Example:
    # A tokenizer takes the spelling of a special token for the token, and a candidate that has one
    # could end its own message and begin the judge's.
    for token in model.tokenizer.added_tokens_decoder.values():
        if token.special:
            prompt = prompt.replace(token.content, f"{token.content[0]} {token.content[1:]}")
    if model.tokenizer.chat_template is None:
        return Example(id="0", prompt=prompt)
    return Example(id="0", prompt="", messages=({"role": "user", "content": prompt},))


def _folder(model: str) -> Path:
    """A run directory stands for its best checkpoint."""
    best = Path(model) / "best"
    return best if best.is_dir() else Path(model)
