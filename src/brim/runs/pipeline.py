"""The stages of a run: teacher → teacher outputs → pre-distillation → the objective.

Each stage is resumable and is skipped when its inputs are unchanged.
"""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from brim.config.loading import load_config
from brim.errors import RunError
from brim.models import LanguageModel, add_adapters, share_vocabulary
from brim.objectives import Objective, SeqKD
from brim.runs.directory import RunDirectory
from brim.runs.inputs import Materials
from brim.runs.stages import (
    CompletedExamples,
    Stage,
    check_stage,
    describe_model,
    update_manifest,
    write_completions,
)
from brim.seeding import derive_seed
from brim.support.progress import Reporter
from brim.support.seals import MANIFEST
from brim.training.accelerator import make_accelerator
from brim.training.evaluation import Advance, Evaluation, evaluate
from brim.training.optimizer import count_steps
from brim.training.partial import PartialResults
from brim.training.predictions import EvaluationSettings
from brim.training.settings import LoopConfig, OptimConfig, RunConfig, SupervisedConfig
from brim.training.sharding import shard_teacher
from brim.training.tracking import Tracker
from brim.training.trainer import Hooks, Trainer
from brim.types import Example


@dataclass
class Pipeline(Materials):
    """The stages of one run.

    Attributes:
        stages_dir: where the stages' folders are.
        inputs: what each finished stage stands for in the hashes of later ones.
        loaded: fingerprints of the teacher and the student that were loaded and are not trained
            (the teacher) or not yet (the student).
        digests: SHA-256 of what each finished stage made; see `Stage.digest`.
        other_processes: go on with stages that another number of processes began.
    """

    stages_dir: Path
    inputs: dict[str, str] = field(default_factory=dict)
    loaded: dict[str, str] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    other_processes: bool = False

    @cached_property
    def teacher(self) -> LanguageModel:
        """The model whose logits are the Q-values, trained first if the recipe says so."""
        settings = self.config.teacher
        if settings.train is None:
            model = self.initial_teacher
            self.check_models()
            self.inputs["teacher"] = self.loaded["teacher"] = self.models["teacher"]["sha256"]
        else:
            initial = self.initial_teacher
            model = self._supervised_stage(
                "teacher",
                settings.train,
                student=initial,
                teacher=None,
                examples=self.train_examples,
                inputs={"model": self.models["teacher"]["sha256"]},
            )
            if self.config.student.keep_layers is None:
                share_vocabulary(model, self.loaded_student)
            self._forget("initial_teacher")
        return self.as_teacher(model)

    def as_teacher(self, model: LanguageModel) -> LanguageModel:
        """The model frozen, where and in passes as large as `teacher` says."""
        settings = self.config.teacher
        model.batch_tokens = settings.batch_tokens
        model.requires_grad_(False).eval()
        alone = self.accelerator.num_processes == 1
        if settings.sharding == "none" or (alone and settings.sharding == "fsdp"):
            return model.to(settings.device or self.accelerator.device)
        shard_teacher(model, self.accelerator.device, offload=settings.sharding == "offload")
        return model

    @cached_property
    def teacher_outputs(self) -> Sequence[Example]:
        """The training prompts with the teacher's greedy completions as their targets."""
        config, teacher = self.config, self.teacher
        decoding = config.decoding.greedy(config.evaluation.batch_tokens)
        stage = Stage.open(
            self.stages_dir,
            "teacher_outputs",
            {
                "teacher": self.inputs["teacher"],
                "excluded": sorted(teacher.rules.excluded),  # of the student too
                "data": self.data["train"]["sha256"],
                "max_prompt_tokens": config.decoding.max_prompt_tokens,
                "max_tokens": config.decoding.max_tokens,
            },
        )
        path = stage.directory / "train.jsonl"
        with stage.locked():
            if stage.is_whole():
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
                stage.finish(path.name, num_examples=len(self.train_examples))
        self.inputs["teacher_outputs"] = stage.fingerprint
        self.digests["teacher_outputs"] = stage.digest
        return CompletedExamples(self.train_examples, path)

    @cached_property
    def initial_student(self) -> LanguageModel:
        """The student before any training of it."""
        if self.config.student.keep_layers is None:
            return self.loaded_student
        # From the trained teacher: its layers are what is worth keeping.
        return self.place(self.cut_student(self.teacher))

    @cached_property
    def student(self) -> LanguageModel:
        """The student that the objective starts from, pre-distilled if the recipe says so."""
        settings, lora = self.config.student.predistill, self.config.student.lora
        initial = self.initial_student
        self.check_models()
        known = (self.models.get("student") or describe_model(initial))["sha256"]
        if self.config.student.build is None:  # there is nothing to test in random weights
            self.loaded["student"] = known
        if settings is None:
            return initial
        outputs = self.teacher_outputs
        model = self._supervised_stage(
            "predistill",
            settings,
            student=initial,
            teacher=self.teacher,
            examples=outputs,
            inputs={
                "model": known,
                "outputs": self.inputs["teacher_outputs"],
                "lora": None if lora is None else lora.model_dump(mode="json"),
            },
        )
        self._forget("initial_student", "loaded_student")
        return model

    def _forget(self, *names: str) -> None:
        """Free models that a stage was made of and no later one needs."""
        for name in names:
            self.__dict__.pop(name, None)

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
                "seed": self.seed_of(name),
            },
        )
        role = config.teacher if name == "teacher" else config.student
        with stage.locked():
            if stage.is_whole():
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
                stage.finish(f"best/{MANIFEST}")
        self.inputs[name] = stage.fingerprint
        self.digests[name] = stage.digest
        return self.reload(stage.directory / "best", role, verified=True)

    def run(self) -> None:
        """All the stages; the last one's best checkpoint is in `out/best`."""
        config = self.config
        objective = self.objective
        self.record_drift()
        teacher, student = self.teacher, self.student
        if config.trainer.compile:
            student.compile_layers()
            teacher.compile_layers()
        # The text that the objective learns from, beside what the student writes.
        by_teacher = objective.targets == "teacher"
        examples = self.teacher_outputs if by_teacher else self.train_examples
        self._check_stages()
        update_manifest(
            self.out,
            {
                "stages_dir": os.path.relpath(self.stages_dir, self.out),
                "stages": {**self.inputs, **self._folders_of_loaded()},
                "stages_sha256": dict(self.digests),
                "data": self.data,
                "spelling": self.spelling,
            },
        )
        self._train(
            "objective",  # whichever it is: methods share data order and the rollouts' seeds
            self.out,
            student=student,
            teacher=teacher,
            objective=objective,
            examples=examples,
            metric=self.metric,
            optim=config.optim,
            loop=config.trainer,
        )

    def _folders_of_loaded(self) -> dict[str, str]:
        """Folders for the tests of loaded models, by role; trained ones have their stages."""
        config = self.config
        inputs = {
            "teacher": self.inputs["teacher"],  # whose returns are measured
            "data": {split: self.data[split]["sha256"] for split in ("validation", "test")},
            "max_prompt_tokens": config.decoding.max_prompt_tokens,
            "max_tokens": config.decoding.max_tokens,
        }
        return {
            role: Stage.open(self.stages_dir, role, {"model": model, **inputs}).fingerprint
            for role, model in self.loaded.items()
        }

    def _check_stages(self) -> None:
        """Raise a RunError where a stage was made again, to something else, since the run began."""
        manifest = RunDirectory(self.out).manifest()
        names, known = manifest.get("stages", {}), manifest.get("stages_sha256", {})
        for name, digest in self.digests.items():
            if names.get(name) == self.inputs[name] and known.get(name, digest) != digest:
                raise RunError(
                    f"{self.stages_dir / self.inputs[name]}: was made again since {self.out} "
                    "began, to other weights or texts; bring back the stages folder that it was "
                    "begun with, or choose another --out"
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
        if stage != "teacher" and config.student.lora is not None:
            seed = derive_seed(config.seed, "adapters", stage)
            add_adapters(student.model, **config.student.lora.model_dump(), seed=seed)
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
                evaluate=lambda model: self._validate(stage, model, teacher),
                metric=metric,
                optim=optim,
                settings=loop,
                directory=directory,
                accelerator=self.accelerator,
                tracker=tracker,
                max_prompt_tokens=config.decoding.max_prompt_tokens,
                seed=derive_seed(self.seed_of(stage), "train", stage),
                load=lambda path: self.reload(path, role, verified=True),
                hooks=Hooks(
                    on_step=lambda step, metrics: meter.advance(
                        step - meter.done, f"loss {metrics['train/loss']:.4g}"
                    )
                ),
                num_samples=config.evaluation.num_samples,
                other_processes=self.other_processes,
            )
            with _stop_on_signals(trainer):
                trainer.train()
        self.accelerator.free_memory()

    def _validate(
        self, stage: str, model: LanguageModel, teacher: LanguageModel | None
    ) -> Evaluation:
        return self.evaluate(
            model,
            teacher,
            self.validation_examples,
            # Stages that runs share are picked alike in all of them.
            procedure=self.procedure if stage == "objective" else self.greedy_procedure,
            num_resamples=100,  # nobody reads the intervals of a learning curve
        )

    def evaluate(
        self,
        model: LanguageModel,
        teacher: LanguageModel | None,
        examples: Sequence[Example],
        *,
        procedure: EvaluationSettings | None = None,
        num_resamples: int | None = None,
        partial: PartialResults | None = None,
        advance: Advance = lambda rows: None,
    ) -> Evaluation:
        """Decode and score `examples` as the run's settings say."""
        settings = self.config.evaluation
        return evaluate(
            model,
            examples,
            procedure or self.procedure,
            teacher=teacher if settings.returns else None,
            num_resamples=num_resamples or settings.num_resamples,
            confidence=settings.confidence,
            partial=partial,
            advance=advance,
        )

    @property
    def procedure(self) -> EvaluationSettings:
        """How an evaluation writes and measures."""
        settings, decoding = self.config.evaluation, self.config.decoding
        chosen = settings.decoding.build(decoding.max_tokens, settings.batch_tokens)
        number = settings.decoding.num_samples
        return replace(self.greedy_procedure, decoding=chosen, num_samples=number)

    @property
    def greedy_procedure(self) -> EvaluationSettings:
        """The same of greedy text."""
        settings, decoding = self.config.evaluation, self.config.decoding
        sampling = decoding.build(batch_tokens=settings.batch_tokens)
        return EvaluationSettings(
            decoding.greedy(settings.batch_tokens),
            sampling=sampling if settings.expected_returns else None,
            metrics=tuple(self.task.metrics),
            max_prompt_tokens=decoding.max_prompt_tokens,
            seed=self.config.seed,
        )


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


def open_pipeline(
    run: Path, overrides: Sequence[str] = (), reporter: Reporter | None = None
) -> Pipeline:
    """The finished stages of a run.

    Raises:
        RunError: `run` is no run directory, or its trained teacher is missing.
        ConfigError: an override cannot be used.
    """
    RunDirectory(run).check()
    RunDirectory(run).settings_text()  # compared with its hash
    config = load_config(RunConfig, run / "config.yaml", overrides)
    manifest = RunDirectory(run).manifest()
    stages_dir = Path(os.path.normpath(run / manifest.get("stages_dir", "stages")))
    pipeline = Pipeline(
        config, run, make_accelerator(), reporter or Reporter(quiet=True), stages_dir
    )
    # Another seed is another teacher where that is built.
    pipeline.other_teacher = any(re.match(r"(teacher|seed)\b", change) for change in overrides)
    if config.teacher.train is not None:
        # The teacher that the run had, whatever the overrides would have made of it.
        stage = manifest.get("stages", {}).get("teacher")
        if stage is None:
            raise RunError(
                f"{run}: was stopped before it had its teacher and all other stages; go on with it "
                "by the brim train or brim sweep that began it"
            )
        best = stages_dir / stage / "best"
        if not best.exists():
            raise RunError(f"{best}: the run's teacher is missing; bring back its stages folder")
        check_stage(best.parent, manifest.get("stages_sha256", {}).get("teacher"))
        pipeline.inputs["teacher"] = stage
        pipeline.teacher = pipeline.as_teacher(pipeline.reload(best, config.teacher, verified=True))
    return pipeline
