"""What a run will do, and what it takes, before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from brim.errors import BrimError, DataError, ModelError, first_line
from brim.models.settings import Quantization
from brim.objectives.method import Passes
from brim.plan.flops import (
    ByPhase,
    generate_operations,
    read_operations,
    step_operations,
    step_traffic,
)
from brim.plan.hours import Measured
from brim.plan.memory import Devices, Learner, Memory, Room, Sizes, phases
from brim.plan.models import ModelShape, Size, student_shape, teacher_shapes
from brim.plan.warnings import (
    UNLIMITED_PROMPT_TOKENS,
    device_warnings,
    position_warnings,
    served_warnings,
    settings_warnings,
)
from brim.support.printing import Printed
from brim.tasks import AnyTask, ReadTask, WordProblems
from brim.training.optimizer import (
    check_checkpointing,
    check_trainable,
    count_steps,
)
from brim.training.predictions import BLOCK
from brim.training.settings import RunConfig

GIB = 2**30


@dataclass(frozen=True)
class ModelPlan:
    """One of the two models.

    Attributes:
        num_parameters: shared ones counted once, adapters apart.
        num_trainable: parameters that training changes; of a teacher that is not trained, none.
        weight_bytes: in memory.
        stored: the type of the weights, or how they are quantized.
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
        memory: the peak of each phase, on one device.
        num_examples: training examples, at most.
        num_completions: that all steps together learn from, or that are written.
        max_tokens: of these with their prompts, at most.
        total_operations: of all steps, of one device; evaluations are left out.
        passes: of a step through the models; None, like all below, where nothing is trained.
        num_steps: steps of the trainer.
        operations: of one step, of one device.
        checkpoint_bytes: of one checkpoint.
        kept_bytes: of the checkpoints that stay, and the best model.
        traffic: bytes that a device sends in one step.
        seconds: of one step, where it was measured.
    """

    name: str
    does: str
    memory: dict[str, Memory]
    num_examples: int | None
    num_completions: int | None
    max_tokens: int | None
    total_operations: int | None
    passes: Passes | None = None
    num_steps: int | None = None
    operations: ByPhase | None = None
    checkpoint_bytes: int = 0
    kept_bytes: int = 0
    traffic: ByPhase | None = None
    seconds: float | None = None


@dataclass(frozen=True, repr=False)
class Plan(Printed):
    """A run on paper; its stages are in the order of the run.

    Attributes:
        text: as `brim plan` prints it; "" of `brim.plan.plan`.
        reads: what the teacher reads of the student's writing, its tokens or the text. How many
            tokens of either a segment has is logged in training; here a text counts as many for
            both.
        measured: where its time goes, if that was measured.
    """

    models: tuple[ModelPlan, ...]
    stages: tuple[StagePlan, ...]
    warnings: tuple[str, ...]
    devices: int = 1
    reads: str = "tokens"
    measured: Measured | None = None
    text: str = ""

    @property
    def peak_bytes(self) -> int:
        """The most memory of any phase, on one device."""
        return max(memory.total for stage in self.stages for memory in stage.memory.values())

    @property
    def kept_bytes(self) -> int:
        """What all stages leave on the disk."""
        return sum(stage.kept_bytes for stage in self.stages)


def plan(config: RunConfig, *, devices: int = 1, memory_limit: float | None = None) -> Plan:
    """Count a run on so many devices without weights or network; of data, rows of local files.

    A phase that needs more than the `memory_limit` of a device, in GiB, is warned of.

    Raises:
        ModelError: the shapes of a model are not known without downloading it, or its code cannot
            be counted.
        ConfigError: settings and models that do not go together; `brim train` refuses them too.
    """
    planner = Planner(config, devices)
    teacher, student = planner.teacher, planner.student
    try:
        stages = tuple(planner.stages())
    except BrimError:
        raise
    except Exception as error:  # of the code of any kind of model
        names = " or ".join(dict.fromkeys(shape.name for shape in (teacher, student) if shape))
        raise ModelError(
            f"{names}: what it takes cannot be counted ({type(error).__name__}: "
            f"{first_line(error)}); brim train needs no plan"
        ) from error
    trained = config.teacher.train is not None
    models = [_model("teacher", shape, trained=trained) for shape in planner.teachers]
    models.append(_model("student", student, trained=True))
    warnings = [
        *served_warnings(config),
        *settings_warnings(config, planner.num_examples),
        *device_warnings(config, devices),
        *(w for s in (*planner.teachers, student) for w in position_warnings(s, planner.size(1))),
        *(
            f"{stage.name}: {phase} needs {memory.total / GIB:.1f} GiB, more than {memory_limit:g}"
            for stage in stages
            for phase, memory in stage.memory.items()
            if memory_limit is not None and memory.total > memory_limit * GIB
        ),
    ]
    return Plan(tuple(models), stages, tuple(warnings), devices, config.teacher.reads)


class Planner:
    """The stages of `brim.runs.stages`, counted."""

    def __init__(self, config: RunConfig, devices: int) -> None:
        config.check_processes(devices)
        self.config = config
        self.devices = Devices(
            devices,
            student=config.trainer.sharding,
            teacher=config.teacher.sharding,
            teacher_apart=config.teacher.device is not None,
        )
        self.loops = {name: (loop, optim) for name, _, loop, optim in config.stages()}
        self.teachers = teacher_shapes(config)
        # Passes are sized by the largest; all of them are there.
        self.teacher = max(self.teachers, key=lambda shape: shape.weight_bytes, default=None)
        self._others = sum(s.weight_bytes for s in self.teachers if s is not self.teacher)
        config.check_quantized(self._bits, None)
        self.student = student_shape(config, self.teacher)
        self._check_models()
        self.num_examples = count_examples(config.task)
        self.num_prompt_tokens = config.decoding.max_prompt_tokens or UNLIMITED_PROMPT_TOKENS
        self.row_tokens = self.num_prompt_tokens + config.decoding.max_tokens
        bfloat16 = config.trainer.precision == "bfloat16"
        self.autocast = torch.bfloat16 if bfloat16 else None

    @property
    def _bits(self) -> Quantization | None:
        """How the teacher's weights are quantized."""
        return None if self.teacher is None else self.teacher.quantization

    def _check_models(self) -> None:
        """Refuse what `brim.runs.inputs` refuses when it has the models."""
        config = self.config
        config.check_quantized(self._bits, self.student.quantization)
        check_trainable(self.student.model, "student")
        if self.teacher is not None and config.teacher.train is not None:
            check_trainable(self.teacher.model, "teacher")
        check_checkpointing(config, self.teacher and self.teacher.model, self.student.model)

    def size(self, rows: int) -> Size:
        """So many prompts and completions, all as long as they may be."""
        return Size(rows, self.num_prompt_tokens, self.config.decoding.max_tokens)

    def fitting(self, tokens: int) -> Size:
        """As many as a budget of tokens holds; one that is longer is alone."""
        return self.size(max(1, tokens // self.row_tokens))

    @property
    def evaluated(self) -> Size:
        """Rows that are written at once in an evaluation, and for teacher outputs."""
        settings, limit = self.config.evaluation, self.config.decoding.max_tokens
        beams = settings.decoding.build(limit, settings.batch_tokens).texts_per_row
        return self.fitting(settings.batch_tokens).at_most(BLOCK * beams)

    def stages(self) -> Iterator[StagePlan]:
        """What the run does, in order."""
        config, teacher, student = self.config, self.teacher, self.student
        loaded = 0 if config.student.keep_layers else student.stored_bytes
        if teacher is not None and config.teacher.train:
            does = f"trains {teacher.name} on the data's targets"
            room = self._room("teacher", teacher, None, Passes(), beside=loaded)
            yield self._training("teacher", does, room)
        quantization = config.teacher.quantization
        if teacher is not None and quantization is not None and quantization.drift_examples:
            yield self._drift(teacher, quantization.drift_examples, loaded)
        learns_outputs = config.student.predistill or config.objective.needed_targets == "teacher"
        if teacher is not None and learns_outputs:
            yield self._teacher_outputs(teacher, loaded)
        if config.student.predistill:
            does = f"trains {student.name} on the teacher's outputs"
            room = self._room("predistill", student, teacher, Passes())
            yield self._training("predistill", does, room)
        passes = config.objective.passes()
        room = self._room(config.objective.name, student, teacher, passes)
        yield self._training(config.objective.name, passes.in_words(), room)

    def _room(
        self,
        name: str,
        shape: ModelShape,
        teacher: ModelShape | None,
        passes: Passes,
        *,
        beside: int = 0,
    ) -> Room:
        loop, optim = self.loops[name]
        rows = self.devices.share(loop.rollout_batch_size) * passes.generations
        learner = Learner(
            shape,
            passes,
            loop.dropout,
            self.fitting(loop.micro_batch_tokens).at_most(-(-rows // passes.minibatches)),
            checkpointing=loop.gradient_checkpointing,
            moments_8bit=optim.optimizer == "adamw_8bit",
        )
        devices = replace(self.devices, student=loop.sharding)
        return Room(learner, teacher, beside + self._others, self.autocast, devices)

    def _training(self, name: str, does: str, room: Room) -> StagePlan:
        config, (loop, _) = self.config, self.loops[name]
        learner, teacher = room.learner, room.teacher
        assert learner is not None
        passes = learner.passes
        rows = self.devices.share(loop.rollout_batch_size) * passes.generations
        sizes = Sizes(
            written=self.fitting(config.decoding.batch_tokens),
            scored=self.fitting(config.teacher.batch_tokens),
            reread=self.fitting(loop.micro_batch_tokens),
            evaluated=self.evaluated,
        )
        operations = self._operations(learner, teacher, self.size(rows))
        steps, saved = None, loop.keep_checkpoints
        if loop.max_steps is not None or self.num_examples is not None:
            steps = count_steps(loop, self.num_examples or 0)
            saved = min(saved, -(-steps // loop.save_every))
        completions = _times(steps, loop.rollout_batch_size * passes.generations)
        return StagePlan(
            name=name,
            does=does,
            passes=passes,
            num_examples=self.num_examples,
            num_steps=steps,
            num_completions=completions,
            max_tokens=_times(completions, self.row_tokens),
            memory=phases(room, rows, sizes, returns=config.evaluation.returns),
            operations=operations,
            total_operations=_times(steps, operations.total),
            checkpoint_bytes=learner.checkpoint,
            kept_bytes=saved * learner.checkpoint + learner.shape.stored_bytes,
            traffic=step_traffic(learner, teacher, room.devices, rows, sizes),
        )

    @property
    def _share(self) -> float:
        """Of the rows that each teacher reads: all for an average, else as many as any other."""
        routed = getattr(self.config.task, "teacher_column", None) is not None
        return 1 / len(self.teachers) if routed else 1.0

    def _operations(self, learner: Learner, teacher: ModelShape | None, size: Size) -> ByPhase:
        """Of one step, in which each of the teachers reads its share."""
        alone = step_operations(learner, None, size)
        if teacher is None:
            return alone
        found = [step_operations(learner, shape, size) for shape in self.teachers]
        return ByPhase(
            **{
                phase: own + round(self._share * sum(getattr(one, phase) - own for one in found))
                for phase, own in vars(alone).items()
            }
        )

    def _teacher_outputs(self, teacher: ModelShape, beside: int) -> StagePlan:
        count = self.num_examples
        room = Room(None, teacher, beside + self._others, None, self.devices)
        total = None
        if count is not None:
            each = self.size(self.devices.share(count))
            written = [generate_operations(shape, each) for shape in self.teachers]
            total = round(sum(written) * self._share)
        return StagePlan(
            name="teacher_outputs",
            does=f"{teacher.name} writes one completion a training prompt",
            num_examples=count,
            num_completions=count,
            max_tokens=_times(count, self.row_tokens),
            memory={"rollout": room.write(teacher, self.evaluated)},
            total_operations=total,
        )

    def _drift(self, teacher: ModelShape, num_examples: int, beside: int) -> StagePlan:
        """The quantized teacher and the one that it was made of read some targets."""
        full = replace(teacher, quantization=None)
        room = Room(None, teacher, beside + full.weight_bytes, None)
        size = self.fitting(self.config.teacher.batch_tokens).at_most(num_examples)
        return StagePlan(
            name="drift",
            does=f"{teacher.name}, quantized and as it was, read some targets",
            num_examples=num_examples,
            num_completions=num_examples,
            max_tokens=num_examples * self.row_tokens,
            memory={"teacher": room.read(full, size)},
            total_operations=2 * read_operations(full, self.size(num_examples)),
        )


def _times(count: int | None, each: int) -> int | None:
    return None if count is None else count * each


@lru_cache(maxsize=8)
def count_examples(task: AnyTask) -> int | None:
    """Training examples, at most; None if only data that is not here could tell."""
    if isinstance(task, ReadTask):
        with suppress(DataError):  # which brim data shows, and brim train says
            if (count := task.count("train")) is not None:
                return count
    if task.max_train_examples is not None or isinstance(task, ReadTask):
        return task.max_train_examples
    if isinstance(task, WordProblems):  # it would take seconds to write them
        return task.num_train
    return len(task.load("train"))


def _model(role: str, shape: ModelShape, *, trained: bool) -> ModelPlan:
    types = {str(p.dtype).removeprefix("torch.") for p in shape.model.parameters()}
    return ModelPlan(
        role=role,
        name=shape.name,
        num_parameters=shape.num_parameters,
        num_adapters=shape.num_adapters,
        num_trainable=shape.num_trainable if trained else 0,
        weight_bytes=shape.weight_bytes,
        stored=str(shape.quantization or " and ".join(sorted(types))),
    )
