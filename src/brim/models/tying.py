"""Keeping the output head what it is.

transformers 5 decides from a model's class and config, not from its weights, whether the output
head shares the input embedding: every T5 config says so, yet FLAN-T5 and T5-v1.1 have a head of
their own. `tie_weights()` and `resize_token_embeddings()` would overwrite it in silence. Here the
head is the Q-function, so `protect_head` corrects the model's own list of shared weights, and the
head's hash is compared wherever the weights pass through other hands.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from brim.errors import ModelError


def protect_head(model: PreTrainedModel) -> None:
    """Remove from the model's list of shared weights the pairs that are not shared."""
    claimed = model.get_expanded_tied_weights_keys()
    shared = {
        target: source
        for target, source in claimed.items()
        if model.get_parameter(target) is model.get_parameter(source)
    }
    if shared != claimed:
        # An attribute of this one model, which copies inherit; the class keeps its own.
        model._tied_weights_keys = shared
        model.all_tied_weights_keys = dict(shared)


def head_name(model: PreTrainedModel) -> str:
    """The name of the head's weight among the model's parameters, by its own module."""
    return next(_names(model, model.get_output_embeddings().weight))


def head_is_shared(model: PreTrainedModel) -> bool:
    """Whether the head's weight is also that of an embedding."""
    weight = model.get_output_embeddings().weight
    own = head_name(model)
    return any(p is weight and name != own for name, p in _all_parameters(model))


def check_same_head(copied: PreTrainedModel, original: PreTrainedModel) -> None:
    """Compare the heads of a model and its copy.

    Raises:
        ModelError: they differ.
    """
    heads = (model.get_output_embeddings().weight for model in (copied, original))
    if len({_hash(head) for head in heads}) != 1:
        raise ModelError("the copy's output head is not the original's; something tied it again")


def resize_rows(model: PreTrainedModel, num_rows: int) -> None:
    """Give embedding and output head `num_rows` rows each; new ones are the mean of the old."""
    before = _head_rows(model)
    num_kept = min(num_rows, len(before))
    kept = _hash(before[:num_kept])
    # transformers draws new rows from the global generator; the mean needs no draw.
    with torch.random.fork_rng(devices=[]):
        model.resize_token_embeddings(num_rows)
    for embedding in (model.get_input_embeddings(), model.get_output_embeddings()):
        rows = embedding.weight.data
        rows[num_kept:] = rows[:num_kept].mean(dim=0)
    if _hash(_head_rows(model)[:num_kept]) != kept:
        raise ModelError("resizing wrote over the output head; something tied it again")


def check_stored_head(
    model: PreTrainedModel, directory: Path, state_dict: Mapping[str, Tensor] | None = None
) -> None:
    """Compare the model's head with the one in the directory's safetensors files.

    Args:
        model: whose head it is.
        directory: where it was written.
        state_dict: the model's weights, where it holds others or only a part of them.

    Raises:
        ModelError: they differ, or no file holds the head.
    """
    weight = model.get_output_embeddings().weight
    names = list(_names(model, weight))
    if state_dict is not None:
        names = [name for name in names if name in state_dict]
    if state_dict is not None and names:
        weight = state_dict[names[0]]
    stored = _stored_tensor(directory, names)
    if stored is None:
        if names and _holds_copy(model, directory, weight):
            return
        raise ModelError(f"{directory}: no safetensors file holds the output head of this model")
    if _hash(stored.to(weight.dtype)) != _hash(weight):
        raise ModelError(
            f"{directory}: the output head in memory is not the one in the file; "
            "something tied it to the input embedding or wrote over it"
        )


def _head_rows(model: PreTrainedModel) -> Tensor:
    return model.get_output_embeddings().weight.detach()  # type: ignore[no-any-return]


def hash_tensors(tensors: Mapping[str, Tensor], *, also: str = "", into: Any = None) -> str:
    """Hash of every byte of the tensors, of their names, and of a text: BLAKE2b, or `into`."""
    digest = hashlib.blake2b(digest_size=16) if into is None else into
    digest.update(also.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(raw.numpy().data)
    return str(digest.hexdigest())


def _hash(weight: Tensor) -> str:
    return hash_tensors({"head": weight})


def _names(model: PreTrainedModel, weight: Tensor) -> Iterator[str]:
    """The names of the head's weight, its own first, then those it shares."""
    head = model.get_output_embeddings()
    yield from (f"{name}.weight" for name, module in model.named_modules() if module is head)
    yield from _names_of(model, weight)


def _names_of(model: PreTrainedModel, weight: Tensor) -> Iterator[str]:
    yield from (name for name, p in _all_parameters(model) if p is weight)


def _all_parameters(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Names and parameters; a shared one under each of its names."""
    yield from model.named_parameters(remove_duplicate=False)


def _holds_copy(model: PreTrainedModel, directory: Path, weight: Tensor) -> bool:
    """Whether a file holds the head under a name that the model does not use, as of GPT-NeoX."""
    embedding = set(_names_of(model, model.get_input_embeddings().weight))
    expected = _hash(weight)
    for file in sorted(directory.glob("model*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - not a dict
                fits = tensors.get_slice(key).get_shape() == list(weight.shape)
                if not fits or key in embedding:
                    continue
                if _hash(tensors.get_tensor(key).to(weight.dtype)) == expected:
                    return True
    return False


def _stored_tensor(directory: Path, names: Iterable[str]) -> Tensor | None:
    files = sorted(directory.glob("model*.safetensors"))
    for name in names:
        for file in files:
            with safe_open(file, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 - not a dict
                    # Older files leave the base model's prefix out, or add it.
                    if key == name or name.endswith(f".{key}") or key.endswith(f".{name}"):
                        return tensors.get_tensor(key)  # type: ignore[no-any-return]
    return None
