"""The optimizer, its learning rate, and how many updates a run has."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import nn

from brim.errors import ConfigError
from brim.training.settings import LoopConfig, OptimConfig


def build_optimizer(model: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters; only matrices decay.

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


def import_adamw_8bit(device: torch.device) -> Any:
    """AdamW with moments in 8 bits (Dettmers et al. 2022), once it has made a step.

    Moments of fewer than 4,096 numbers stay in float32.

    Raises:
        ConfigError: bitsandbytes is not installed, or cannot compute on this device.
    """
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ConfigError(
            "optim.optimizer: adamw_8bit needs the package bitsandbytes: "
            "pip install 'brim-distill[bitsandbytes]'"
        ) from error
    trial = nn.Parameter(torch.zeros(4096, device=device))
    trial.grad = torch.zeros_like(trial)
    try:
        AdamW8bit([trial]).step()
    except Exception as error:  # whatever its libraries raise
        raise ConfigError(
            f"optim.optimizer: this bitsandbytes cannot compute adamw_8bit on {device.type} "
            f"({type(error).__name__}); install a newer one, or choose adamw"
        ) from error
    return AdamW8bit


def learning_rate(optim: OptimConfig, step: int, num_steps: int) -> float:
    """The learning rate of update `step` (from 0): linear warm-up, then the schedule."""
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
    """Updates of a run over `num_examples` training examples."""
    if settings.max_steps is not None:
        return settings.max_steps
    assert settings.num_epochs is not None
    return math.ceil(settings.num_epochs * num_examples / settings.rollout_batch_size)
