"""Keeping the output head what it is.

transformers 5 decides from a model's class and config, not from its weights, whether the output
head shares the input embedding: every T5 config says so, yet FLAN-T5 and T5-v1.1 have a head of
their own. `tie_weights()` and `resize_token_embeddings()` would overwrite it in silence. Here the
head is the Q-function, so `protect_head` corrects the model's own list of shared weights, and the
head's hash is compared wherever the weights pass through other hands.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from brim.errors import BrimError, ModelError, first_line
from brim.models.backbone import Backbone, EncoderDecoder, Prompts, cache_name
from brim.models.modes import evaluating


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
    return _head_names(model)[0]


def head_is_shared(model: PreTrainedModel) -> bool:
    """Whether the head's weight is also that of an embedding."""
    names = _names(model, model.get_output_embeddings().weight)
    return any(name != head_name(model) for name in names)


def check_same_head(copied: PreTrainedModel, original: PreTrainedModel) -> None:
    """Raise a ModelError unless the heads of a model and its copy are the same."""
    heads = (model.get_output_embeddings().weight for model in (copied, original))
    if len({_hash(head) for head in heads}) != 1:
        raise ModelError("the copy's output head is not the original's; something tied it again")


def resize_rows(model: PreTrainedModel, num_rows: int) -> None:
    """Give embedding and output head `num_rows` rows each; new ones are the mean of the old."""
    before = head_weight(model).detach()
    num_kept = min(num_rows, len(before))
    kept = _hash(before[:num_kept])
    # transformers draws new rows from the global generator; the mean needs no draw.
    with torch.random.fork_rng(devices=[]):
        model.resize_token_embeddings(num_rows)
    for embedding in (model.get_input_embeddings(), model.get_output_embeddings()):
        rows = embedding.weight.data
        rows[num_kept:] = rows[:num_kept].mean(dim=0)
    if _hash(head_weight(model)[:num_kept]) != kept:
        raise ModelError("resizing wrote over the output head; something tied it again")


def check_stored_head(
    model: PreTrainedModel, directory: Path, state_dict: Mapping[str, Tensor] | None = None
) -> None:
    """Compare the model's head with the one in the directory's safetensors files.

    `state_dict` has the model's weights, where it holds others or only a part of them.

    Raises:
        ModelError: they differ, or no file holds the head.
    """
    weight = model.get_output_embeddings().weight
    names = _head_names(model)
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


def _names(model: PreTrainedModel, weight: Tensor) -> list[str]:
    """The names of a parameter; a shared one has several."""
    return [name for name, p in model.named_parameters(remove_duplicate=False) if p is weight]


def _head_names(model: PreTrainedModel) -> list[str]:
    """The names of the head's weight, its own first, then those it shares."""
    head = model.get_output_embeddings()
    own = [f"{name}.weight" for name, module in model.named_modules() if module is head]
    return own + _names(model, head.weight)


def _stored(directory: Path) -> Iterator[tuple[str, Any]]:
    """The names in a directory's safetensors files, each with its open file."""
    for file in sorted(directory.glob("model*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - not a dict
                yield key, tensors


def _holds_copy(model: PreTrainedModel, directory: Path, weight: Tensor) -> bool:
    """Whether a file holds the head under a name that the model does not use, as of GPT-NeoX."""
    embedding, expected = _names(model, model.get_input_embeddings().weight), _hash(weight)
    return any(
        _hash(file.get_tensor(key).to(weight.dtype)) == expected
        for key, file in _stored(directory)
        if key not in embedding and file.get_slice(key).get_shape() == list(weight.shape)
    )


def _stored_tensor(directory: Path, names: Sequence[str]) -> Tensor | None:
    for name in names:
        for key, file in _stored(directory):
            # Older files leave the base model's prefix out, or add it.
            if key == name or name.endswith(f".{key}") or key.endswith(f".{name}"):
                return file.get_tensor(key)  # type: ignore[no-any-return]
    return None


# Largest tolerated difference between two ways to compute the same hidden states, relative to the
# largest of them. A mask or a position that is wrong moves them by about 1.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_LOW_PRECISION_TOLERANCE = 0.1

_OVERFLOW = "float16 ends at 65,504, which it exceeds; load it in bfloat16 or float32 (dtype)"


def start_token_id(model: PreTrainedModel) -> int:
    """The token that opens an encoder-decoder's completions.

    Raises:
        ModelError: the model names none.
    """
    for settings in (model.generation_config, model.config):
        token_id = getattr(settings, "decoder_start_token_id", None)
        if token_id is not None:
            return int(token_id)
    raise ModelError(
        f"{_name(model)} names no token to start its decoder with; "
        "set decoder_start_token_id in its config.json"
    )


@contextmanager
def one_line(model: PreTrainedModel) -> Iterator[None]:
    """Make whatever is raised in the block, by code of any kind of model, an error of one line.

    Raises:
        ModelError: names the model and the reason.
    """
    try:
        yield
    except BrimError:
        raise
    except Exception as error:
        raise ModelError(
            f"{_name(model)} cannot be used as a language model: {type(error).__name__}: "
            f"{first_line(error)}; choose another model"
        ) from error


def check_decoder(model: PreTrainedModel) -> None:
    """Check that the decoder can be called as that of most models, and ends before the head.

    Raises:
        ModelError: names what it lacks.
    """
    decoder = model.get_decoder()
    kind = type(decoder).__name__
    head = getattr(decoder, "get_output_embeddings", lambda: None)()
    if head is not None:
        raise ModelError(
            f"{_name(model)}: its decoder, a {kind}, gives logits where hidden states are needed, "
            "for it has an output head of its own; choose another model"
        )
    names = inspect.signature(decoder.forward).parameters
    cache = cache_name(decoder)
    # Under its newer name it may also be a recurrent model's state; such a model has no heads.
    recurrent = cache == "cache" and not hasattr(
        getattr(decoder, "config", model.config), "num_attention_heads"
    )
    inputs = ["input_ids", cache]
    inputs += ["encoder_hidden_states", "encoder_attention_mask"] * model.config.is_encoder_decoder
    missing = [name for name in inputs if name not in names]
    if missing == [cache] or recurrent:
        raise ModelError(
            f"{_name(model)}: its {kind} keeps no keys and values of past tokens "
            f"({cache}), as one that is recurrent or has no cache; choose another model"
        )
    if missing:
        raise ModelError(
            f"{_name(model)}: its decoder, a {kind}, takes no {' and no '.join(missing)}, so that "
            "its layers cannot be called apart from the output head; choose another model"
        )


def head_weight(model: PreTrainedModel) -> Tensor:
    """The weight (V, d) of the layer that maps hidden states to logits.

    Raises:
        ModelError: the model has no such layer.
    """
    weight = getattr(model.get_output_embeddings(), "weight", None)
    if not isinstance(weight, Tensor):
        raise ModelError(
            f"{_name(model)} has no language-modeling head; "
            "choose a causal or sequence-to-sequence language model"
        )
    return weight


def measure_scale(backbone: Backbone) -> float:
    """The factor between hidden states and the head's input: 1, or d^-0.5 for T5's first version.

    Raises:
        ModelError: the model treats its hidden states or logits in another way, gives non-finite
            hidden states, or predicts other things with a cache than without.
    """
    with evaluating(backbone.model):
        return _measure_scale(backbone)


def _measure_scale(backbone: Backbone) -> float:
    model = backbone.model
    name = _name(model)
    tokens = torch.tensor([_ordinary_ids(model)], device=model.device)
    ids, completion = tokens[:, :2], tokens[:, 2:]
    prompts = Prompts(ids, torch.ones_like(ids, dtype=torch.bool))
    hidden = backbone.hidden(prompts, completion, 2)
    half = hidden.dtype == torch.float16
    _check_finite(model, hidden, "hidden states")

    state = backbone.start(prompts, 2)
    state.step(completion[:, 0])
    # Quantized products take other paths for one token than for three.
    loose = getattr(model, "hf_quantizer", None) is not None
    if not _close(state.hidden, hidden[:, -1], loose=loose):
        if half:  # some models cut off what overflows
            raise ModelError(
                f"{name} predicts another token with a cache than without: {_OVERFLOW}"
            )
        raise ModelError(
            f"{name} predicts another token with a cache than without; "
            "choose an autoregressive language model"
        )

    head_input = _watch_head(backbone, tokens)
    for scale in (1.0, hidden.shape[-1] ** -0.5):
        if _close(hidden[:, -1] * scale, head_input):
            return scale
    raise ModelError(
        f"{name} changes its hidden states before the output head, "
        "which is not supported; choose another model"
    )


def _check_finite(model: PreTrainedModel, values: Tensor, what: str) -> None:
    if values.isfinite().all():
        return
    damaged = any(weight.isnan().any() for weight in model.parameters())
    reason = "its weights are damaged" if damaged or values.dtype != torch.float16 else _OVERFLOW
    raise ModelError(f"{_name(model)} gives {what} that are not finite: {reason}")


def _ordinary_ids(model: PreTrainedModel) -> list[int]:
    """Three token ids, none of them the padding if possible."""
    num_ids = min(len(head_weight(model)), 4)
    return ([i for i in range(num_ids) if i != model.config.pad_token_id] * 3)[:3]


def _watch_head(backbone: Backbone, tokens: Tensor) -> Tensor:
    """The head's input at the last position, once it is known to be a plain product.

    The model's own forward pass runs with large logits in place of the head's output; a bias that
    the chunked head knows may be added to them, nothing else.
    """
    model = backbone.model
    head = model.get_output_embeddings()
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def replace(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        ramp = torch.linspace(-100, 100, output.shape[-1], device=output.device).to(output.dtype)
        seen.append((inputs[0], output, ramp.expand_as(output)))
        return seen[-1][-1]

    inputs = {"input_ids": tokens}
    if isinstance(backbone, EncoderDecoder):
        opened = torch.cat([backbone.first(tokens), tokens[:, 2:]], dim=1)
        inputs = {"input_ids": tokens[:, :2], "decoder_input_ids": opened}
    handle = head.register_forward_hook(replace)
    try:
        logits = model(**inputs, use_cache=False).logits
    finally:
        handle.remove()

    plain = False
    if len(seen) == 1:
        head_input, head_output, planted = seen[0]
        _check_finite(model, head_output, "logits")
        product = F.linear(head_input, head.weight, getattr(head, "bias", None))
        added = getattr(model, "final_logits_bias", None)
        expected = planted if added is None else planted + added
        plain = _close(head_output, product) and torch.equal(logits, expected)
    if not plain:
        raise ModelError(
            f"{_name(model)} does more to its logits than a matrix product (a cap or a scale), "
            "which is not supported; choose another model"
        )
    return head_input[:, -1]


def _close(left: Tensor, right: Tensor, *, loose: bool = False) -> bool:
    tolerance = _TOLERANCE.get(left.dtype, _LOW_PRECISION_TOLERANCE)
    tolerance = _LOW_PRECISION_TOLERANCE if loose else tolerance
    return bool((left - right).abs().max() <= tolerance * right.abs().max())


def _name(model: PreTrainedModel) -> str:
    return f"{type(model).__name__} ({model.config.name_or_path or 'built here'})"
