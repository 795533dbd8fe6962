"""Floating-point operations of a step, from shapes; docs/plan.md has the formulas.

A product of a token's features with a weight matrix is two operations a weight. Attention is two
products for each pair of a query and a key. Everything else (norms, softmax, sampling) is left out.
"""

from __future__ import annotations

from dataclasses import replace

from brim.plan.memory import Devices, Learner, Sizes
from brim.plan.models import ModelShape, Products, Size
from brim.plan.passes import ByPhase, Passes


class Operations(ByPhase):
    """Of one step."""


def read_operations(shape: ModelShape, size: Size) -> int:
    """One forward pass over prompts and completions, with the output head."""
    return _products(shape.products(), shape, size) + _attention(shape, size) + _head(shape, size)


def generate_operations(shape: ModelShape, size: Size, *, generations: int = 1) -> int:
    """Writing completions token by token with a cache.

    The weights meet as many tokens as in one pass. Each query meets the keys up to its own. A
    prompt with several completions is read once.
    """
    prompt, length = size.num_prompt_tokens, size.num_tokens
    rows, prompts, weights = size.rows, size.rows // generations, shape.products()
    layers = shape.num_layers["decoder"]
    if shape.is_encoder_decoder:
        read_once, layers_once = weights.encoder, shape.num_layers["encoder"]
        pairs = layers * (length * (length + 1) // 2 + length * prompt)
    else:
        read_once, layers_once = weights.decoder, layers
        pairs = layers * ((length - 1) * prompt + length * (length - 1) // 2)
    pairs = rows * pairs + prompts * layers_once * prompt**2
    products = _products(weights, shape, size) - 2 * (rows - prompts) * read_once * prompt
    return products + 4 * shape.query_width * pairs + _head(shape, size)


def update_operations(
    shape: ModelShape, size: Size, *, with_head: bool = True, checkpointing: bool = False
) -> int:
    """A forward and a backward pass.

    Backward, each weight is met once for the gradient of its input and, if it is trained, once for
    its own; attention twice. The head's logits are made again first; with gradient checkpointing
    all layers are passed again.
    """
    passes = (2 + checkpointing) * _products(shape.products(), shape, size)
    passes += _products(shape.products(trainable=True), shape, size)
    passes += (3 + checkpointing) * _attention(shape, size)
    if with_head:
        passes += (3 + shape.head.requires_grad) * _head(shape, size)
    return passes


def step_operations(
    passes: Passes,
    student: ModelShape,
    teacher: ModelShape | None,
    size: Size,
    *,
    checkpointing: bool = False,
) -> Operations:
    """One step of a stage; `size` is that of all its completions."""
    written = replace(size, rows=round(passes.written * size.rows))
    update = passes.updates * update_operations(student, size, checkpointing=checkpointing)
    if passes.critic == "separate":
        update += passes.updates * update_operations(
            student, size, with_head=False, checkpointing=checkpointing
        )
    judged = 0
    if teacher is not None:
        judged = passes.teacher_reads * read_operations(teacher, size)
        # Its logits are made again in the backward pass, like the student's.
        once = read_operations(teacher, size) + _head(teacher, size)
        update += passes.compared * once
    reads = passes.student_reads + passes.copy_reads + (passes.critic == "separate")
    return Operations(
        rollout=generate_operations(student, written, generations=passes.generations),
        teacher=judged,
        student=reads * read_operations(student, size),
        update=update,
    )


def _products(weights: Products, shape: ModelShape, size: Size) -> int:
    per_row = (weights.encoder + weights.cross) * size.num_prompt_tokens
    per_row += weights.decoder * _decoder_tokens(shape, size)
    return 2 * size.rows * per_row


def _attention(shape: ModelShape, size: Size) -> int:
    length, prompt = _decoder_tokens(shape, size), size.num_prompt_tokens
    pairs = shape.num_layers["decoder"] * length**2
    if shape.is_encoder_decoder:
        pairs += shape.num_layers["decoder"] * length * prompt
        pairs += shape.num_layers["encoder"] * prompt**2
    return 4 * size.rows * shape.query_width * pairs


def _head(shape: ModelShape, size: Size) -> int:
    return 2 * size.rows * size.num_tokens * shape.head.numel()


def _decoder_tokens(shape: ModelShape, size: Size) -> int:
    """Of a row; the last token of a completion is predicted and not read."""
    if shape.is_encoder_decoder:
        return size.num_tokens
    return size.num_prompt_tokens + size.num_tokens - 1


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
