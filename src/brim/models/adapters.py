"""LoRA: small trainable matrices beside frozen linear layers (Hu et al. 2021, arXiv:2106.09685).

A layer `W x` becomes `W x + (alpha / r) B A x` with `A` (r, in) random, `B` (out, r) zero at first.
The layers are exchanged inside the transformers model. What is saved is the merged model,
`W + (alpha / r) B A`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from brim.errors import ModelError, NonFiniteError, RunError
from brim.models.head_checks import hash_tensors
from brim.models.settings import Lora
from brim.seeding import derive_seed

ADAPTERS = "adapters.safetensors"

_NAME = "default"  # peft's name for the only adapter of a layer


def add_adapters(model: PreTrainedModel, lora: Lora, *, seed: int) -> None:
    """Freeze the model and put trainable adapters beside its linear layers, in place.

    The model's predictions do not change, for `B` is 0. Adapters are float32, whatever the model
    is; its embeddings and its output head are never adapted. Initial weights are drawn from a
    stream of their own.

    Raises:
        ModelError: peft is not installed, the model has adapters already, or a name fits no layer.
    """
    peft = _import_peft()
    if has_adapters(model):
        raise ModelError("the model has adapters already; save it and load what was saved")
    targets = find_targets(model, lora.target_modules)
    config = peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(targets),
        # transformers' Conv1D, GPT-2's linear layer, keeps its weight as (in, out).
        fan_in_fan_out=all(isinstance(layer, Conv1D) for layer in targets.values()),
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "adapters"))
        peft.inject_adapter_in_model(config, model)
    for parameter in _adapters(model).values():
        parameter.data = parameter.data.float()
    model.train(model.training)


def find_targets(model: PreTrainedModel, names: Sequence[str] | None) -> dict[str, nn.Module]:
    """The layers that adapters would go to, by their full names.

    `names` are last parts of full names, or None for all linear layers but the output head.

    Raises:
        ModelError: a name fits no linear layer but the output head.
    """
    head = model.get_output_embeddings()
    linear = {path: layer for path, layer in linear_layers(model) if layer is not head}
    if names is None:
        return linear
    found = {path: m for path, m in linear.items() if any(_fits(path, name) for name in names)}
    for name in names:
        if not any(_fits(path, name) for path in found):
            known = sorted({path.rpartition(".")[2] for path in linear})
            raise ModelError(
                f"target_modules: {name!r} is no linear layer of {type(model).__name__} that "
                f"adapters can go to; choose among {', '.join(known)}"
            )
    return found


def linear_layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers that are a matrix product, by their full names."""
    for path, layer in module.named_modules():
        if isinstance(layer, nn.Linear | Conv1D):
            yield path, layer


def has_adapters(model: PreTrainedModel) -> bool:
    """Whether there are adapters in the model."""
    return next(_adapted_layers(model), None) is not None


def merged_state_dict(model: PreTrainedModel) -> dict[str, Tensor]:
    """The state dict of the model with its adapters merged; the live weights are not changed.

    Raises:
        NonFiniteError: a sum is too large for the type of the weights.
    """
    merged = {key.replace(".base_layer.", "."): value for key, value in _frozen(model).items()}
    for path, layer in _adapted_layers(model):
        weight = merged[f"{path}.weight"]
        delta = layer.get_delta_weight(_NAME).detach()
        both = merged[f"{path}.weight"] = (weight.float() + delta).to(weight.dtype)
        if not both.isfinite().all():
            raise NonFiniteError(
                f"{path}: the weights with their adapters are not finite in {weight.dtype}; lower "
                "optim.lr, or load the student in bfloat16 or float32"
            )
    return merged


def save_adapters(model: PreTrainedModel, directory: Path) -> None:
    """Write `adapters.safetensors`: the adapters, and a hash of the weights beside them."""
    tensors = {name: value.detach().contiguous() for name, value in _adapters(model).items()}
    save_file(tensors, directory / ADAPTERS, metadata={"frozen": hash_tensors(_frozen(model))})


def load_adapters(model: PreTrainedModel, directory: Path) -> None:
    """Give the model's adapters the values that `save_adapters` wrote, bit for bit.

    Raises:
        RunError: the file is missing or damaged, or its adapters do not fit this model.
    """
    path = directory / ADAPTERS
    try:
        with safe_open(path, framework="pt") as file:
            frozen = (file.metadata() or {}).get("frozen")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise RunError(
            f"{path}: is missing; bring it back, or resume from another checkpoint"
        ) from None
    except (SafetensorError, OSError) as error:
        raise RunError(
            f"{path}: cannot be read ({error}); resume from another checkpoint"
        ) from error
    adapters = _adapters(model)
    if {k: v.shape for k, v in tensors.items()} != {k: v.shape for k, v in adapters.items()}:
        raise RunError(
            f"{path}: its adapters do not fit the model's; r, target_modules and the model must be "
            "those that the run was begun with"
        )
    if frozen != hash_tensors(_frozen(model)):
        raise RunError(
            f"{path}: its adapters belong to other weights than the model's; bring back the model "
            "that the run was begun with"
        )
    with torch.no_grad():
        for name, parameter in adapters.items():
            parameter.copy_(tensors[name])


def restore_weights(
    model: PreTrainedModel, directory: Path, load: Callable[[Path], PreTrainedModel]
) -> None:
    """Put saved weights into the model, in place; of one with adapters only the adapters.

    Raises:
        RunError: as `load_adapters`, or there are adapters and the model has none.
    """
    if has_adapters(model):
        load_adapters(model, directory)
    elif (directory / ADAPTERS).exists():
        raise RunError(f"{directory}: is of a model with adapters; add them to this one first")
    else:
        model.load_state_dict(load(directory).state_dict())


def _import_peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ModelError(
            "LoRA adapters need the package peft: pip install 'brim-distill[lora]'"
        ) from error
    return peft


def _fits(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}")


def _adapted_layers(model: PreTrainedModel) -> Iterator[tuple[str, Any]]:
    for path, module in model.named_modules():
        if hasattr(module, "lora_A"):
            yield path, module


def _adapters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if _is_adapter(name)}


def _frozen(model: PreTrainedModel) -> dict[str, Tensor]:
    """The state dict without the adapters."""
    return {key: value for key, value in model.state_dict().items() if not _is_adapter(key)}


def _is_adapter(name: str) -> bool:
    return ".lora_" in name
