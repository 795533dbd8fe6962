"""What the devices of a run send each other in a step; docs/plan.md says what is counted."""

from __future__ import annotations

from brim.plan.devices import Devices
from brim.plan.memory import Learner, Sizes
from brim.plan.passes import ByPhase
from brim.plan.shapes import ModelShape


class Traffic(ByPhase):
    """Bytes that one device sends in one step.

    Attributes:
        rollout: parts of a sharded student, which each device gets whole to write.
        teacher: parts of a sharded teacher, for its passes.
        student: parts of a sharded student, for its passes without gradient.
        update: gradients, and parts of sharded models.
    """


def step_traffic(
    learner: Learner, teacher: ModelShape | None, devices: Devices, rows: int, sizes: Sizes
) -> Traffic:
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
    return Traffic(*(_sent(amount, devices) for amount in (rollout, asked, student, update)))


def _sent(amount: int, devices: Devices) -> int:
    return amount * (devices.count - 1) // devices.count
