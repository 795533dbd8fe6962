"""Dropout as a setting of a training stage, whatever the model's config says."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from brim.errors import ModelError

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


def set_dropout(model: nn.Module, probability: float) -> None:
    """Give all dropout of the model this probability; its config keeps what it says.

    That is the `nn.Dropout` modules, and the numbers that a family's code hands to functional
    dropout, such as `attention_dropout` of Llama and Qwen2 or `activation_dropout` of BART.
    Layers that are left out as a whole (`layerdrop`) and the dropout of adapters are not touched.

    Args:
        model: such as a `LanguageModel`'s `model`; changed in place.
        probability: of a zero, in [0, 1); it counts in training mode only.

    Raises:
        ModelError: the model has no place for dropout and the probability is not 0.
    """
    if not 0 <= probability < 1:
        raise ValueError(f"probability must be in [0, 1), got {probability}")
    places = list(_places(model))
    if not places and probability:
        raise ModelError(
            f"dropout: {type(model).__name__} has no dropout to set; leave the setting out"
        )
    for module, name in places:
        setattr(module, name, probability)


def _places(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Each module that drops something, with the attribute that holds the probability."""
    for path, module in model.named_modules():
        if isinstance(module, _DROPOUTS):
            if ".lora_dropout." not in path:
                yield module, "p"
        else:
            yield from ((module, name) for name in vars(module) if _is_probability(module, name))


def _is_probability(module: nn.Module, name: str) -> bool:
    number = isinstance(value := vars(module)[name], int | float) and not isinstance(value, bool)
    return number and ("dropout" in name or name.endswith("pdrop")) and "layer" not in name
