"""What a run begins with: its data, and its models as they are before any training."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from brim.errors import ConfigError, RunError
from brim.examples import Example
from brim.metrics import get_metric
from brim.models import (
    LanguageModel,
    Quantization,
    Teacher,
    add_adapters,
    build_model,
    check_vllm,
    checkpoint_layers,
    inspect_rows,
    keep_layers,
    load_model,
    quantization_of,
    train_tokenizer,
    whole,
)
from brim.models.loading import DTYPES, describe_model, load_tokenizer
from brim.models.modes import without_weights
from brim.models.settings import TokenizerSettings
from brim.objectives import make_objective
from brim.objectives.base import Objective
from brim.runs.directory import RunDirectory
from brim.runs.pairs import match
from brim.runs.served import load_served, recognize
from brim.seeding import derive_seed
from brim.support.progress import Reporter
from brim.tasks import SPLITS, Split, Task, describe, locate, warn_of_overlap, without_rows
from brim.training.optimizer import check_trainable, import_adamw_8bit, schedule_warnings
from brim.training.settings import RunConfig, StudentConfig, TeacherConfig

logger = logging.getLogger(__name__)

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
        other_teacher: the settings ask for another teacher than the run's.
    """

    config: RunConfig
    out: Path
    accelerator: Accelerator
    stages_dir: Path
    reporter: Reporter = field(default_factory=lambda: Reporter(quiet=True))
    other_processes: bool = False
    other_teacher: bool = False

    def __post_init__(self) -> None:
        self.task: Task = self.config.task
        self._splits: dict[Split, Sequence[Example]] = {}
        self._data: dict[str, Any] = {}
        self._supervised: str | None = None

    def examples(self, split: Split) -> Sequence[Example]:
        """Return a split, less the rows that `check_rows` has found to be of no use."""
        if split not in self._splits:
            self._splits[split] = self.task.load(
                split, cache_dir=self.out / "data", on_progress=self.reporter.progress
            )
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
            self._data = {split: describe(self.used(split)) for split in SPLITS}
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


def load_checked(
    run: RunInputs,
) -> tuple[Made[Teacher], Made[LanguageModel] | None, dict[str, Any]]:
    """Load teacher and student, and check everything that can be checked before training starts.

    Returns:
        The teacher before any training, the student (see `load_student`), what `check_rows` found.

    Raises:
        BrimError: settings, data and models do not go together, or are not what the run began with.
    """
    config = run.config
    _check_data(run)
    teacher = load_teacher(run)
    bits = bits_of(teacher.model)
    student = load_student(run, teacher.model)
    if student is not None:
        config.check_quantized(bits, quantization_of(student.model))
        match(config, teacher.model, student.model)
        model = student.model
    else:  # of the teacher before its training: whether there are so many
        config.check_quantized(bits, None)
        model = cut_student(run, teacher.model)
    if config.student.lora is None:
        check_trainable(model, "student")
    if config.teacher.train is not None:
        check_trainable(whole(teacher.model), "teacher")
    spelling = run.check_rows(SPLITS, model, teacher.model)
    data = run.data()
    if RunDirectory(run.out).manifest().get("data", data) != data:
        raise RunError(
            f"{run.out}: the data is not what this run was begun with (see manifest.json); "
            "bring it back, or choose another --out"
        )
    check_known(run, "teacher", teacher)
    if student is not None:
        check_known(run, "student", student)
    if config.student.lora is not None:
        add_adapters(without_weights(model.model), config.student.lora, seed=0)
    if config.decoding.engine == "vllm":
        check_vllm(model)
    if config.trainer.gradient_checkpointing:
        dropout = not config.objective.compares_policies
        checkpoint_layers(without_weights(model.model), dropout=dropout)
    if config.optim.optimizer == "adamw_8bit":
        import_adamw_8bit(run.accelerator.device)
    for warning in schedule_warnings(config, len(run.examples("train"))):
        run.reporter.say(f"warning: {warning}")
    return teacher, student, spelling


def _check_data(run: RunInputs) -> None:
    config, supervised, train = run.config, run.supervised_metric(), run.examples("train")
    if run.metric() in run.task.metrics and supervised == "return":
        raise ConfigError(
            f"evaluation.metric: {run.metric()} needs targets in the validation split; "
            "give a target column, or choose return or expected_return"
        )
    if supervised == "return" and not config.evaluation.returns:
        raise ConfigError(
            "evaluation.returns: must be true where a return picks the checkpoint, as it does "
            "where the validation split has no targets"
        )
    if config.teacher.train:
        for name, examples in (("training", train), ("validation", run.used("validation"))):
            if not all(example.references for example in examples):
                raise ConfigError(f"teacher.train: needs a target for each {name} example")
    answered = all(example.references for example in train)
    if config.objective.needed_targets == "data" and not answered:
        raise ConfigError("objective.targets: data needs a target for each training example")
    for name in run.task.metrics:
        get_metric(name)
    config.check_processes(run.accelerator.num_processes)
    run.examples("test")  # whatever is wrong with it is known before models are loaded


def load_teacher(run: RunInputs) -> Made[Teacher]:
    """Load, build or connect the teacher as it is before any training of it."""
    settings = run.config.teacher
    if settings.server is not None:
        served = load_served(run.config, run.examples("train"))
        known = RunDirectory(run.out).manifest().get("models", {}).get("teacher")
        known = None if run.other_teacher else known
        fingerprint, facts = recognize(served, known, run.out, run.stages_dir)
        run.reporter.say(
            f"teacher: {facts['name']} behind {settings.server} ({facts['api']}); two equal "
            f"requests differ by {facts['noise']:.2g} in the mean log-probability"
        )
        return Made(served, fingerprint, facts=facts)
    if settings.build is None:
        model = load_role(run, settings, settings.quantization)
    else:
        assert settings.tokenizer is not None
        tokenizer = _tokenizer(run, settings.tokenizer)
        model = _build(run, "teacher", settings.build, tokenizer)
    # One that is not trained stays where `teacher.device` had it loaded.
    return Made.loaded(model if settings.train is None else run.place(model))


def load_student(run: RunInputs, teacher: Teacher) -> Made[LanguageModel] | None:
    """Load or build the student; None where it is to be made of the teacher's layers."""
    settings = run.config.student
    if settings.keep_layers is not None:
        return None
    if settings.path is not None:
        model = load_role(run, settings)
    else:
        assert settings.build is not None
        own = settings.tokenizer
        tokenizer = teacher.tokenizer if own is None else _tokenizer(run, own)
        model = _build(run, "student", settings.build, tokenizer)
    return Made.loaded(run.place(model))


def cut_student(run: RunInputs, teacher: Teacher) -> LanguageModel:
    """Make the student of a teacher's layers, in its own type."""
    settings = run.config.student
    assert settings.keep_layers is not None
    student, dtype = (
        keep_layers(whole(teacher), layers=settings.keep_layers),
        DTYPES[settings.dtype],
    )
    return student.to(dtype) if isinstance(dtype, torch.dtype) else student


def check_known(run: RunInputs, role: str, made: Made[Teacher]) -> None:
    """Check that a loaded model is the one that the run was begun with; see also `recognize`.

    Raises:
        RunError: it is not.
    """
    if not isinstance(made.model, LanguageModel):
        return
    known = RunDirectory(run.out).manifest().get("models", {}).get(role, made.facts)
    if known != made.facts and not (role == "teacher" and run.other_teacher):
        raise RunError(
            f"{run.out}: the {role} is not the one that this run was begun with (see "
            "manifest.json): its weights, configuration or tokenizer have changed; bring it back, "
            "or choose another --out"
        )


def bits_of(teacher: Teacher) -> Quantization | None:
    """Return how a teacher's weights are quantized; None of one behind a server."""
    return quantization_of(teacher) if isinstance(teacher, LanguageModel) else None


def load_role(
    run: RunInputs, settings: TeacherConfig | StudentConfig, bits: Quantization | None = None
) -> LanguageModel:
    """Load the model that a role's settings name, as they say; quantized by `bits`."""
    assert settings.path is not None
    device: Any = run.accelerator.device
    if isinstance(settings, TeacherConfig):  # one in parts may be too large for a device
        in_parts = settings.sharding != "none" and settings.train is None
        device = "cpu" if in_parts else settings.device or device
    return load_model(
        settings.path,
        revision=settings.revision,
        dtype=settings.dtype,
        device=device,
        trust_remote_code=settings.trust_remote_code,
        quantization=bits,
    )


def _build(
    run: RunInputs, role: str, description: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
) -> LanguageModel:
    return build_model(description, tokenizer, seed=derive_seed(run.seed_of(role), "build", role))


def _tokenizer(run: RunInputs, settings: TokenizerSettings) -> PreTrainedTokenizerBase:
    if settings.path is not None:
        return load_tokenizer(settings.path)[0]
    texts = _texts(run.examples("train"))
    return train_tokenizer(texts, kind=settings.kind, vocab_size=settings.vocab_size)


def _texts(examples: Sequence[Example]) -> Iterator[str]:
    """The text that a tokenizer is trained on: prompts and targets."""
    for example in examples:
        yield example.prompt
        yield from example.references
        yield from (message["content"] for message in example.messages)
