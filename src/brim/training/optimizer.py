"""The optimizer: its learning rate, how many updates a run has, and its state on the disk."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from brim.errors import ConfigError, ModelError, RunError
from brim.models.modes import checkpoint_layers, without_weights
from brim.support.files import atomic_write_json, read_json
from brim.training.loop_settings import LoopConfig, OptimConfig, steps_of_epochs
from brim.training.settings import RunConfig
from brim.training.sharding import part_of

# What optimizers keep in the shape of the parameter, and what AdamW keeps in all.
_MOMENTS = {"exp_avg", "exp_avg_sq", "state1", "state2"}
_ADAMW = {"step", "exp_avg", "exp_avg_sq"}


def build_optimizer(model: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    """Return AdamW over the trainable parameters; only matrices decay.

    Raises:
        ConfigError: `adamw_8bit` without bitsandbytes, or where it cannot compute; weights of a
            type that cannot be trained.
    """
    check_trainable(model, "student")
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": optim.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    options: dict[str, Any] = {"lr": optim.lr, "betas": optim.betas, "eps": optim.eps}
    if optim.optimizer == "adamw_8bit":
        chosen: torch.optim.Optimizer = import_adamw_8bit(parameters[0].device)(groups, **options)
        return chosen
    return torch.optim.AdamW(groups, **options, fused=True)


def check_trainable(model: nn.Module, role: Literal["teacher", "student"]) -> None:
    """Check that all weights that training changes are float32.

    Neighboring bfloat16 numbers are up to 0.8 % apart: most updates of a usual size are lost in
    rounding, and the weights do not move.

    Args:
        model: whose parameters that require gradients are looked at.
        role: for the message.

    Raises:
        ConfigError: one has another type.
    """
    coarse = {p.dtype for p in model.parameters() if p.requires_grad} - {torch.float32}
    if coarse:
        name = str(coarse.pop()).removeprefix("torch.")
        raise ConfigError(
            f"{role}.dtype: small updates of {name} weights are lost in rounding; set it to "
            "float32, and trainer.precision to bfloat16 to compute in bfloat16"
        )


def import_adamw_8bit(device: torch.device, keys: str = "") -> Any:
    """Import AdamW with moments in 8 bits (Dettmers et al. 2022), once it has made a step.

    Moments of fewer than 4,096 numbers stay in float32. `keys` are the place of its settings.

    Raises:
        ConfigError: bitsandbytes is not installed, or cannot compute on this device.
    """
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ConfigError(
            f"{keys}optim.optimizer: adamw_8bit needs the package bitsandbytes: "
            "pip install 'brim-distill[bitsandbytes]'"
        ) from error
    trial = nn.Parameter(torch.zeros(4096, device=device))
    trial.grad = torch.zeros_like(trial)
    try:
        AdamW8bit([trial]).step()
    except Exception as error:  # whatever its libraries raise
        raise ConfigError(
            f"{keys}optim.optimizer: this bitsandbytes cannot compute adamw_8bit on {device.type} "
            f"({type(error).__name__}); install a newer one, or choose adamw"
        ) from error
    return AdamW8bit


def learning_rate(optim: OptimConfig, step: int, num_steps: int) -> float:
    """Return the learning rate of update `step` (from 0): linear warm-up, then the schedule."""
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    progress = (step - optim.warmup_steps) / max(num_steps - optim.warmup_steps, 1)
    match optim.schedule:
        case "constant":
            return optim.lr
        case "linear":
            return optim.lr * (1.0 - progress)
        case "cosine":
            return optim.lr * 0.5 * (1.0 + math.cos(math.pi * progress))


def count_steps(settings: LoopConfig, num_examples: int) -> int:
    """Count the updates of a run over `num_examples` training examples."""
    if settings.max_steps is not None:
        return settings.max_steps
    assert settings.num_epochs is not None
    return steps_of_epochs(settings.num_epochs, num_examples, settings.rollout_batch_size)


def count_evaluations(settings: LoopConfig, num_steps: int, *, after: int = 0) -> int:
    """Count the evaluations of a training behind a step; the one before the first is not one."""
    return _count_every(settings.evaluate_every, num_steps, after)


def count_saves(settings: LoopConfig, num_steps: int, *, after: int = 0) -> int:
    """Count the checkpoints that are written behind a step."""
    return _count_every(settings.save_every, num_steps, after)


def _count_every(every: int, num_steps: int, after: int) -> int:
    """How many steps behind `after` are multiples of `every`, or the last."""
    return math.ceil(num_steps / every) - after // every if after < num_steps else 0


def check_checkpointing(
    config: RunConfig, teacher: PreTrainedModel | None, student: PreTrainedModel
) -> None:
    """Check that layers can be checkpointed in each stage that is to; the models are not changed.

    Raises:
        ModelError: those of one cannot.
    """
    for _, keys, loop, _ in config.stages():
        model = teacher if keys == "teacher.train." else student
        if loop.gradient_checkpointing and model is not None:
            dropout = keys != "" or not config.objective.compares_policies
            try:
                checkpoint_layers(without_weights(model), dropout=dropout)
            except ModelError as error:
                raise ModelError(f"{keys}trainer.{error}") from None


def schedule_warnings(config: RunConfig, num_examples: int | None) -> Iterator[str]:
    """Warn of warm-ups that leave less than a tenth of a stage's steps at the full learning rate.

    Args:
        config: the run's settings.
        num_examples: of the training split; None if not known.
    """
    for name, keys, loop, optim in config.stages():
        if loop.max_steps is None and num_examples is None:
            continue
        steps, warmup = count_steps(loop, num_examples or 0), optim.warmup_steps
        if warmup == 0 or 10 * (steps - warmup + 1) >= steps:
            continue
        longer = "longer than" if warmup > steps else "nearly all of"
        reached = learning_rate(optim, min(warmup, steps) - 1, steps)
        of = ", less than half of" if 2 * reached < optim.lr else " of"
        yield (
            f"{name}: the warm-up of {warmup:,} steps is {longer} the stage's {steps:,}: the "
            f"learning rate reaches {reached:.2g}{of} {optim.lr:.2g}; lower "
            f"{keys}optim.warmup_steps, to {steps // 10:,} for a tenth of the steps"
        )


def save_optimizer(
    optimizer: torch.optim.Optimizer, directory: Path, state_dict: dict[str, Any] | None = None
) -> None:
    """Write `optimizer.safetensors` (moments, step counts) and `optimizer.json` (the rest).

    Args:
        optimizer: of these moments.
        directory: takes the files.
        state_dict: the optimizer's, where it holds only a part of each moment.
    """
    state_dict = optimizer.state_dict() if state_dict is None else state_dict
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    places: set[int] = set()
    for index, state in state_dict["state"].items():
        values[str(index)] = {}
        for name, value in flat(state):
            if isinstance(value, Tensor):
                # Parameters may share one, such as the map of 8-bit codes; safetensors cannot.
                shared = value.data_ptr() in places
                places.add(value.data_ptr())
                tensors[f"{index}.{name}"] = value.clone() if shared else value.contiguous()
            else:
                values[str(index)][name] = value
    save_file(tensors, directory / "optimizer.safetensors")
    atomic_write_json(
        directory / "optimizer.json",
        {
            "class": type(optimizer).__name__,
            "param_groups": state_dict["param_groups"],
            "state": values,
        },
    )


def count_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors, shared ones counted once."""
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


def flat(state: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What an optimizer keeps of a parameter; bitsandbytes hides 8-bit moments in a dict within."""
    for name, value in state.items():
        yield from flat(value) if isinstance(value, Mapping) else [(name, value)]


def load_optimizer(optimizer: torch.optim.Optimizer, directory: Path) -> None:
    """Give an optimizer the state that `save_optimizer` wrote, bit for bit, or its part of it.

    Its hyperparameters stay what the settings made them.

    Raises:
        RunError: the files are of another optimizer or of other parameters.
    """
    saved = read_json(directory / "optimizer.json")
    try:
        if saved["class"] != type(optimizer).__name__:
            raise ValueError(f"the state of {saved['class']}, not of {type(optimizer).__name__}")
        state: dict[int, dict[str, Any]] = {int(i): dict(v) for i, v in saved["state"].items()}
        parameters = [weight for group in optimizer.param_groups for weight in group["params"]]
        for key, tensor in load_file(directory / "optimizer.safetensors").items():
            index, name = key.split(".", maxsplit=1)
            parameter = parameters[int(index)]
            own = tensor.clone()  # or the optimizer would work in the mapped file
            wanted = parameter.shape if name in _MOMENTS else ()
            if own.shape != wanted and name in (*_MOMENTS, "step"):
                raise ValueError(f"{key} has the shape {tuple(own.shape)}")
            state[int(index)][name] = part_of(own, parameter)
        if saved["class"] == "AdamW" and any(
            not set(values) >= _ADAMW for values in state.values()
        ):
            raise ValueError("it lacks moments")
        groups = [
            {**own, "params": group["params"]}
            for own, group in zip(optimizer.param_groups, saved["param_groups"], strict=True)
        ]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, SafetensorError) as error:
        raise RunError(
            f"{directory}: the optimizer is another, or that of another model ({error})"
        ) from None


def save_parameters(parameters: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors by name; nothing where there are none."""
    if parameters:
        save_file({name: value.detach().contiguous() for name, value in parameters.items()}, path)


def load_parameters(parameters: Mapping[str, Tensor], path: Path) -> None:
    """Give the tensors the values that `save_parameters` wrote, bit for bit.

    Raises:
        RunError: the file is missing, or holds other tensors.
    """
    if not parameters:
        return
    stored = load_file(path) if path.exists() else {}
    shapes = {name: value.shape for name, value in stored.items()}
    if shapes != {name: value.shape for name, value in parameters.items()}:
        raise RunError(
            f"{path}: does not hold what this objective trains beside the student; "
            "resume with the settings that the run was begun with"
        )
    fill(parameters, stored)


@torch.no_grad()
def fill(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy whole tensors into those of the same names, which may be held in parts."""
    for name, tensor in tensors.items():
        tensor.copy_(part_of(values[name], tensor))
