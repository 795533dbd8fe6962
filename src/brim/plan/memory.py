"""Bytes that each phase of a stage holds at its peak; docs/plan.md says what is counted."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import torch

from brim.models.head import CHUNK_BYTES
from brim.models.pairs import BUFFERS, PAIR_BYTES
from brim.plan.passes import Passes
from brim.plan.peaks import peak_bytes
from brim.plan.shapes import ModelShape, Size

# Of a chunk's float32 logits, and of those of the rows that write: the logits and what is made of
# them.
_NUM_BUFFERS = 3


@dataclass(frozen=True)
class Memory:
    """Of one phase, in bytes.

    Attributes:
        weights: of the models that the stage works with.
        gradients: of the trained parameters.
        optimizer: both moments of AdamW.
        activations: what a pass holds beside weights; for an update, what the backward pass needs.
        cache: keys and values of the rows that are written at once.
        head: logits of a chunk of tokens, or of one token of each row that is written, and, while
            weights are trained, the head's new gradient.
    """

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    cache: int = 0
    head: int = 0

    @property
    def total(self) -> int:
        """Of all of it."""
        return sum(asdict(self).values())


@dataclass(frozen=True)
class Learner:
    """The model that a stage trains.

    Attributes:
        shape: the model.
        passes: what its objective asks for.
        dropout: in training; None for what the model's config says.
        micro_batch: rows of one forward and backward pass.
    """

    shape: ModelShape
    passes: Passes
    dropout: float | None
    micro_batch: Size

    @property
    def weights(self) -> int:
        """With its copies, and the critic if there is one."""
        copies = 1 + self.passes.copies + (self.passes.critic == "separate")
        return copies * self.shape.weight_bytes + self._value_head

    @property
    def gradients(self) -> int:
        """Also of the critic, whose output head is not trained if it is its own."""
        trained = self.shape.trainable_bytes
        if self.passes.critic == "separate":
            head, embedding = self.shape.head, self.shape.model.get_input_embeddings().weight
            own = head.requires_grad and head is not embedding
            trained = 2 * trained - (head.nbytes if own else 0)
        return trained + self._value_head

    @property
    def optimizer(self) -> int:
        """Both moments of each trained parameter."""
        return 2 * self.gradients

    @property
    def checkpoint(self) -> int:
        """Of one checkpoint: weights, moments, the critic, an older writer."""
        copies = 1 + self.passes.writers + (self.passes.critic == "separate")
        return copies * self.shape.weight_bytes + self._value_head + self.optimizer

    @property
    def _value_head(self) -> int:
        return 4 * (self.shape.head.shape[1] + 1) if self.passes.critic else 0


@dataclass(frozen=True)
class Room:
    """Where the phases of a stage take place.

    Attributes:
        learner: the model that is trained; None where nothing is.
        teacher: the model that is asked, if it is asked.
        beside: bytes of models that are there and have no part in this.
        autocast: the type of matrix products in training steps; evaluations have none.
    """

    learner: Learner | None
    teacher: ModelShape | None
    beside: int
    autocast: torch.dtype | None

    @property
    def base(self) -> Memory:
        """What is held in every phase, once the first step is done."""
        weights = self.beside + (self.teacher.weight_bytes if self.teacher else 0)
        if self.learner is None:
            return Memory(weights=weights)
        weights += self.learner.weights
        return Memory(weights=weights, optimizer=self.learner.optimizer)

    def write(self, shape: ModelShape, size: Size, *, training: bool = False) -> Memory:
        """`shape` writes; `training` if that is part of a step."""
        autocast = self.autocast if training else None
        first = replace(size, num_tokens=1)
        itemsize = None if autocast is None else autocast.itemsize
        return replace(
            self.base,
            activations=peak_bytes(shape, first, autocast=autocast) + _casts(shape, autocast),
            cache=shape.cache_bytes(size, itemsize=itemsize),
            head=_NUM_BUFFERS * 4 * size.rows * len(shape.head),
        )

    def read(self, shape: ModelShape, size: Size, *, training: bool = False) -> Memory:
        """`shape` reads what was written, without gradient."""
        autocast = self.autocast if training else None
        return replace(
            self.base,
            activations=peak_bytes(shape, size, autocast=autocast) + _casts(shape, autocast),
            head=_chunk(shape, size),
        )

    def update(self) -> Memory:
        """Forward and backward passes of a micro-batch, gradients of earlier ones added up."""
        learner = self.learner
        assert learner is not None
        shape, size = learner.shape, learner.micro_batch
        activations = peak_bytes(
            shape, size, gradient=True, dropout=learner.dropout, autocast=self.autocast
        )
        activations *= 2 if learner.passes.critic == "separate" else 1
        head = _chunk(shape, size)
        if learner.passes.compared and self.teacher is not None:
            # The teacher reads first; its features stay.
            read = peak_bytes(self.teacher, size, autocast=self.autocast)
            activations = max(activations, read) + _features(self.teacher, size)
            head = _chunk(shape, size, budget=PAIR_BYTES // BUFFERS, buffers=BUFFERS)
        head += 4 * shape.head.numel() * shape.head.requires_grad
        return replace(self.base, gradients=learner.gradients, activations=activations, head=head)


def phases(room: Room, rollout: Size, evaluation: Size, *, returns: bool) -> dict[str, Memory]:
    """The peak of each phase of a training stage.

    Args:
        room: the stage.
        rollout: rows that are written, and read by the teacher, at once in a step.
        evaluation: the same in an evaluation.
        returns: whether evaluations ask the teacher.
    """
    learner, teacher = room.learner, room.teacher
    assert learner is not None
    found: dict[str, Memory] = {}
    if learner.passes.written:
        found["rollout"] = room.write(learner.shape, rollout, training=True)
    if learner.passes.teacher_reads and teacher is not None:
        found["teacher"] = room.read(teacher, rollout, training=True)
    if learner.passes.student_reads + learner.passes.copy_reads:
        found["student"] = room.read(learner.shape, rollout, training=True)
    found["update"] = room.update()
    evaluations = [room.write(learner.shape, evaluation)]
    if returns and teacher is not None:
        evaluations.append(room.read(teacher, evaluation))
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


def _casts(shape: ModelShape, autocast: torch.dtype | None) -> int:
    """Autocast keeps its copies of weights that are trained until the rollout is judged."""
    if autocast is None:
        return 0
    trained = shape.products(trainable=True)
    return autocast.itemsize * (trained.encoder + trained.cross + trained.decoder)
