"""Bytes that each phase of a stage holds at its peak; docs/plan.md says what is counted."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch

from brim.models.features import BUFFERS, PAIR_BYTES
from brim.models.head import CHUNK_BYTES
from brim.objectives.method import Passes
from brim.plan.models import ModelShape, Size
from brim.plan.peaks import pass_cost, writing_cost

# Of a chunk's float32 logits, and of those of the rows that write: the logits and what is made of
# them.
_NUM_BUFFERS = 3


@dataclass(frozen=True)
class Memory:
    """Of one phase, in bytes of one device.

    Attributes:
        weights: of the models that the stage works with.
        gradients: of the trained parameters.
        optimizer: both moments of AdamW.
        exchange: what it takes to work with other devices: gathered weights of sharded models, and
            gradients on their way.
        activations: what a pass holds beside weights; for an update, what the backward pass needs.
        cache: keys and values of the rows that are written at once.
        head: logits of a chunk of tokens, or of one token of each row that is written, and, while
            weights are trained, the head's new gradient.
    """

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    exchange: int = 0
    activations: int = 0
    cache: int = 0
    head: int = 0

    @property
    def total(self) -> int:
        """Of all of it."""
        return sum(asdict(self).values())


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
        whole = teacher.weight_bytes
        return {"none": whole, "fsdp": self.share(whole), "offload": 0}[self.teacher]


ONE_DEVICE = Devices()


def at_work(shape: ModelShape, *, trainable: bool = False) -> int:
    """Bytes of a sharded model's weights, or of those it trains, that a device has whole in a pass.

    What is outside the layers stays; of the layers it is one, and the next one on its way.
    """
    return shape.outside_bytes(trainable=trainable) + 2 * shape.layer_bytes(trainable=trainable)


@dataclass(frozen=True)
class Learner:
    """The model that a stage trains.

    Attributes:
        passes: what its objective asks for.
        dropout: in training; None for what the model's config says.
        micro_batch: rows of one forward and backward pass.
        checkpointing: whether the backward pass makes activations again.
    """

    shape: ModelShape
    passes: Passes
    dropout: float | None
    micro_batch: Size
    checkpointing: bool = False
    moments_8bit: bool = False

    @property
    def trained(self) -> int:
        """Bytes of their weights, the value head's included."""
        return self.passes.num_trained * self.shape.weight_bytes + self._value_head

    @property
    def gradients(self) -> int:
        """Also of the critic, whose output head is not trained if it is its own."""
        trained = self.shape.trainable_bytes
        if self.passes.num_trained > 1:
            head, embedding = self.shape.head, self.shape.model.get_input_embeddings().weight
            own = head.requires_grad and head is not embedding
            trained = 2 * trained - (head.nbytes if own else 0)
        return trained + self._value_head

    @property
    def optimizer(self) -> int:
        """Both moments of each trained parameter."""
        if self.moments_8bit:
            return self.gradients * self.shape.moment_bytes_8bit // self.shape.trainable_bytes
        return 2 * self.gradients

    @property
    def checkpoint(self) -> int:
        """Of one checkpoint: weights, moments, the critic, an older writer."""
        return self.trained + self.passes.writers * self.shape.weight_bytes + self.optimizer

    @property
    def _value_head(self) -> int:
        return 4 * (self.shape.head.shape[1] + 1) if self.passes.critic else 0


@dataclass(frozen=True)
class Sizes:
    """What passes a model at once, if there is so much.

    Attributes:
        written: rows that the student writes in a step.
        scored: rows that the teacher reads.
        reread: rows that the student reads without gradient.
        evaluated: rows that are written in an evaluation.
    """

    written: Size
    scored: Size
    reread: Size
    evaluated: Size


@dataclass(frozen=True)
class Room:
    """Where the phases of a stage take place.

    Attributes:
        learner: the model that is trained; None where nothing is.
        teacher: whose logits are the Q-values; None where it is not used.
        beside: bytes of models that are there and have no part in this.
        autocast: the type of matrix products in training steps; evaluations have none.
        devices: over which the run is shared out.
    """

    learner: Learner | None
    teacher: ModelShape | None
    beside: int
    autocast: torch.dtype | None
    devices: Devices = ONE_DEVICE

    @property
    def base(self) -> Memory:
        """What is held in every phase, once the first step is done."""
        devices, learner = self.devices, self.learner
        weights = self.beside
        if self.teacher is not None and not devices.teacher_apart:
            weights += devices.teacher_bytes(self.teacher)
        if learner is None:
            return Memory(weights=weights)
        weights += learner.passes.copies * learner.shape.weight_bytes  # frozen
        if devices.student == "fsdp":
            trained, optimizer = devices.share(learner.trained), devices.share(learner.optimizer)
            return Memory(weights=weights + trained, optimizer=optimizer)
        buckets = learner.gradients if devices.count > 1 else 0  # that DDP adds up in
        weights += learner.trained
        return Memory(weights=weights, optimizer=learner.optimizer, exchange=buckets)

    def write(
        self, shape: ModelShape, size: Size, *, training: bool = False, generations: int = 1
    ) -> Memory:
        """`shape` writes so many completions a prompt; `training` if that is part of a step."""
        autocast = self.autocast if training else None
        num_prompts = -(-size.rows // generations)
        peak = writing_cost(shape, size, num_prompts=num_prompts, autocast=autocast).peak
        cache = shape.cache_bytes(size, itemsize=None if autocast is None else autocast.itemsize)
        return replace(
            self._with(shape, whole=True),
            activations=max(0, peak - cache) + self._casts(shape, autocast),
            cache=cache,
            head=_NUM_BUFFERS * 4 * size.rows * len(shape.head),
        )

    def read(self, shape: ModelShape, size: Size, *, training: bool = False) -> Memory:
        """`shape` reads what was written, without gradient."""
        autocast = self.autocast if training else None
        return replace(
            self._with(shape),
            activations=pass_cost(shape, size, autocast=autocast).peak
            + self._casts(shape, autocast),
            head=_chunk(shape, size),
        )

    def update(self) -> Memory:
        """Forward and backward passes of a micro-batch, gradients of earlier ones added up."""
        learner = self.learner
        assert learner is not None
        shape, size = learner.shape, learner.micro_batch
        cost = pass_cost(
            shape,
            size,
            gradient=True,
            dropout=learner.dropout,
            autocast=self.autocast,
            checkpointing=learner.checkpointing,
        )
        # With checkpointing the head is done with its logits before layers are passed again.
        free = cost.peak - cost.kept if learner.checkpointing else 0
        activations = cost.peak * learner.passes.num_trained
        head = _chunk(shape, size)
        held = self._with(shape)
        exchange, gradients = held.exchange, learner.gradients
        if self.devices.shards_student:
            # Of each model its own, and the gradients of what is at work.
            exchange += at_work(shape, trainable=True)
            exchange *= learner.passes.num_trained
        if self.devices.student == "fsdp":
            gradients = self.devices.share(gradients)
        if learner.passes.compared and self.teacher is not None:
            if learner.passes.kept:
                exchange += self.teacher.outside_bytes() * self.devices.gathers_teacher
            elif not self.devices.teacher_apart:
                # The teacher reads first; its features stay.
                read = pass_cost(self.teacher, size, autocast=self.autocast)
                activations = max(activations, read.peak)
                exchange += self._gathered(self.teacher)
            # Of what is kept the rows of a micro-batch are taken, and of these the tokens.
            activations += (1 + learner.passes.kept) * _features(self.teacher, size)
            head = _chunk(shape, size, budget=PAIR_BYTES // BUFFERS, buffers=BUFFERS)
        head = max(0, head - free) + 4 * shape.head.numel() * shape.head.requires_grad
        return replace(
            held, gradients=gradients, exchange=exchange, activations=activations, head=head
        )

    def _with(self, shape: ModelShape, *, whole: bool = False) -> Memory:
        """What is held where `shape` works, its gathered weights included."""
        if shape is self.teacher and self.devices.teacher_apart:
            base = Memory(weights=self.devices.teacher_bytes(shape))
        else:
            base = self.base
        return replace(base, exchange=base.exchange + self._gathered(shape, whole=whole))

    def _gathered(self, shape: ModelShape, *, whole: bool = False) -> int:
        devices = self.devices
        gathers = devices.gathers_teacher if shape is self.teacher else devices.shards_student
        if not gathers:
            return 0
        return shape.weight_bytes if whole else at_work(shape)

    def _casts(self, shape: ModelShape, autocast: torch.dtype | None) -> int:
        """Autocast keeps its copies of weights that are trained until the rollout is scored."""
        if autocast is None or shape is self.teacher or shape.model.dtype == autocast:
            return 0
        return autocast.itemsize * shape.num_cast


def phases(room: Room, rows: int, sizes: Sizes, *, returns: bool) -> dict[str, Memory]:
    """The peak of each phase of a training stage; `rows` of a step are those of one device.

    `returns` says whether evaluations use the teacher.
    """
    learner, teacher = room.learner, room.teacher
    assert learner is not None
    found: dict[str, Memory] = {}
    if learner.passes.written:
        found["rollout"] = room.write(
            learner.shape,
            sizes.written.at_most(rows),
            training=True,
            generations=learner.passes.generations,
        )
    if learner.passes.teacher_reads and teacher is not None:
        found["teacher"] = room.read(teacher, sizes.scored.at_most(rows), training=True)
    if learner.passes.student_reads + learner.passes.copy_reads:
        found["student"] = room.read(learner.shape, sizes.reread.at_most(rows), training=True)
    found["update"] = room.update()
    if learner.passes.kept and teacher is not None:
        kept = _features(teacher, replace(sizes.scored, rows=rows))
        for name in found.keys() & {"student", "update"}:
            found[name] = replace(found[name], activations=found[name].activations + kept)
        if not room.devices.teacher_apart:
            # Those of all passes are put together, and then in order.
            read = found["teacher"]
            activations = max(read.activations + kept, 3 * kept)
            found["teacher"] = replace(read, activations=activations)
    evaluations = [room.write(learner.shape, sizes.evaluated)]
    if returns and teacher is not None:
        evaluations.append(room.read(teacher, sizes.scored))
    found["evaluation"] = max(evaluations, key=lambda memory: memory.total)
    return found


def _chunk(
    shape: ModelShape, size: Size, *, budget: int = CHUNK_BYTES, buffers: int = _NUM_BUFFERS
) -> int:
    """Logits of the tokens that pass the output head at once, which are `budget` bytes."""
    row = 4 * len(shape.head)
    tokens = min(max(1, budget // row), size.rows * size.num_tokens)
    return buffers * row * tokens


def _features(shape: ModelShape, size: Size) -> int:
    itemsize: int = shape.model.dtype.itemsize
    return size.rows * size.num_tokens * shape.head.shape[1] * itemsize
