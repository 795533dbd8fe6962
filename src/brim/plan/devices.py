"""Over how many devices a run is shared out, and what each of them holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from brim.plan.shapes import ModelShape


@dataclass(frozen=True)
class Devices:
    """A process each, with its share of the prompts.

    Attributes:
        count: N, all of them.
        student: `none` for a whole student on each, with its gradients and moments; `fsdp` for an
            N-th of each.
        teacher: `none` for a whole one on each, `fsdp` for an N-th, `offload` for nothing: its
            weights are in the host's memory.
        teacher_apart: whether the teacher is on a device of its own.
    """

    count: int = 1
    student: Literal["none", "fsdp"] = "none"
    teacher: Literal["none", "fsdp", "offload"] = "none"
    teacher_apart: bool = False

    @property
    def shards_student(self) -> bool:
        """Whether there is something to gather."""
        return self.student == "fsdp" and self.count > 1

    @property
    def gathers_teacher(self) -> bool:
        """Whether the weights of its layers have to come from somewhere."""
        return self.teacher == "offload" or (self.teacher == "fsdp" and self.count > 1)

    def share(self, amount: int) -> int:
        """The most that one device gets of so many bytes or rows."""
        return -(-amount // self.count)

    def teacher_bytes(self, teacher: ModelShape) -> int:
        """Of its weights that stay on a device."""
        match self.teacher:
            case "none":
                return teacher.weight_bytes
            case "fsdp":
                return self.share(teacher.weight_bytes)
            case "offload":
                return 0


ONE_DEVICE = Devices()


def at_work(shape: ModelShape, *, trainable: bool = False) -> int:
    """Bytes of a sharded model's weights that a device has whole while it reads.

    What is outside the layers stays; of the layers it is one, and the next one on its way.

    Args:
        shape: the model.
        trainable: of the weights that are trained only, which is what their gradients take.
    """
    return shape.outside_bytes(trainable=trainable) + 2 * shape.layer_bytes(trainable=trainable)
