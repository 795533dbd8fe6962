"""Students made of some of a teacher's layers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from brim.errors import ModelError
from brim.models.language_model import LanguageModel
from brim.models.tying import check_same_head

_LIST_NAMES = ("layers", "block", "h")  # Llama, Qwen2, BART, Marian; T5, mT5; GPT-2
_DECODER_COUNTS = ("decoder_layers", "num_decoder_layers")  # BART, Marian; T5, mT5


def keep_layers(
    teacher: LanguageModel,
    *,
    layers: int | Sequence[int],
    decoder_layers: int | Sequence[int] | None = None,
) -> LanguageModel:
    """A student that is a copy of the teacher without some of its layers.

    It has the teacher's embeddings, norms, output head and tokenizer. The teacher is not changed,
    nor is memory shared with it.

    Args:
        teacher: a T5, mT5, BART, Marian, Llama, Qwen2, GPT-2 or one built like them.
        layers: which layers to keep (the encoder's, where there is one), as ascending numbers from
            0, or how many: evenly spaced, with the first and the last; of one, the first.
        decoder_layers: the same for the decoder of an encoder-decoder; None for what `layers` says.

    Raises:
        ModelError: the teacher has no such layers, is quantised, or is not built like one of these.
    """
    source = teacher.model
    if getattr(source.config, "quantization_config", None) is not None:
        raise ModelError(
            "student.keep_layers: quantised layers cannot be trained; give a student of its own, "
            "or a teacher that is not quantised"
        )
    choices = [("layers", source.get_decoder(), layers)]
    if teacher.is_encoder_decoder:
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
    if teacher.is_encoder_decoder:
        _describe_decoder(student.config, kept[1])
        for stack, numbers in zip(
            (student.get_encoder(), student.get_decoder()), kept, strict=True
        ):
            if stack.config is not student.config:
                _describe(stack.config, numbers)
    if not any(weight.requires_grad for weight in student.parameters()):
        student.requires_grad_(True)  # the teacher was frozen
    check_same_head(student, source)
    return LanguageModel(student, copy.deepcopy(teacher.tokenizer))


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
            if hasattr(module, "layer_idx"):
                module.layer_idx = number  # type: ignore[assignment]
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
    for key, value in vars(config).items():  # such as `layer_types` of Qwen2
        if "layer" in key and isinstance(value, list) and len(value) == config.num_hidden_layers:
            setattr(config, key, [value[i] for i in kept])
    config.num_hidden_layers = len(kept)


def _describe_decoder(config: PreTrainedConfig, kept: list[int]) -> None:
    count = next(name for name in _DECODER_COUNTS if hasattr(config, name))
    setattr(config, count, len(kept))
