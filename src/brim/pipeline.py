"""The stages of a run: teacher → teacher outputs → pre-distillation → the objective.

Each stage is resumable and is skipped when its inputs are unchanged.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from brim.errors import ConfigError, RunError
from brim.evaluation import Advance, Evaluation, evaluate
from brim.metrics import get_metric
from brim.models import (
    LanguageModel,
    build_model,
    check_same_tokenizer,
    keep_layers,
    load_model,
    train_tokenizer,
)
from brim.objectives import Objective, SeqKD
from brim.progress import Reporter
from brim.rundir import read_manifest, update_manifest
from brim.seeding import derive_seed
from brim.settings import (
    LoopConfig,
    OptimConfig,
    RunConfig,
    StudentConfig,
    SupervisedConfig,
    TeacherConfig,
)
from brim.stages import (
    CompletedExamples,
    Stage,
    fingerprint_model,
    write_completions,
)
from brim.tasks import Task, describe
from brim.tracking import Tracker
from brim.trainer import Hooks, Trainer, count_steps
from brim.types import Example


@dataclass
class Pipeline:
    """The stages of one run; each property is made when first needed and kept."""

    config: RunConfig
    out: Path
    stages_dir: Path
    accelerator: Accelerator
    reporter: Reporter
    inputs: dict[str, str] = field(default_factory=dict)

    # -- data and models --------------------------------------------------------------------

    @cached_property
    def task(self) -> Task:
        """Data and metrics."""
        return self.config.task.build(
            cache_dir=self.out / "data", on_progress=self.reporter.progress
        )

    @cached_property
    def train_examples(self) -> Sequence[Example]:
        """The training split."""
        return self.task.load("train")

    @cached_property
    def validation_examples(self) -> Sequence[Example]:
        """What is decoded at each evaluation during training."""
        limit = self.config.evaluation.max_validation_examples
        return self.task.load("validation")[:limit]

    @cached_property
    def test_examples(self) -> Sequence[Example]:
        """What the best checkpoint is tested on."""
        return self.task.load("test")

    @cached_property
    def metric(self) -> str:
        """The score that picks the best checkpoint of the objective."""
        return self.config.evaluation.metric or self.supervised_metric

    @cached_property
    def supervised_metric(self) -> str:
        """The score that picks the teacher and the pre-distilled student: the task's first one."""
        answered = all(example.references for example in self.validation_examples)
        return self.task.metrics[0] if answered else "return"

    @cached_property
    def data(self) -> dict[str, Any]:
        """What is known of each split, for the provenance."""
        splits = {
            "train": self.train_examples,
            "validation": self.validation_examples,
            "test": self.test_examples,
        }
        return {name: describe(examples) for name, examples in splits.items()}

    def check(self) -> None:
        """Meet the mistakes that can be met before hours of work.

        Raises:
            BrimError: the settings, the data and the models do not go together, or the data is
                not what this run was begun with.
        """
        config, choices = self.config, (*self.task.metrics, "return", "expected_return")
        if self.metric not in choices:
            raise ConfigError(
                f"evaluation.metric: {self.metric} is not measured on this task; "
                f"choose one of {', '.join(choices)}"
            )
        if self.metric in self.task.metrics and self.supervised_metric == "return":
            raise ConfigError(
                f"evaluation.metric: {self.metric} needs targets in the validation split; "
                "give a target column, or choose return or expected_return"
            )
        wanted = {self.metric, self.supervised_metric}
        if wanted & {"return", "expected_return"} and not config.evaluation.returns:
            raise ConfigError(
                "evaluation.returns: must be true where a return picks the checkpoint, as it does "
                "by evaluation.metric and where the validation split has no targets"
            )
        if "expected_return" in wanted and not config.evaluation.expected_returns:
            raise ConfigError(
                "evaluation.metric: expected_return needs evaluation.expected_returns=true"
            )
        if config.teacher.train:
            for name, examples in (
                ("training", self.train_examples),
                ("validation", self.validation_examples),
            ):
                if not all(example.references for example in examples):
                    raise ConfigError(f"teacher.train: needs a target for each {name} example")
        data = self.data  # reads every split, the test split too
        if read_manifest(self.out).get("data", data) != data:
            raise RunError(
                f"{self.out}: the data is not what this run was begun with (see manifest.json); "
                "bring it back, or choose another --out"
            )
        for name in self.task.metrics:
            get_metric(name)
        if config.trainer.rollout_batch_size < self.accelerator.num_processes:
            raise ConfigError(
                f"trainer.rollout_batch_size: {config.trainer.rollout_batch_size} prompts are too "
                f"few for {self.accelerator.num_processes} processes; raise it"
            )
        if config.student.keep_layers is None:
            check_same_tokenizer(self.initial_teacher, self.initial_student)
        else:  # of the teacher before its training: whether there are so many
            keep_layers(self.initial_teacher, layers=config.student.keep_layers)

    @cached_property
    def initial_teacher(self) -> LanguageModel:
        """The teacher as loaded or built, before any training of it."""
        settings = self.config.teacher
        if settings.build is None:
            model = _load(settings)
        else:
            assert settings.tokenizer is not None
            tokenizer = train_tokenizer(
                _texts(self.train_examples),
                kind=settings.tokenizer.kind,
                vocab_size=settings.tokenizer.vocab_size,
            )
            model = self._build("teacher", settings.build, tokenizer)
        return self.place(model)

    @cached_property
    def initial_student(self) -> LanguageModel:
        """The student as loaded, built or cut from the teacher."""
        settings = self.config.student
        if settings.path is not None:
            model = _load(settings)
        elif settings.build is not None:
            model = self._build("student", settings.build, self.initial_teacher.tokenizer)
        else:
            assert settings.keep_layers is not None
            # From the trained teacher: its layers are what is worth keeping.
            source = self.initial_teacher if self.config.teacher.train is None else self.teacher
            model = keep_layers(source, layers=settings.keep_layers)
        return self.place(model)

    def _build(
        self, role: str, description: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
    ) -> LanguageModel:
        try:
            seed = derive_seed(self.config.seed, "build", role)
            return build_model(description, tokenizer, seed=seed)
        except ConfigError as error:
            raise ConfigError(f"{role}.build: {error}") from None

    def reload(self, directory: Path, role: TeacherConfig | StudentConfig) -> LanguageModel:
        """A model that this run wrote, as its role was first loaded."""
        model = load_model(directory, dtype=role.dtype, trust_remote_code=role.trust_remote_code)
        return self.place(model)

    def place(self, model: LanguageModel) -> LanguageModel:
        """The model on this process's device."""
        return model.to(self.accelerator.device)

    # -- stages -----------------------------------------------------------------------------

    @cached_property
    def teacher(self) -> LanguageModel:
        """The model whose logits are the Q-values, trained first if the recipe says so."""
        settings = self.config.teacher
        if settings.train is None:
            self.inputs["teacher"] = fingerprint_model(self.initial_teacher)
            model = self.initial_teacher
        else:
            model = self._supervised_stage(
                "teacher",
                settings.train,
                student=self.initial_teacher,
                teacher=None,
                examples=self.train_examples,
                inputs={"model": fingerprint_model(self.initial_teacher)},
            )
        return model.requires_grad_(False).eval()

    @cached_property
    def teacher_outputs(self) -> Sequence[Example]:
        """The training prompts with the teacher's greedy completions as their targets."""
        config, teacher = self.config, self.teacher
        decoding = config.decoding.greedy(config.evaluation.batch_size)
        stage = Stage.open(
            self.stages_dir,
            "teacher_outputs",
            {
                "teacher": self.inputs["teacher"],
                "data": self.data["train"]["sha256"],
                "max_prompt_tokens": config.decoding.max_prompt_tokens,
                "max_tokens": config.decoding.max_tokens,
            },
        )
        path = stage.directory / "train.jsonl"
        with stage.locked():
            if stage.finished:
                self.reporter.say("teacher outputs: unchanged, kept")
            else:
                with self.reporter.meter("teacher outputs", len(self.train_examples)) as meter:
                    write_completions(
                        teacher,
                        self.train_examples,
                        path,
                        decoding,
                        max_prompt_tokens=config.decoding.max_prompt_tokens,
                        meter=meter,
                    )
                stage.finish(num_examples=len(self.train_examples))
        self.inputs["teacher_outputs"] = stage.fingerprint
        return CompletedExamples(self.train_examples, path)

    @cached_property
    def student(self) -> LanguageModel:
        """The student that the objective starts from, pre-distilled if the recipe says so."""
        settings = self.config.student.predistill
        if settings is None:
            return self.initial_student
        outputs = self.teacher_outputs
        return self._supervised_stage(
            "predistill",
            settings,
            student=self.initial_student,
            teacher=self.teacher,
            examples=outputs,
            inputs={
                "model": fingerprint_model(self.initial_student),
                "outputs": self.inputs["teacher_outputs"],
            },
        )

    def _supervised_stage(
        self,
        name: str,
        settings: SupervisedConfig,
        *,
        student: LanguageModel,
        teacher: LanguageModel | None,
        examples: Sequence[Example],
        inputs: Mapping[str, Any],
    ) -> LanguageModel:
        config = self.config
        stage = Stage.open(
            self.stages_dir,
            name,
            {
                **inputs,
                "data": self.data["train"]["sha256"],
                "settings": settings.model_dump(mode="json"),
                "max_prompt_tokens": config.decoding.max_prompt_tokens,
                "max_tokens": config.decoding.max_tokens,
                "validation": self.data["validation"]["sha256"],
                "metric": self.supervised_metric,
                "precision": config.trainer.precision,
                "seed": config.seed,
            },
        )
        role = config.teacher if name == "teacher" else config.student
        with stage.locked():
            if stage.finished:
                self.reporter.say(f"{name}: unchanged, kept")
            else:
                self._train(
                    name,
                    stage.directory,
                    student=student,
                    teacher=teacher,
                    objective=SeqKD(config.decoding.build()),
                    examples=examples,
                    metric=self.supervised_metric,
                    optim=settings.optim,
                    loop=settings.trainer,
                )
                stage.finish()
        self.inputs[name] = stage.fingerprint
        return self.reload(stage.directory / "best", role)

    def run(self) -> None:
        """All the stages; the last one's best checkpoint is in `out/best`."""
        config = self.config
        objective = config.objective.build(config.decoding.build())
        student = self.student
        examples = self.train_examples if objective.needs_teacher else self.teacher_outputs
        update_manifest(
            self.out,
            {
                "stages_dir": os.path.relpath(self.stages_dir, self.out),
                "stages": dict(self.inputs),
                "data": self.data,
            },
        )
        self._train(
            "objective",  # whichever it is: methods share data order and the rollouts' seeds
            self.out,
            student=student,
            teacher=self.teacher,
            objective=objective,
            examples=examples,
            metric=self.metric,
            optim=config.optim,
            loop=config.trainer,
        )

    def _train(
        self,
        stage: str,
        directory: Path,
        *,
        student: LanguageModel,
        teacher: LanguageModel | None,
        objective: Objective,
        examples: Sequence[Example],
        metric: str,
        optim: OptimConfig,
        loop: LoopConfig,
    ) -> None:
        config = self.config
        label = config.objective.name if stage == "objective" else stage
        role = config.teacher if stage == "teacher" else config.student
        num_steps = count_steps(loop, len(examples))
        with (
            Tracker(
                directory,
                backends=config.tracking.backends if self.accelerator.is_main_process else (),
                run_name=directory.name,
                config=config.model_dump(mode="json"),
                project=config.tracking.project,
            ) as tracker,
            self.reporter.meter(label, num_steps) as meter,
        ):
            trainer = Trainer(
                student=student,
                teacher=teacher,
                objective=objective,
                examples=examples,
                evaluate=lambda model: self._validate(model, teacher),
                metric=metric,
                optim=optim,
                settings=loop,
                directory=directory,
                accelerator=self.accelerator,
                tracker=tracker,
                max_prompt_tokens=config.decoding.max_prompt_tokens,
                seed=derive_seed(config.seed, "train", stage),
                load=lambda path: self.reload(path, role),
                hooks=Hooks(
                    on_step=lambda step, metrics: meter.advance(
                        step - meter.done, f"loss {metrics['train/loss']:.4g}"
                    )
                ),
                num_samples=config.evaluation.num_samples,
            )
            with _stop_on_signals(trainer):
                trainer.train()
        self.accelerator.free_memory()

    def _validate(self, model: LanguageModel, teacher: LanguageModel | None) -> Evaluation:
        # Nobody reads the intervals of a learning curve.
        return self.evaluate(model, teacher, self.validation_examples, num_resamples=100)

    def evaluate(
        self,
        model: LanguageModel,
        teacher: LanguageModel | None,
        examples: Sequence[Example],
        *,
        num_resamples: int | None = None,
        advance: Advance = lambda rows: None,
    ) -> Evaluation:
        """Decode and score `examples` as the run's settings say."""
        settings, decoding = self.config.evaluation, self.config.decoding
        return evaluate(
            model,
            examples,
            decoding.greedy(settings.batch_size),
            self.task.metrics,
            teacher=teacher if settings.returns else None,
            sampling=decoding.build(batch_size=settings.batch_size)
            if settings.expected_returns
            else None,
            max_prompt_tokens=decoding.max_prompt_tokens,
            seed=self.config.seed,
            num_resamples=num_resamples or settings.num_resamples,
            confidence=settings.confidence,
            advance=advance,
        )


def _load(settings: TeacherConfig | StudentConfig) -> LanguageModel:
    assert settings.path is not None
    return load_model(
        settings.path,
        revision=settings.revision,
        dtype=settings.dtype,
        trust_remote_code=settings.trust_remote_code,
    )


def _texts(examples: Sequence[Example]) -> Iterator[str]:
    """The text that a tokenizer is trained on: prompts and targets."""
    for example in examples:
        yield example.prompt
        yield from example.references
        yield from (message["content"] for message in example.messages)


@contextmanager
def _stop_on_signals(trainer: Trainer) -> Iterator[None]:
    """SIGINT and SIGTERM ask the trainer to stop after its step; a second one stops at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def request(number: int, frame: object) -> None:
        if trainer.stop_requested:
            raise KeyboardInterrupt
        trainer.stop_requested = True

    old = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
