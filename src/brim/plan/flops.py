"""Floating-point operations of a step; docs/plan.md says what they are.

They are counted while passes of one prompt run on shapes alone. The output head works in parts,
so its products are counted here: two for each weight and token of a completion.
"""

from __future__ import annotations

from dataclasses import dataclass

from brim.plan.memory import Devices, Learner, Sizes
from brim.plan.models import ModelShape, Size
from brim.plan.peaks import pass_cost, writing_cost


@dataclass(frozen=True)
class ByPhase:
    """A count of one step, of operations or of bytes that a device sends, by what happens in it.

    Attributes:
        rollout: the student writes.
        teacher: the teacher reads.
        student: the student, or a copy of it, reads without gradient.
        update: forward and backward passes; of bytes, gradients too.
    """

    rollout: int
    teacher: int
    student: int
    update: int

    @property
    def total(self) -> int:
        """Of all phases."""
        return self.rollout + self.teacher + self.student + self.update


def read_operations(shape: ModelShape, size: Size) -> int:
    """One forward pass over prompts and completions, with the output head."""
    return size.rows * pass_cost(shape, size.at_most(1)).operations + _head(shape, size)


def generate_operations(shape: ModelShape, size: Size, *, generations: int = 1) -> int:
    """Writing completions token by token with a cache; a prompt with several is read once."""
    once = writing_cost(shape, size.at_most(generations), num_prompts=1)
    return size.rows // generations * once.operations + _head(shape, size)


def update_operations(shape: ModelShape, size: Size, *, checkpointing: bool = False) -> int:
    """A forward and a backward pass."""
    once = pass_cost(shape, size.at_most(1), gradient=True, checkpointing=checkpointing)
    return size.rows * once.operations + _update_heads(shape, size)


def step_operations(learner: Learner, teacher: ModelShape | None, size: Size) -> ByPhase:
    """One step of a stage; `size` is that of all its completions."""
    passes, student = learner.passes, learner.shape
    rollout = teacher_pass = 0
    if passes.written:
        written = size.at_most(round(passes.written * size.rows))
        rollout = generate_operations(student, written, generations=passes.generations)
    update = update_operations(student, size, checkpointing=learner.checkpointing)
    # A critic of its own has no output head.
    update += (passes.num_trained - 1) * (update - _update_heads(student, size))
    update *= passes.updates
    if teacher is not None:
        teacher_pass = read_operations(teacher, size)
        # Its logits are made again in the backward pass, like the student's.
        read = _head(teacher, size) if passes.kept else teacher_pass
        update += passes.compared * (read + _head(teacher, size))
    reads = passes.student_reads + passes.copy_reads + passes.num_trained - 1
    return ByPhase(
        rollout=rollout,
        teacher=passes.teacher_reads * teacher_pass,
        student=reads * read_operations(student, size) if reads else 0,
        update=update,
    )


def _update_heads(shape: ModelShape, size: Size) -> int:
    """Logits, the same again before the backward pass, and gradients of features and weights."""
    return (3 + shape.head.requires_grad) * _head(shape, size)


def _head(shape: ModelShape, size: Size) -> int:
    return 2 * size.rows * size.num_tokens * shape.head.numel()


def step_traffic(
    learner: Learner, teacher: ModelShape | None, devices: Devices, rows: int, sizes: Sizes
) -> ByPhase:
    """What a device sends in one step, by rings, which need the least.

    Of what each of N devices ends up with whole (all-gather), and of sums of which each gets a part
    (reduce-scatter), a device sends (N - 1) / N; of sums that each gets whole (all-reduce) twice
    that. `rows` are the completions of a step that one device has.
    """
    passes, shape = learner.passes, learner.shape
    gathered = 0 if teacher is None or devices.teacher != "fsdp" else teacher.weight_bytes
    updates = passes.updates * passes.minibatches
    micro_batches = -(-rows // (passes.minibatches * learner.micro_batch.rows))
    rollout = student = 0
    if devices.student == "none":
        update = 2 * learner.gradients * updates
    else:
        # Forward, and backward but for what stayed.
        fetched = 2 * learner.trained - passes.num_trained * shape.outside_bytes()
        update = (fetched + learner.gradients) * micro_batches * updates
        rollout = shape.weight_bytes if passes.written else 0
        reads = passes.student_reads + passes.num_trained - 1
        student = reads * -(-rows // sizes.reread.rows) * shape.weight_bytes
    if passes.kept and gathered and teacher is not None:  # the head, which then stays
        update += teacher.outside_bytes()
    else:
        update += passes.compared * passes.minibatches * micro_batches * gathered
    asked = passes.teacher_reads * -(-rows // sizes.scored.rows) * gathered
    return ByPhase(*(_sent(amount, devices) for amount in (rollout, asked, student, update)))


def _sent(amount: int, devices: Devices) -> int:
    return amount * (devices.count - 1) // devices.count
