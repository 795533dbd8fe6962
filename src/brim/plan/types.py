"""What a plan says."""

from __future__ import annotations

from dataclasses import dataclass

from brim.plan.memory import Memory
from brim.plan.operations import Operations
from brim.plan.passes import Passes

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
        memory: the peak of each phase.
        operations: of one step.
        total_operations: of all steps; evaluations are left out.
        checkpoint_bytes: of one checkpoint.
        kept_bytes: of the checkpoints that stay, and the best model.
    """

    name: str
    does: str
    passes: Passes | None
    num_examples: int | None
    num_steps: int | None
    num_completions: int | None
    max_tokens: int | None
    memory: dict[str, Memory]
    operations: Operations | None
    total_operations: int | None
    checkpoint_bytes: int = 0
    kept_bytes: int = 0


@dataclass(frozen=True)
class Plan:
    """A run on paper.

    Attributes:
        models: teacher and student.
        stages: in the order of the run.
        warnings: what will probably not go as it was meant.
    """

    models: tuple[ModelPlan, ...]
    stages: tuple[StagePlan, ...]
    warnings: tuple[str, ...]

    @property
    def peak_bytes(self) -> int:
        """The most memory of any phase."""
        return max(memory.total for stage in self.stages for memory in stage.memory.values())

    @property
    def kept_bytes(self) -> int:
        """What all stages leave on the disk."""
        return sum(stage.kept_bytes for stage in self.stages)
