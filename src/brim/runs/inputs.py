"""What a run begins with: its settings and its data."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from accelerate import Accelerator

from brim.config.loading import load_config, without_incidental
from brim.errors import ConfigError
from brim.examples import Example
from brim.models import (
    LanguageModel,
    Teacher,
    inspect_rows,
    load_model,
)
from brim.models.loading import describe_model
from brim.models.settings import ModelSettings
from brim.objectives import make_objective
from brim.objectives.base import Objective
from brim.objectives.settings import overrides_of_what_is_gone
from brim.runs.directory import RunDirectory
from brim.support.progress import Reporter
from brim.tasks import Split, Task, describe, locate, warn_of_overlap, without_rows
from brim.training.accelerator import make_accelerator
from brim.training.callbacks import Callbacks
from brim.training.settings import RunConfig, StudentConfig
from brim.training.teacher_settings import TeacherConfig

logger = logging.getLogger(__name__)

# Overrides that name the teacher, but for where its server is and how it is asked.
_OTHER_TEACHER = re.compile(r"(teacher(?!\.(server|key_env|requests)\b)|seed)\b")

# The share of a split's rows from which text that the tokenizer cannot spell is warned of.
MISSPELLED = 0.001


ModelT = TypeVar("ModelT", bound=Teacher, covariant=True)


@dataclass(frozen=True, slots=True)
class Made(Generic[ModelT]):
    """A model of a run, loaded or made by a stage.

    Attributes:
        fingerprint: represents it in the hashes of later stages: the SHA-256 of a loaded model,
            the folder of a stage.
        digest: SHA-256 of what a stage made; None of a loaded model.
        facts: what the manifest says of a loaded model; see `describe_model`, `describe_served`.
    """

    model: ModelT
    fingerprint: str
    digest: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def loaded(cls, model: LanguageModel) -> Made[LanguageModel]:
        """Return a model with its fingerprint."""
        facts = describe_model(model)
        return Made(model, facts["sha256"], facts=facts)


@dataclass
class RunInputs:
    """The settings and the data of a run, and where it works.

    Attributes:
        config: the run's settings.
        out: the run directory.
        accelerator: devices and processes.
        stages_dir: where the folders of its stages are.
        reporter: shows progress.
        other_processes: resume stages that another number of processes began.
        callbacks: of the objective's stage.
        other_teacher: the settings ask for another teacher than the run's.
        other_settings: they differ from the run's in what can change results.
    """

    config: RunConfig
    out: Path
    accelerator: Accelerator
    stages_dir: Path
    reporter: Reporter = field(default_factory=lambda: Reporter(quiet=True))
    other_processes: bool = False
    callbacks: Callbacks = field(default_factory=Callbacks)
    other_teacher: bool = False
    other_settings: bool = False

    def __post_init__(self) -> None:
        self.task: Task = self.config.task
        self._splits: dict[Split, Sequence[Example]] = {}
        self._data: dict[str, Any] = {}
        self._supervised: str | None = None

    def examples(self, split: Split) -> Sequence[Example]:
        """Return a split, less the rows that `check_rows` has found to be of no use."""
        if split not in self._splits:
            if split not in self.task.splits():
                names = ", ".join(self.task.splits())
                raise ConfigError(f"there is no split {split}; the task has {names}")
            source = getattr(self.task, split, None) or getattr(self.task, "path", None)
            of = self.task.name if source is None else f"{self.task.name}, {source}"
            with self.reporter.loading(f"{split} data of {of}") as facts:
                examples = self.task.load(
                    split, cache_dir=self.out / "data", on_progress=self.reporter.progress
                )
                facts.append(f"{len(examples):,} rows")
            self._splits[split] = examples
            warn_of_overlap(self._splits, split)
        return self._splits[split]

    def used(self, split: Split) -> Sequence[Example]:
        """Return what training uses of a split: of validation what each evaluation decodes."""
        examples = self.examples(split)
        limit = self.config.evaluation.max_validation_examples
        return examples[:limit] if split == "validation" else examples

    def data(self) -> dict[str, Any]:
        """Return what is known of each split, for the provenance; a large one takes a while."""
        if not self._data:
            self._data = {split: describe(self.used(split)) for split in self.task.splits()}
        return self._data

    def check_rows(self, splits: Sequence[Split], *models: Teacher) -> dict[str, Any]:
        """Read every row of the splits as these models will, before hours of work depend on it.

        Rows that cannot be used are refused or left out, as `task.on_bad_row` says. Text that the
        tokenizer cannot spell stays, with a warning where over `MISSPELLED` of the rows have any.

        Returns:
            By split, how many rows have text that does not survive the tokenizer.

        Raises:
            DataError: a row cannot be used; the text names its file and line.
        """
        decoding = self.config.decoding
        spelling: dict[str, Any] = {}
        # A state behind the last token is valued too.
        bootstrap = getattr(self.config.objective, "truncated", None) == "bootstrap"
        for split in splits:
            examples = self.examples(split)
            with self.reporter.meter(f"reading {split}", len(examples)) as meter:
                report = inspect_rows(
                    models,
                    examples,
                    max_prompt_tokens=decoding.max_prompt_tokens,
                    max_tokens=decoding.max_tokens + bootstrap,
                    advance=meter.advance,
                )
            self._splits[split] = without_rows(self.task, split, examples, report.unusable)
            self._data = {}
            spelling[split] = {
                "num_examples": report.num_rows - len(report.unusable),
                "num_unknown": report.num_unknown,
                "num_changed": report.num_changed,
            }
            if report.num_misspelled > MISSPELLED * report.num_rows:
                rows = [examples[row] for row, _, _ in report.samples]
                logger.warning("%s: %s", split, report.summary(locate(self.task, split, rows)))
        return spelling

    def supervised_metric(self) -> str:
        """Return the score that picks teacher and pre-distilled student: the task's first one."""
        if self._supervised is None:  # as the split is before rows are left out
            answered = all(example.references for example in self.used("validation"))
            self._supervised = self.task.metrics[0] if answered else "return"
        return self._supervised

    def metric(self) -> str:
        """Return the score that picks the best checkpoint of the objective."""
        return self.config.evaluation.metric or self.supervised_metric()

    def make_objective(self) -> Objective:
        """Return the method, as it is before any training."""
        return make_objective(self.config.objective, self.config.decoding)

    def seed_of(self, stage: str) -> int:
        """Return the seed of what is random in a stage."""
        own = self.config.teacher.seed if stage == "teacher" else None
        return self.config.seed if own is None else own

    def place(self, model: LanguageModel) -> LanguageModel:
        """Move a model to this process's device."""
        return model.to(self.accelerator.device)

    def reload(
        self, directory: Path, role: TeacherConfig | StudentConfig, *, verified: bool = False
    ) -> LanguageModel:
        """Load a model that this run wrote, as its role was first loaded; see `load_model`."""
        code, dtype = role.trust_remote_code, role.dtype
        return self.place(
            load_model(directory, dtype=dtype, trust_remote_code=code, verified=verified)
        )


def reopen(
    run: Path,
    overrides: Sequence[str] = (),
    reporter: Reporter | None = None,
    *,
    best: bool = False,
) -> RunInputs:
    """Open a run whose models are to be evaluated.

    Args:
        run: the run directory.
        overrides: settings to change.
        reporter: shows progress.
        best: its student is the one that it trained, whatever the settings name.

    Raises:
        RunError: `run` is no run directory.
        ConfigError: an override cannot be used, or names a model that would not be read.
    """
    directory = RunDirectory(run)
    directory.check()
    directory.settings_text()  # compared with its hash
    removed = overrides_of_what_is_gone(directory.settings().get("objective", {}))
    known = load_config(RunConfig, run / "config.yaml", removed)
    config = load_config(RunConfig, run / "config.yaml", [*removed, *overrides])
    if config.teacher.train and (name := _other_source(known.teacher, config.teacher)):
        raise ConfigError(
            f"teacher.{name}: the run trained its own teacher, which would be used all the same; "
            "set teacher.train=null too"
        )
    if best and (name := _other_source(known.student, config.student)):
        raise ConfigError(
            f"student.{name}: is what the run trained its student from; to evaluate another model, "
            "name it by --model"
        )
    before, now = (
        without_incidental(RunConfig, c.model_dump(mode="json")) for c in (known, config)
    )
    stages_dir = run / directory.manifest().get("stages_dir", "stages")
    return RunInputs(
        config,
        run,
        make_accelerator(),
        Path(os.path.normpath(stages_dir)),
        reporter or Reporter(quiet=True),
        other_settings=now != before,
        # Whoever names it asks for what is there now; another seed builds another.
        other_teacher=any(_OTHER_TEACHER.match(change) for change in overrides),
    )


def _other_source(before: ModelSettings, now: ModelSettings) -> str | None:
    """The first setting by which another model is named."""
    names = (*now.sources, "revision", "tokenizer")
    return next((n for n in names if getattr(before, n) != getattr(now, n)), None)


def splits_tested(run: Path, split: Split, overrides: Sequence[str]) -> tuple[Split, ...]:
    """Return the splits of a run's test sets, with these settings, for `test`; else `split`.

    Raises:
        RunError, ConfigError: as `reopen`.
    """
    return reopen(run, overrides).task.splits()[2:] if split == "test" else (split,)
