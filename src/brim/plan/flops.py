"""Floating-point operations of a step; docs/plan.md says what they are.

They are counted while passes of one prompt run on shapes alone. The output head works in parts,
so its products are counted here: two for each weight and token of a completion.
"""

from __future__ import annotations

from brim.plan.memory import Devices, Learner, Sizes
from brim.plan.models import ModelShape, Size
from brim.plan.passes import ByPhase, Passes
from brim.plan.peaks import pass_cost, writing_cost


def read_operations(shape: ModelShape, size: Size) -> int:
    """One forward pass over prompts and completions, with the output head."""
    return size.rows * pass_cost(shape, size.at_most(1)).operations + _head(shape, size)


def generate_operations(shape: ModelShape, size: Size, *, generations: int = 1) -> int:
    """Writing completions token by token with a cache; a prompt with several is read once."""
    once = writing_cost(shape, size.at_most(generations), num_prompts=1)
    return size.rows // generations * once.operations + _head(shape, size)


def update_operations(
    shape: ModelShape, size: Size, *, with_head: bool = True, checkpointing: bool = False
) -> int:
    """A forward and a backward pass; the head's logits are made again before the latter."""
    once = pass_cost(shape, size.at_most(1), gradient=True, checkpointing=checkpointing)
    heads = (3 + shape.head.requires_grad) if with_head else 0
    return size.rows * once.operations + heads * _head(shape, size)


def step_operations(
    passes: Passes,
    student: ModelShape,
    teacher: ModelShape | None,
    size: Size,
    *,
    checkpointing: bool = False,
) -> ByPhase:
    """One step of a stage; `size` is that of all its completions."""
    rollout = 0
    if passes.written:
        written = size.at_most(round(passes.written * size.rows))
        rollout = generate_operations(student, written, generations=passes.generations)
    update = update_operations(student, size, checkpointing=checkpointing)
    if passes.critic == "separate":
        update += update_operations(student, size, with_head=False, checkpointing=checkpointing)
    update *= passes.updates
    asked = 0
    if teacher is not None:
        once = read_operations(teacher, size)
        asked = passes.teacher_reads * once
        # Its logits are made again in the backward pass, like the student's.
        update += passes.compared * (once + _head(teacher, size))
    reads = passes.student_reads + passes.copy_reads + (passes.critic == "separate")
    return ByPhase(
        rollout=rollout,
        teacher=asked,
        student=reads * read_operations(student, size) if reads else 0,
        update=update,
    )


def _head(shape: ModelShape, size: Size) -> int:
    return 2 * size.rows * size.num_tokens * shape.head.numel()


def step_traffic(
    learner: Learner, teacher: ModelShape | None, devices: Devices, rows: int, sizes: Sizes
) -> ByPhase:
    """What a device sends in one step, by rings, which need the least.

    Of what each of N devices ends up with whole (all-gather), and of sums of which each gets a part
    (reduce-scatter), a device sends (N - 1) / N; of sums that each gets whole (all-reduce) twice
    that.

    Args:
        learner: the model that is trained.
        teacher: the model that is asked, if it is asked.
        devices: over which the run is shared out.
        rows: completions of a step that one device has.
        sizes: how many of them pass a model at once.
    """
    passes, shape = learner.passes, learner.shape
    judged = 0 if teacher is None or devices.teacher != "fsdp" else teacher.weight_bytes
    updates = passes.updates * passes.minibatches
    micro_batches = -(-rows // (passes.minibatches * learner.micro_batch.rows))
    rollout = student = 0
    if devices.student == "none":
        update = 2 * learner.gradients * updates
    else:
        # Forward, and backward but for what stayed.
        fetched = 2 * learner.trained - learner.num_trained * shape.outside_bytes()
        update = (fetched + learner.gradients) * micro_batches * updates
        rollout = shape.weight_bytes if passes.written else 0
        reads = passes.student_reads + (passes.critic == "separate")
        student = reads * -(-rows // sizes.reread.rows) * shape.weight_bytes
    update += passes.compared * passes.minibatches * micro_batches * judged
    asked = passes.teacher_reads * -(-rows // sizes.judged.rows) * judged
    return ByPhase(*(_sent(amount, devices) for amount in (rollout, asked, student, update)))


def _sent(amount: int, devices: Devices) -> int:
    return amount * (devices.count - 1) // devices.count
