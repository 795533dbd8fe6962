"""The optimizer, its learning rate, and how many updates a run has."""

from __future__ import annotations

import math

import torch
from torch import nn

from brim.settings import LoopConfig, OptimConfig


def build_optimizer(model: nn.Module, optim: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; only matrices decay."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": optim.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True,
    )  # fmt: skip


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
