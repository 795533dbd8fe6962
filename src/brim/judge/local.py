"""A judge in this process: a transformers model that writes its reply greedily."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from brim.errors import ConfigError, RunError
from brim.examples import Example
from brim.judge.asking import RejectedError
from brim.judge.store import Reply
from brim.models import Decoding, LanguageModel, load_model
from brim.support.files import sha256_file
from brim.training.accelerator import make_accelerator

MAX_TOKENS = 512


def local_identity(model: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that a reply depends on; of a folder also the bytes of its files.

    Raises:
        ConfigError: a setting that a local model does not have.
    """
    unknown = sorted(request.keys() - {"max_tokens"})
    if unknown:
        raise ConfigError(f"request: a local judge has max_tokens only, not {unknown[0]}")
    max_tokens = request.get("max_tokens", MAX_TOKENS)
    if type(max_tokens) is not int or max_tokens < 1:
        raise ConfigError("request: max_tokens is a whole number from 1 on")
    identity = {"backend": "local", "model": model, "request": {"max_tokens": max_tokens}}
    folder = _folder(model)
    if folder.is_dir():
        files = sorted(path for path in folder.iterdir() if path.is_file())
        identity["files"] = {path.name: sha256_file(path) for path in files}
    return identity


class LocalBackend:
    """A model in this process, of `local_identity`.

    Raises:
        ModelError: the model cannot be loaded.
    """

    batched = True

    def __init__(self, identity: Mapping[str, Any], say: Callable[[str], None]) -> None:
        self.identity = identity
        folder = _folder(identity["model"])
        model = load_model(folder if folder.is_dir() else identity["model"], dtype="auto")
        self._model = model.to(make_accelerator().device)
        if model.tokenizer.chat_template is None:
            say(f"{identity['model']}: has no chat template; the prompts are given as they are")

    async def ask(self, prompts: Sequence[str]) -> list[Reply]:
        """Return a reply to each prompt; raises as `Backend.ask` does."""
        started = time.monotonic()
        max_tokens = self.identity["request"]["max_tokens"]
        replies = await asyncio.to_thread(write, self._model, prompts, max_tokens)
        seconds = (time.monotonic() - started) / len(prompts)
        return [replace(reply, seconds=seconds) for reply in replies]

    async def close(self) -> None:
        """Do nothing: there are no connections."""


def write(model: LanguageModel, prompts: Sequence[str], max_tokens: int) -> list[Reply]:
    """Return a greedy reply to each prompt, in the tokenizer's chat template if it has one.

    Raises:
        RejectedError: a prompt is too long for the model.
        RunError: there is not enough memory.
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
        raise RunError("the judge has not enough memory; lower limits.concurrency") from None
    columns = (
        model.decode(rollout),
        rollout.truncated.tolist(),
        batch.prompt_mask.sum(dim=1).tolist(),
        rollout.lengths.tolist(),
    )
    return [
        Reply(text, finish_reason="length" if cut else "stop", prompt_tokens=read,
              completion_tokens=written)
        for text, cut, read, written in zip(*columns, strict=True)
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
    """The model's folder, of a run directory its best checkpoint."""
    best = Path(model) / "best"
    return best if best.is_dir() else Path(model)
