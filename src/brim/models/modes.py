"""Ways to run a model: without gradient, with another dropout, checkpointed, compiled."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from brim.errors import ModelError, first_line

# Kinds of passes that are compiled; what exceeds them is run as it is written.
TRANSLATIONS = 32

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


def usable_device(name: str | torch.device) -> torch.device:
    """Return a device once it has been used.

    Raises:
        ModelError: this machine has none of that name.
    """
    try:
        torch.zeros(1, device=name).item()
    except Exception as error:  # of which type depends on how torch was built
        raise ModelError(
            f"device: {str(name)!r} cannot be used here ({first_line(error)}); name one of this "
            "machine, such as cpu or cuda"
        ) from None
    return torch.device(name)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """No gradient, no dropout while the block runs; each submodule's mode is restored."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part in training:
            part.training = True


def compile_layers(model: PreTrainedModel) -> None:
    """Have `torch.compile` translate a model's layers, in place; sizes are left open."""
    settings: dict[str, Any] = {"dynamic": True}
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        settings["recompile_limit"] = TRANSLATIONS
    model.get_decoder().compile(**settings)
    if model.config.is_encoder_decoder:
        model.get_encoder().compile(**settings)


def set_dropout(model: nn.Module, probability: float) -> None:
    """Give all dropout of the model this probability of a zero, in place; its config keeps its own.

    That is the `nn.Dropout` modules, and the numbers that a family's code hands to functional
    dropout, such as `attention_dropout` of Llama and Qwen2 or `activation_dropout` of BART.
    Layers that are left out as a whole (`layerdrop`) and the dropout of adapters are not touched.

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


def checkpoint_layers(module: nn.Module, *, dropout: bool) -> None:
    """Have transformers checkpoint the layers of every model in `module`, in place.

    It does so in training mode only; see `updating`. Masks of dropout are the same both times, and
    gradients are what they were. Where updates run without dropout, the layers' is set to 0.

    Raises:
        ModelError: transformers cannot do it for a model, or only together with dropout.
    """
    models = [part for part in module.modules() if isinstance(part, PreTrainedModel)]
    # A T5's encoder and decoder are such models too.
    inner = {id(part) for model in models for part in model.modules() if part is not model}
    for model in models:
        if id(model) in inner:
            continue
        if not model.supports_gradient_checkpointing or not (dropout or _layers(model)):
            raise ModelError(
                f"gradient_checkpointing: {type(model).__name__} of transformers does not support "
                f"it{'' if dropout else ' without dropout'}; leave it out, or lower "
                "micro_batch_tokens"
            )
        # The second name is that of transformers before 5.20.
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
        if not dropout:
            for layer in _layers(model):
                set_dropout(layer, 0.0)


def without_weights(model: PreTrainedModel) -> PreTrainedModel:
    """A copy on the meta device, to try on it what would change the model."""
    memo: dict[int, Any] = {
        id(weight): nn.Parameter(weight.detach().to("meta"), weight.requires_grad)
        for weight in model.parameters()
    }
    return copy.deepcopy(model, memo)


def updating(module: nn.Module, *, dropout: bool) -> None:
    """Training mode; without dropout evaluation mode, in which layers are checkpointed even so.

    A layer of transformers is checkpointed if its own `training` is set. What is within it stays in
    evaluation mode then, and the dropout of the layer itself is 0 by `checkpoint_layers`.
    """
    module.train(dropout)
    if not dropout:
        for layer in _layers(module):
            layer.training = layer.gradient_checkpointing


def _layers(module: nn.Module) -> list[GradientCheckpointingLayer]:
    return [part for part in module.modules() if isinstance(part, GradientCheckpointingLayer)]
