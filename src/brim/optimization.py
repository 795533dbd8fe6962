"""The optimizer, its learning rate, and how many updates a run has."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from brim.errors import ConfigError
from brim.settings import LoopConfig, OptimConfig


def build_optimizer(model: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters; only matrices decay.

    Raises:
        ConfigError: `adamw_8bit` without bitsandbytes, or where it cannot compute.
    """
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
