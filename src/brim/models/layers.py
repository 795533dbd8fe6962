"""Students made of some of a teacher's layers."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from brim.errors import ModelError, first_line
from brim.models.head_checks import check_same_head
from brim.models.language_model import LanguageModel

_LIST_NAMES = ("layers", "block", "h")  # Llama, Qwen2, BART, Marian; T5, mT5; GPT-2
# The first so many layers have no experts: DeepSeek, GLM; LFM2.
_NUM_DENSE = ("first_k_dense_replace", "num_dense_layers")
_BY_NUMBER = ("scale_attn_by_inverse_layer_idx",)  # GPT-2
_NUMBERS = ("layer_idx", "layer_id")  # what a layer calls its own number
_DECODER_COUNTS = ("decoder_layers", "num_decoder_layers")  # BART, Marian; T5, mT5


def keep_layers(
    teacher: LanguageModel,
    *,
    layers: int | Sequence[int],
    decoder_layers: int | Sequence[int] | None = None,
) -> LanguageModel:
    """A copy of the teacher without some of its layers, which shares no memory with it.

    The teacher is a T5, mT5, BART, Marian, Llama, Qwen2, GPT-2 or one built like them. The student
    has its embeddings, norms, output head and tokenizer.

    Args:
        teacher: is not changed.
        layers: which layers to keep (the encoder's, where there is one), as ascending numbers from
            0, or how many: evenly spaced, with the first and the last; of one, the first.
        decoder_layers: the same for the decoder of an encoder-decoder; None for what `layers` says.

    Raises:
        ModelError: the teacher has no such layers, is quantized, is not built like one of these,
            or the student could not be read again as it is.
    """
    student = cut_model(teacher.model, layers=layers, decoder_layers=decoder_layers)
    if not any(weight.requires_grad for weight in student.parameters()):
        student.requires_grad_(True)  # the teacher was frozen
    check_same_head(student, teacher.model)
    return LanguageModel(student, copy.deepcopy(teacher.tokenizer))


def cut_model(
    source: PreTrainedModel,
    *,
    layers: int | Sequence[int],
    decoder_layers: int | Sequence[int] | None = None,
) -> PreTrainedModel:
    """What `keep_layers` makes of a model, also of one on the meta device.

    Raises:
        ModelError: as `keep_layers`.
    """
    if getattr(source.config, "quantization_config", None) is not None:
        raise ModelError(
            "student.keep_layers: quantized layers cannot be trained; give a student of its own, "
            "or a teacher that is not quantized"
        )
    choices = [("layers", source.get_decoder(), layers)]
    if source.config.is_encoder_decoder:
        below = layers if decoder_layers is None else decoder_layers
        choices = [
            ("layers", source.get_encoder(), layers),
            ("decoder_layers", source.get_decoder(), below),
        ]
    elif decoder_layers is not None:
        raise ModelError("decoder_layers: this teacher has one stack of layers; give layers alone")

    # With a short list named as the copy of each long one, the other layers are never copied.
    copies: dict[int, Any] = {}
    kept: list[list[int]] = []
    for name, stack, choice in choices:
        everything = layers_of(stack)
        kept.append(_choose(name, choice, len(everything)))
        copies[id(everything)] = _copy_layers(everything, kept[-1], copies)
    student = copy.deepcopy(source, copies)
    _describe(student.config, kept[0])
    if source.config.is_encoder_decoder:
        _describe_decoder(student.config, kept[1])
        for stack, numbers in zip(
            (student.get_encoder(), student.get_decoder()), kept, strict=True
        ):
            if stack.config is not student.config:
                _describe(stack.config, numbers)
                _describe_decoder(stack.config, kept[1])
    _check_description(source, student, kept[-1])
    return student


def layers_of(stack: nn.Module) -> nn.ModuleList:
    """The layers of an encoder or a decoder.

    Raises:
        ModelError: they are not known.
    """
    for name in _LIST_NAMES:
        layers = getattr(stack, name, None)
        if isinstance(layers, nn.ModuleList):
            return layers
    raise ModelError(
        f"the layers of a {type(stack).__name__} are not known; load a student instead"
    )


def _choose(name: str, choice: int | Sequence[int], num_layers: int) -> list[int]:
    """The numbers of the layers to keep."""
    if isinstance(choice, int):
        if not 1 <= choice <= num_layers:
            raise ModelError(f"{name}: {choice} is not between 1 and the teacher's {num_layers}")
        gaps = max(choice - 1, 1)
        return [(2 * i * (num_layers - 1) + gaps) // (2 * gaps) for i in range(choice)]  # rounded
    numbers = list(choice)
    if not numbers or numbers != sorted(set(numbers) & set(range(num_layers))):
        raise ModelError(
            f"{name}: {numbers} must be ascending numbers from 0 to {num_layers - 1}, "
            "the teacher's layers"
        )
    return numbers


def _copy_layers(layers: nn.ModuleList, kept: list[int], copies: dict[int, Any]) -> nn.ModuleList:
    """Copies of the kept layers, numbered anew for the caches."""
    short = nn.ModuleList(copy.deepcopy(layers[i], copies) for i in kept)
    for number, layer in enumerate(short):
        for module in layer.modules():
            for name in _NUMBERS:
                if hasattr(module, name):
                    setattr(module, name, number)
    # T5's first layer holds the position bias of all: it moves on to the new first layer.
    whole, cut = (_first_attention(stack[0]) for stack in (layers, short))
    if whole is not None and not cut.has_relative_attention_bias:
        cut.relative_attention_bias = copy.deepcopy(whole.relative_attention_bias, copies)
        cut.has_relative_attention_bias = True
    return short


def _first_attention(layer: nn.Module) -> Any:
    """The self-attention of a layer of T5's kind; None for others."""
    parts = layer.modules()
    return next((part for part in parts if hasattr(part, "has_relative_attention_bias")), None)


def _describe(config: PreTrainedConfig, kept: list[int]) -> None:
    """Write into a config that only these layers of its model are left."""
    number_of = {old: new for new, old in enumerate(kept)}
    dense = getattr(config, "mlp_only_layers", None)
    if dense is not None:  # numbers of layers, and of the others every so many-th has experts
        step = getattr(config, "decoder_sparse_step", 1)
        plain = [new for old, new in number_of.items() if old in dense or (old + 1) % step]
    for key, value in vars(config).items():  # such as `layer_types` of Qwen2
        if "layer" in key and isinstance(value, list) and len(value) == config.num_hidden_layers:
            setattr(config, key, [value[i] for i in kept])
    if dense is not None:
        config.mlp_only_layers, config.decoder_sparse_step = plain, 1
    for key in _NUM_DENSE:
        if isinstance(first := getattr(config, key, None), int):
            setattr(config, key, sum(number < first for number in kept))
    config.num_hidden_layers = len(kept)


def _check_description(source: PreTrainedModel, student: PreTrainedModel, kept: list[int]) -> None:
    """Check that the config, once saved and read, makes the same layers as are in memory.

    Raises:
        ModelError: names the first difference, or what depends on the number of a layer.
    """
    config, name = student.config, type(student).__name__
    remedy = "keep other layers, or give a student of its own"
    by_number = [key for key in _BY_NUMBER if getattr(config, key, False)]
    if by_number and kept != list(range(len(kept))):
        raise ModelError(
            f"student.keep_layers: what a layer of {name} computes depends on its number "
            f"({by_number[0]}); keep the first layers, or give a student of its own"
        )
    try:
        read = _as_read(student)
    except Exception as error:  # of any kind of config
        raise ModelError(
            f"student.keep_layers: a {name} of these layers cannot be described by its "
            f"config.json ({first_line(error)}); {remedy}"
        ) from error
    (ours, our_settings), (theirs, their_settings) = _facts(student), _facts(read)
    places = ours.keys() | theirs.keys()
    differing = {place for place in places if ours.get(place) != theirs.get(place)}
    # What changes while a model is used, such as its mode, is no part of its description.
    changing = {
        place.rpartition(".")[2]
        for place in _changed(_facts(source)[1], _facts(_as_read(source))[1])
    }
    differing |= {
        place
        for place in _changed(our_settings, their_settings)
        if place.rpartition(".")[2] not in changing
    }
    if differing:
        raise ModelError(
            f"student.keep_layers: a {name} of these layers would not be read as it is saved, by "
            f"{min(differing)}; {remedy}"
        )


def _changed(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> set[str]:
    return {key for key in ours.keys() & theirs.keys() if ours[key] != theirs[key]}


def _as_read(model: PreTrainedModel) -> PreTrainedModel:
    """The model that a config makes once it is saved and read, on the meta device."""
    config = type(model.config).from_dict(json.loads(model.config.to_json_string(use_diff=False)))
    with torch.device("meta"):
        return type(model)(config)


def _facts(model: PreTrainedModel) -> tuple[dict[str, Any], dict[str, Any]]:
    """The kinds of all modules and shapes of all weights; and what modules keep of settings."""
    kinds: dict[str, Any] = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    settings: dict[str, Any] = {}
    for path, module in model.named_modules():
        kinds[path] = type(module).__name__
        for key, value in vars(module).items():
            if isinstance(value, bool | int | float | str):
                settings[f"{path}.{key}"] = value
    return kinds, settings


def _describe_decoder(config: PreTrainedConfig, kept: list[int]) -> None:
    for count in _DECODER_COUNTS:  # a saved T5 has both
        if hasattr(config, count):
            setattr(config, count, len(kept))
