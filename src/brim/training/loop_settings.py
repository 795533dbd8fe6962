"""What a recipe says about the optimizer and the loop of a stage."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from brim.config.loading import Config, Incidental
from brim.support.imports import is_path_of_object

Decay = Annotated[float, Field(ge=0, lt=1)]


def _checked_path(path: str) -> str:
    if not is_path_of_object(path):
        raise ValueError("is no path of a function or class; write MODULE:NAME")
    return path


CallbackPath = Annotated[str, AfterValidator(_checked_path)]


class OptimConfig(Config):
    """AdamW with linear warm-up."""

    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """`adamw_8bit` keeps the moments of matrices in 8 bits; needs the extra `bitsandbytes`."""
    lr: float = Field(1e-5, gt=0)
    """Peak learning rate."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay of the moments."""
    eps: float = Field(1e-8, gt=0)
    """Added to the denominator."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled decay of matrices; vectors (norms, biases) are never decayed."""
    warmup_steps: int = Field(0, ge=0)
    """Steps from zero to the peak."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What follows the warm-up; `linear` and `cosine` end at zero."""
    max_grad_norm: float | None = Field(1.0, gt=0)
    """Clip the global gradient norm; null for none."""


class SupervisedOptimConfig(OptimConfig):
    """AdamW with linear warm-up, at a learning rate of cross-entropy."""

    lr: float = Field(1e-3, gt=0)
    """Peak learning rate."""


class LoopConfig(Config):
    """The training loop."""

    max_steps: int | None = Field(None, ge=1)
    """Steps: rollout batches, of one update each unless the objective says more; alternatively
    `num_epochs`."""
    num_epochs: float | None = Field(None, gt=0)
    """Passes over the training split; alternatively `max_steps`."""
    rollout_batch_size: int = Field(64, ge=1)
    """Prompts of one step, over all processes."""
    micro_batch_tokens: int = Field(8192, ge=1)
    """Tokens of one forward and backward pass: rows of similar length, with their prompts and
    padding. A matter of memory and speed only."""
    evaluate_every: int = Field(100, ge=1)
    """Steps between evaluations on the validation split; the last step is always evaluated."""
    save_every: int = Field(100, ge=1)
    """Steps between checkpoints; the last step is always saved."""
    dropout: float | None = Field(None, ge=0, lt=1)
    """Dropout of the model that is trained; null for what its config says. Objectives that compare
    the policy with the one that wrote (PPO, reused or old rollouts) train without."""
    gradient_checkpointing: bool = False
    """Keep only what enters each layer, and make the rest again for the gradient: less memory, and
    a third more work in an update."""
    keep_checkpoints: int = Field(2, ge=1)
    """How many of the newest checkpoints stay."""
    max_nonfinite_steps: int = Field(5, ge=1)
    """Skipped steps in a row after which the run stops."""
    patience: int | None = Field(None, ge=1)
    """End the stage after so many evaluations in a row without a better validation score; null for
    none."""
    sharding: Literal["none", "fsdp"] = "none"
    """`fsdp` leaves each process its part of the weights, gradients and moments of what is trained
    (torch's `fully_shard`); one process has all of them."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.max_steps is None) == (self.num_epochs is None):
            raise ValueError("give exactly one of max_steps and num_epochs")
        return self


def steps_of_epochs(num_epochs: float, num_examples: int, rollout_batch_size: int) -> int:
    """Return the steps of so many passes, 1.1 being eleven tenths and no binary number near it."""
    return math.ceil(Fraction(str(num_epochs)) * num_examples / rollout_batch_size)


def check_moments(optim: OptimConfig, loop: LoopConfig) -> None:
    """Raise a ValueError for moments that cannot be kept in parts where the loop says so."""
    if optim.optimizer != "adamw" and loop.sharding != "none":
        raise ValueError(
            f"optim.optimizer: {optim.optimizer} cannot keep its moments in parts; set it to "
            "adamw, or trainer.sharding to none"
        )


class TrainerConfig(LoopConfig):
    """The loop of the objective's stage, and what holds for all stages of the run."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """`bfloat16` is autocast: the weights and their optimizer stay in float32."""
    compile: bool = False
    """Have `torch.compile` translate both models' layers for rollouts, evaluations and the
    teacher's passes of the objective's stage. It takes half a minute or more at the start, and on a
    CPU a C++ compiler; the docs page on speed says what it gains."""
    monitors: Literal["off", "warn", "stop", "rollback"] = "warn"
    """What follows when a monitor sees learning from the student's own text go wrong: a warning; a
    stop behind the saved step; or the weights of the last healthy checkpoint at half the rate, up
    to three times, then a stop."""
    callbacks: Annotated[tuple[CallbackPath, ...], Incidental] = ()
    """Functions or classes of yours, `MODULE:NAME`, that watch the objective's stage and may end it
    (docs/python_api.md). Their code is run."""


class SupervisedConfig(Config):
    """A stage of cross-entropy training: the teacher's own, or the student's pre-distillation."""

    optim: SupervisedOptimConfig = SupervisedOptimConfig()
    """Optimizer of this stage."""
    trainer: LoopConfig
    """Loop of this stage."""

    def describe(self) -> dict[str, Any]:
        """All that decides about what is learned, for hashes.

        A setting that stages of before did not have is left out where it is not used.
        """
        settings = self.model_dump(mode="json")
        if self.trainer.patience is None:
            del settings["trainer"]["patience"]
        return settings

    @model_validator(mode="after")
    def _whole_moments(self) -> Self:
        check_moments(self.optim, self.trainer)
        return self
