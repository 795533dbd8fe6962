"""What a run is made of: its data and its models as they are before any training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from brim.errors import ConfigError, RunError
from brim.metrics import get_metric
from brim.models import (
    LanguageModel,
    build_model,
    check_same_tokenizer,
    keep_layers,
    load_model,
    train_tokenizer,
)
from brim.progress import Reporter
from brim.rundir import read_manifest
from brim.seeding import derive_seed
from brim.settings import RunConfig, StudentConfig, TeacherConfig
from brim.tasks import Task, describe
from brim.types import Example


@dataclass
class Materials:
    """Data and models of one run; each property is made when first needed and kept.

    Attributes:
        config: the run's settings.
        out: the run directory.
        accelerator: devices and processes.
        reporter: tells the person who watches.
    """

    config: RunConfig
    out: Path
    accelerator: Accelerator
    reporter: Reporter

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
            check_same_tokenizer(self.initial_teacher, self.loaded_student)
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
    def loaded_student(self) -> LanguageModel:
        """The student that is loaded or built, not made of the teacher's layers."""
        settings = self.config.student
        if settings.path is not None:
            model = _load(settings)
        else:
            assert settings.build is not None
            model = self._build("student", settings.build, self.initial_teacher.tokenizer)
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
