"""What a run will do, and what it takes, before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import torch

from brim.errors import BrimError, ModelError, first_line
from brim.plan.flops import generate_operations, read_operations, step_operations, step_traffic
from brim.plan.memory import Devices, Learner, Room, Sizes, phases
from brim.plan.models import ModelShape, Size
from brim.plan.passes import Passes, passes_of
from brim.plan.sources import student_shape, teacher_shape
from brim.plan.types import GIB, ModelPlan, Plan, StagePlan
from brim.tasks import FilesConfig, PublishedSettings, TaskConfig, WordProblemsConfig
from brim.training.optimizer import check_trainable, count_steps, learning_rate
from brim.training.predictions import BLOCK
from brim.training.settings import LoopConfig, OptimConfig, RunConfig


def plan(
    config: RunConfig,
    *,
    devices: int = 1,
    memory_limit: float | None = None,
    tflops: float | None = None,
    bandwidth: float | None = None,
) -> Plan:
    """Count a run without weights, data or network.

    Args:
        config: the run's settings.
        devices: a process each, over which the run is shared out.
        memory_limit: of a device in GiB; a phase that needs more is warned of.
        tflops: what a device computes, in 10^12 operations a second; None to leave seconds out.
        bandwidth: what it sends, in 10^9 bytes a second; None to leave seconds out.

    Raises:
        ModelError: the shapes of a model are not known without downloading it, or its code cannot
            be counted.
        ConfigError: a model's description cannot be used.
    """
    planner = Planner(config, devices)
    try:
        stages = tuple(stage.timed(tflops, bandwidth) for stage in planner.stages())
    except BrimError:
        raise
    except Exception as error:  # of the code of any kind of model
        names = " or ".join(dict.fromkeys((planner.teacher.name, planner.student.name)))
        raise ModelError(
            f"{names}: what it takes cannot be counted ({type(error).__name__}: "
            f"{first_line(error)}); brim train needs no plan"
        ) from error
    models = (
        _model("teacher", planner.teacher, trained=config.teacher.train is not None),
        _model("student", planner.student, trained=True),
    )
    warnings = [
        *settings_warnings(config, planner.num_examples),
        *device_warnings(config, devices),
        *(
            w
            for shape in (planner.teacher, planner.student)
            for w in position_warnings(shape, planner.size(1))
        ),
        *(
            f"{stage.name}: {phase} needs {memory.total / GIB:.1f} GiB, more than {memory_limit:g}"
            for stage in stages
            for phase, memory in stage.memory.items()
            if memory_limit is not None and memory.total > memory_limit * GIB
        ),
    ]
    return Plan(models, stages, tuple(warnings), devices)


class Planner:
    """The stages of `brim.runs.stages`, counted."""

    def __init__(self, config: RunConfig, devices: int) -> None:
        self.config = config
        self.devices = Devices(
            devices,
            student=config.trainer.sharding,
            teacher=config.teacher.sharding,
            teacher_apart=config.teacher.device is not None,
        )
        self.teacher = teacher_shape(config)
        config.check_quantized(self.teacher.quantization, None)
        self.student = student_shape(config, self.teacher)
        config.check_quantized(self.teacher.quantization, self.student.quantization)
        check_trainable(self.student.model, "student")
        if config.teacher.train is not None:
            check_trainable(self.teacher.model, "teacher")
        self.num_examples = count_examples(config.task)
        self.num_prompt_tokens = config.decoding.max_prompt_tokens or UNLIMITED_PROMPT_TOKENS
        bfloat16 = config.trainer.precision == "bfloat16"
        self.autocast = torch.bfloat16 if bfloat16 else None

    def size(self, rows: int) -> Size:
        """So many prompts and completions, all as long as they may be."""
        return Size(rows, self.num_prompt_tokens, self.config.decoding.max_tokens)

    def fitting(self, tokens: int) -> Size:
        """As many as a budget of tokens holds; one that is longer is alone."""
        return self.size(max(1, tokens // self._row_tokens))

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
        if config.teacher.train:
            yield self._training(
                "teacher",
                f"trains {teacher.name} on the data's targets",
                teacher,
                asked=None,
                settings=config.teacher.train.trainer,
                optim=config.teacher.train.optim,
                passes=Passes(),
                beside=loaded,
            )
        if config.teacher.quantization is not None and config.teacher.quantization.drift_examples:
            yield self._drift(config.teacher.quantization.drift_examples, loaded)
        if config.student.predistill or config.objective.needed_targets == "teacher":
            yield self._teacher_outputs(loaded)
        if config.student.predistill:
            yield self._training(
                "predistill",
                f"trains {student.name} on the teacher's outputs",
                student,
                asked=teacher,
                settings=config.student.predistill.trainer,
                optim=config.student.predistill.optim,
                passes=Passes(),
                beside=0,
            )
        passes = passes_of(config.objective)
        yield self._training(
            config.objective.name,
            describe_passes(passes),
            student,
            asked=teacher,
            settings=config.trainer,
            optim=config.optim,
            passes=passes,
            beside=0,
        )

    def _training(
        self,
        name: str,
        does: str,
        learner: ModelShape,
        *,
        asked: ModelShape | None,
        settings: LoopConfig,
        optim: OptimConfig,
        passes: Passes,
        beside: int,
    ) -> StagePlan:
        config, devices = self.config, replace(self.devices, student=settings.sharding)
        all_rows = settings.rollout_batch_size * passes.generations
        rows = devices.share(settings.rollout_batch_size) * passes.generations
        micro_batch = self.fitting(settings.micro_batch_tokens)
        trained = Learner(
            learner,
            passes,
            settings.dropout,
            micro_batch.at_most(-(-rows // passes.minibatches)),
            checkpointing=settings.gradient_checkpointing,
            moments_8bit=optim.optimizer == "adamw_8bit",
        )
        sizes = Sizes(
            written=self.fitting(config.decoding.batch_tokens),
            judged=self.fitting(config.teacher.batch_tokens),
            reread=micro_batch,
            evaluated=self.evaluated,
        )
        room = Room(trained, asked, beside, self.autocast, devices)
        memory = phases(room, rows, sizes, returns=config.evaluation.returns)
        operations = step_operations(
            passes, learner, asked, self.size(rows), checkpointing=trained.checkpointing
        )
        known = settings.max_steps is not None or self.num_examples is not None
        steps = count_steps(settings, self.num_examples or 0) if known else None
        saved = settings.keep_checkpoints
        if steps is not None:
            saved = min(saved, -(-steps // settings.save_every))
        return StagePlan(
            name=name,
            does=does,
            passes=passes,
            num_examples=self.num_examples,
            num_steps=steps,
            num_completions=None if steps is None else steps * all_rows,
            max_tokens=None if steps is None else steps * all_rows * self._row_tokens,
            memory=memory,
            operations=operations,
            total_operations=None if steps is None else steps * operations.total,
            checkpoint_bytes=trained.checkpoint,
            kept_bytes=saved * trained.checkpoint + learner.stored_bytes,
            traffic=step_traffic(trained, asked, devices, rows, sizes),
        )

    def _teacher_outputs(self, beside: int) -> StagePlan:
        teacher, count = self.teacher, self.num_examples
        room = Room(None, teacher, beside, None, self.devices)
        total = None
        if count is not None:
            total = generate_operations(teacher, self.size(self.devices.share(count)))
        return StagePlan(
            name="teacher_outputs",
            does=f"{teacher.name} writes one completion a training prompt",
            passes=None,
            num_examples=count,
            num_steps=None,
            num_completions=count,
            max_tokens=None if count is None else count * self._row_tokens,
            memory={"rollout": room.write(teacher, self.evaluated)},
            operations=None,
            total_operations=total,
        )

    def _drift(self, num_examples: int, beside: int) -> StagePlan:
        """The quantised teacher and the one that it was made of read some targets."""
        full = replace(self.teacher, quantization=None)
        room = Room(None, self.teacher, beside + full.weight_bytes, None)
        size = self.fitting(self.config.teacher.batch_tokens).at_most(num_examples)
        return StagePlan(
            name="drift",
            does=f"{self.teacher.name}, quantised and as it was, read some targets",
            passes=None,
            num_examples=num_examples,
            num_steps=None,
            num_completions=num_examples,
            max_tokens=num_examples * self._row_tokens,
            memory={"teacher": room.read(full, size)},
            operations=None,
            total_operations=2 * read_operations(full, self.size(num_examples)),
        )

    @property
    def _row_tokens(self) -> int:
        return self.num_prompt_tokens + self.config.decoding.max_tokens


@lru_cache(maxsize=8)
def count_examples(task: TaskConfig) -> int | None:
    """Training examples, at most; None if only the user's data could tell."""
    if task.max_train_examples is not None or isinstance(task, FilesConfig | PublishedSettings):
        return task.max_train_examples
    if isinstance(task, WordProblemsConfig):  # it would take seconds to write them
        return task.num_train
    return len(task.build().load("train"))


def describe_passes(passes: Passes) -> str:
    """What a step does, in a few words."""
    parts = []
    if passes.written:
        share = "" if passes.written == 1 else f" {passes.written:.0%} of the text"
        parts.append(f"student writes{share}")
    if passes.teacher_reads + passes.compared:
        parts.append("teacher reads" + _times(passes.teacher_reads + passes.compared))
    if passes.student_reads:
        parts.append("student reads" + _times(passes.student_reads))
    if passes.copy_reads:
        parts.append("a copy of its start reads")
    parts.append("student learns" + _times(passes.updates))
    return ", ".join(parts)


def _times(count: int) -> str:
    return "" if count == 1 else f" {count} times"


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


# Tokens of a prompt where the recipe sets no limit.
UNLIMITED_PROMPT_TOKENS = 512


def settings_warnings(config: RunConfig, num_examples: int | None) -> Iterator[str]:
    """Of limits, of K and of warm-ups.

    Args:
        config: the run's settings.
        num_examples: of the training split; None if not known.
    """
    if config.decoding.max_prompt_tokens is None:
        yield (
            "decoding.max_prompt_tokens is not set: prompts are counted as "
            f"{UNLIMITED_PROMPT_TOKENS} tokens"
        )
    if num_examples is None:
        yield (
            "the number of training examples is not known: set task.max_train_examples to count "
            "what depends on it"
        )
    k, limit = getattr(config.objective, "k", 1), config.decoding.max_tokens
    if isinstance(k, int) and k > limit:
        yield f"objective.k is {k}, and completions have at most {limit} tokens: no block is full"
    for name, keys, loop, optim in training_stages(config):
        if loop.max_steps is not None or num_examples is not None:
            yield from _warmup_warnings(name, keys, count_steps(loop, num_examples or 0), optim)


def _warmup_warnings(name: str, keys: str, steps: int, optim: OptimConfig) -> Iterator[str]:
    """Of a warm-up that leaves less than a tenth of the steps at the full learning rate."""
    warmup = optim.warmup_steps
    if warmup == 0 or 10 * (steps - warmup + 1) >= steps:
        return
    longer = "longer than" if warmup > steps else "nearly all of"
    reached = learning_rate(optim, min(warmup, steps) - 1, steps)
    of = ", less than half of" if 2 * reached < optim.lr else " of"
    yield (
        f"{name}: the warm-up of {warmup:,} steps is {longer} the stage's {steps:,}: the learning "
        f"rate reaches {reached:.2g}{of} {optim.lr:.2g}; lower {keys}optim.warmup_steps, to "
        f"{steps // 10:,} for a tenth of the steps"
    )


def device_warnings(config: RunConfig, devices: int) -> Iterator[str]:
    """Of devices with nothing to do."""
    for name, _, loop, _ in training_stages(config):
        if loop.rollout_batch_size % devices:
            yield (
                f"{name}: {loop.rollout_batch_size:,} prompts a step cannot be shared out evenly "
                f"over {devices:,} devices: some wait for the others"
            )


def training_stages(config: RunConfig) -> Iterator[tuple[str, str, LoopConfig, OptimConfig]]:
    """The stages in which a model is trained: name, place in the settings, loop and optimizer."""
    train, predistill = config.teacher.train, config.student.predistill
    if train is not None:
        yield "teacher", "teacher.train.", train.trainer, train.optim
    if predistill is not None:
        yield "predistill", "student.predistill.", predistill.trainer, predistill.optim
    yield config.objective.name, "", config.trainer, config.optim


def position_warnings(shape: ModelShape, size: Size) -> Iterator[str]:
    """Of sequences longer than the positions that a model was made for."""
    prompt, length = size.num_prompt_tokens, size.num_tokens
    # The last token is predicted and not read; an encoder reads the prompt alone.
    longest = max(prompt, length) if shape.is_encoder_decoder else prompt + length - 1
    if shape.max_positions is not None and longest > shape.max_positions:
        yield (
            f"{shape.name}: sequences of up to {longest:,} tokens are more than its "
            f"{shape.max_positions:,} positions: lower decoding.max_prompt_tokens or "
            "decoding.max_tokens"
        )
