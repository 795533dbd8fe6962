"""What a plan says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from brim.plan.memory import Memory
from brim.plan.passes import ByPhase, Passes

GIB = 2**30


@dataclass(frozen=True)
class ModelPlan:
    """One of the two models.

    Attributes:
        role: `teacher` or `student`.
        name: what the settings call it.
        num_parameters: shared ones counted once, adapters apart.
        num_adapters: parameters of LoRA's adapters.
        num_trainable: parameters that training changes; of a teacher that is not trained, none.
        weight_bytes: in memory.
        stored: the type of the weights, or how they are quantised.
    """

    role: str
    name: str
    num_parameters: int
    num_adapters: int
    num_trainable: int
    weight_bytes: int
    stored: str


@dataclass(frozen=True)
class StagePlan:
    """One stage of the run; counts are None where the number of examples is not known.

    Attributes:
        name: as in the run directory; of the objective, its own.
        does: in a few words.
        passes: of a step through the models; None where nothing is trained.
        num_examples: training examples, at most.
        num_steps: steps of the trainer.
        num_completions: that all steps together learn from, or that are written.
        max_tokens: of these with their prompts, at most.
        memory: the peak of each phase, on one device.
        operations: of one step, of one device.
        total_operations: of all steps, of one device; evaluations are left out.
        checkpoint_bytes: of one checkpoint.
        kept_bytes: of the checkpoints that stay, and the best model.
        traffic: what a device sends in one step; None where nothing is trained.
        compute_seconds: of a step, on paper; None where the device's speed is not known.
        network_seconds: the same of what it sends.
    """

    name: str
    does: str
    passes: Passes | None
    num_examples: int | None
    num_steps: int | None
    num_completions: int | None
    max_tokens: int | None
    memory: dict[str, Memory]
    operations: ByPhase | None
    total_operations: int | None
    checkpoint_bytes: int = 0
    kept_bytes: int = 0
    traffic: ByPhase | None = None
    compute_seconds: float | None = None
    network_seconds: float | None = None

    def timed(self, tflops: float | None, bandwidth: float | None) -> Self:
        """With the seconds of a step, by what a device computes and sends in one.

        Args:
            tflops: of a device, in 10^12 floating-point operations a second.
            bandwidth: of a device, in 10^9 bytes a second.
        """
        if self.operations is None or self.traffic is None:
            return self
        return replace(
            self,
            compute_seconds=tflops and self.operations.total / (tflops * 1e12),
            network_seconds=bandwidth and self.traffic.total / (bandwidth * 1e9),
        )


@dataclass(frozen=True)
class Plan:
    """A run on paper.

    Attributes:
        models: teacher and student.
        stages: in the order of the run.
        warnings: what will probably not go as it was meant.
        devices: over which it is shared out.
    """

    models: tuple[ModelPlan, ...]
    stages: tuple[StagePlan, ...]
    warnings: tuple[str, ...]
    devices: int = 1

    @property
    def peak_bytes(self) -> int:
        """The most memory of any phase, on one device."""
        return max(memory.total for stage in self.stages for memory in stage.memory.values())

    @property
    def kept_bytes(self) -> int:
        """What all stages leave on the disk."""
        return sum(stage.kept_bytes for stage in self.stages)
