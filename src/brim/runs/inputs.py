"""What a run is made of: its data and its models as they are before any training."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from brim.errors import ConfigError, RunError
from brim.metrics import get_metric
from brim.models import (
    LanguageModel,
    Quantization,
    build_model,
    check_adapters,
    check_checkpointing,
    check_vllm,
    inspect_rows,
    keep_layers,
    load_model,
    q_drift,
    quantization_of,
    share_vocabulary,
    train_tokenizer,
)
from brim.models.loading import DTYPES
from brim.objectives import Objective
from brim.runs.directory import RunDirectory
from brim.runs.stages import describe_model, update_manifest
from brim.seeding import derive_seed
from brim.support.progress import Reporter
from brim.tasks import SPLITS, Split, Task, describe, locate, without_rows
from brim.training.optimizer import check_trainable, import_adamw_8bit
from brim.training.settings import RunConfig, StudentConfig, TeacherConfig
from brim.types import Example, Rollout

logger = logging.getLogger(__name__)

# The share of a split's rows from which text that the tokenizer cannot spell is warned of.
MISSPELLED = 0.001


@dataclass
class Materials:
    """Data and models of one run; each property is made when first needed and kept.

    Attributes:
        config: the run's settings.
        out: the run directory.
        accelerator: devices and processes.
        reporter: shows progress.
        spelling: of each split that was checked, how many rows have text that does not survive
            the tokenizer.
        other_teacher: the settings ask for another teacher than the run's.
        models: what is known of the loaded models, by role; see `describe_model`.
    """

    config: RunConfig
    out: Path
    accelerator: Accelerator
    reporter: Reporter
    spelling: dict[str, Any] = field(default_factory=dict, init=False)
    _splits: dict[Split, Sequence[Example]] = field(default_factory=dict, init=False)
    other_teacher: bool = field(default=False, kw_only=True)
    models: dict[str, dict[str, str]] = field(default_factory=dict, kw_only=True)

    @cached_property
    def task(self) -> Task:
        """Data and metrics."""
        return self.config.task.build(
            cache_dir=self.out / "data", on_progress=self.reporter.progress
        )

    def examples(self, split: Split) -> Sequence[Example]:
        """A split, less the rows that `check_rows` has found to be of no use."""
        if split not in self._splits:
            self._splits[split] = self.task.load(split)
        return self._splits[split]

    @property
    def train_examples(self) -> Sequence[Example]:
        """The training split."""
        return self.examples("train")

    @property
    def validation_examples(self) -> Sequence[Example]:
        """What is decoded at each evaluation during training."""
        return self.examples("validation")[: self.config.evaluation.max_validation_examples]

    def check_rows(self, splits: Sequence[Split], *models: LanguageModel) -> None:
        """Read every row of the splits as these models will, before hours of work depend on it.

        Rows that cannot be used are refused or left out, as `task.on_bad_row` says. A text that
        the tokenizer cannot spell stays, is counted in the manifest, and is warned of where more
        than `MISSPELLED` of a split's rows have one.

        Raises:
            DataError: a row cannot be used; the text names its file and line.
        """
        decoding = self.config.decoding
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
            self.spelling[split] = {
                "num_examples": report.num_rows - len(report.unusable),
                "num_unknown": report.num_unknown,
                "num_changed": report.num_changed,
            }
            if report.num_misspelled > MISSPELLED * report.num_rows:
                rows = [examples[row] for row, _, _ in report.samples]
                logger.warning("%s: %s", split, report.summary(locate(self.task, split, rows)))

    @cached_property
    def objective(self) -> Objective:
        """The method."""
        return self.config.objective.build(self.config.decoding.build())

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
            "test": self.examples("test"),
        }
        return {name: describe(examples) for name, examples in splits.items()}

    def check(self) -> None:
        """Meet the mistakes that can be met before hours of work.

        Raises:
            BrimError: the settings, the data and the models do not go together, or data or
                models are not what this run was begun with.
        """
        config = self.config
        if self.metric in self.task.metrics and self.supervised_metric == "return":
            raise ConfigError(
                f"evaluation.metric: {self.metric} needs targets in the validation split; "
                "give a target column, or choose return or expected_return"
            )
        if self.supervised_metric == "return" and not config.evaluation.returns:
            raise ConfigError(
                "evaluation.returns: must be true where a return picks the checkpoint, as it does "
                "where the validation split has no targets"
            )
        if config.teacher.train:
            for name, examples in (
                ("training", self.train_examples),
                ("validation", self.validation_examples),
            ):
                if not all(example.references for example in examples):
                    raise ConfigError(f"teacher.train: needs a target for each {name} example")
        if self.objective.targets == "data" and not all(
            example.references for example in self.train_examples
        ):
            raise ConfigError("objective.targets: data needs a target for each training example")
        for name in self.task.metrics:
            get_metric(name)
        if config.trainer.rollout_batch_size < self.accelerator.num_processes:
            raise ConfigError(
                f"trainer.rollout_batch_size: {config.trainer.rollout_batch_size} prompts are too "
                f"few for {self.accelerator.num_processes} processes; raise it"
            )
        self.examples("test")  # whatever is wrong with it is known before models are loaded
        bits = quantization_of(self.initial_teacher)
        if config.student.keep_layers is None:
            source = self.loaded_student
            config.check_quantized(bits, quantization_of(source))
            share_vocabulary(self.initial_teacher, source)
        else:  # of the teacher before its training: whether there are so many
            config.check_quantized(bits, None)
            source = self.cut_student(self.initial_teacher)
        if config.student.lora is None:
            check_trainable(source, "student")
        if config.teacher.train is not None:
            check_trainable(self.initial_teacher, "teacher")
        self.check_rows(SPLITS, source, self.initial_teacher)
        data = self.data
        if RunDirectory(self.out).manifest().get("data", data) != data:
            raise RunError(
                f"{self.out}: the data is not what this run was begun with (see manifest.json); "
                "bring it back, or choose another --out"
            )
        self.check_models()
        if config.student.lora is not None:
            check_adapters(source.model, config.student.lora.target_modules)
        if config.decoding.engine == "vllm":
            check_vllm(source)
        if config.trainer.gradient_checkpointing:
            check_checkpointing(source.model, dropout=not self.objective.compares_policies)
        if config.optim.optimizer == "adamw_8bit":
            import_adamw_8bit(self.accelerator.device)

    @cached_property
    def initial_teacher(self) -> LanguageModel:
        """The teacher as loaded or built, before any training of it."""
        settings = self.config.teacher
        if settings.build is None:
            bits = settings.quantization
            model = self._load(settings, None if bits is None else bits.build())
        else:
            assert settings.tokenizer is not None
            tokenizer = train_tokenizer(
                _texts(self.train_examples),
                kind=settings.tokenizer.kind,
                vocab_size=settings.tokenizer.vocab_size,
            )
            model = self._build("teacher", settings.build, tokenizer)
        self.models["teacher"] = describe_model(model)
        # One that is not trained stays where `teacher.device` had it loaded.
        return model if settings.train is None else self.place(model)

    @cached_property
    def loaded_student(self) -> LanguageModel:
        """The student that is loaded or built, not made of the teacher's layers."""
        settings = self.config.student
        if settings.path is not None:
            model = self._load(settings)
        else:
            assert settings.build is not None
            model = self._build("student", settings.build, self.initial_teacher.tokenizer)
        self.models["student"] = describe_model(model)
        return self.place(model)

    def cut_student(self, teacher: LanguageModel) -> LanguageModel:
        """The student that is made of a teacher's layers, in its own type."""
        settings = self.config.student
        assert settings.keep_layers is not None
        student, dtype = keep_layers(teacher, layers=settings.keep_layers), DTYPES[settings.dtype]
        return student.to(dtype) if isinstance(dtype, torch.dtype) else student

    def check_models(self) -> None:
        """Check that the models loaded so far are those that the run was begun with.

        Raises:
            RunError: one is not.
        """
        known = RunDirectory(self.out).manifest().get("models", {})
        for role, facts in self.models.items():
            asked_for = role == "teacher" and self.other_teacher
            if known.get(role, facts) != facts and not asked_for:
                raise RunError(
                    f"{self.out}: the {role} is not the one that this run was begun with (see "
                    "manifest.json): its weights, configuration or tokenizer have changed; bring "
                    "it back, or choose another --out"
                )

    def record_drift(self) -> None:
        """Write into the manifest, once, how far quantising the teacher moved its Q-values."""
        settings, decoding = self.config.teacher.quantization, self.config.decoding
        bits = quantization_of(self.initial_teacher)
        if settings is None and bits is not None:
            self.reporter.say(
                f"teacher ({bits}): how far its Q-values moved is not known, for it is stored so"
            )
        if settings is None or settings.drift_examples == 0:
            return
        if (
            "quantization" in RunDirectory(self.out).manifest()
            or not self.accelerator.is_main_process
        ):
            return
        examples = self._some_targets(settings.drift_examples)
        if not examples:
            self.reporter.say(
                f"teacher ({settings.build()}): how far its Q-values moved is not known, for the "
                "training examples have no targets"
            )
            return
        teacher = self.initial_teacher
        reference = self._load(self.config.teacher)

        def rollouts() -> Iterator[Rollout]:
            batch = teacher.encode(examples, max_tokens=decoding.max_prompt_tokens)
            rollout = teacher.encode_targets(batch, max_tokens=decoding.max_tokens)
            for rows in rollout.buckets(teacher.batch_tokens):
                yield rollout.select(rows)

        drift = q_drift(teacher, reference, rollouts())
        update_manifest(self.out, {"quantization": {"num_examples": len(examples), **drift}})
        self.reporter.say(
            f"teacher ({settings.build()}): its Q-values moved by {drift['mean_taken']:.3g} in the "
            f"mean and {drift['max_taken']:.3g} at most (mean regret {drift['mean_regret']:.3g} of "
            f"{drift['reference_regret']:.3g}); same best token in {drift['same_best']:.1%} of "
            f"{drift['num_tokens']} states"
        )
        del reference
        self.accelerator.free_memory()

    def _some_targets(self, number: int) -> list[Example]:
        """So many training examples, evenly spaced, less those without a target."""
        rows = range(0, len(self.train_examples), max(len(self.train_examples) // number, 1))
        examples = (self.train_examples[row] for row in rows[:number])
        return [example for example in examples if example.references]

    def _load(
        self, settings: TeacherConfig | StudentConfig, quantization: Quantization | None = None
    ) -> LanguageModel:
        assert settings.path is not None
        return load_model(
            settings.path,
            revision=settings.revision,
            dtype=settings.dtype,
            device=self._loading_device(settings),
            trust_remote_code=settings.trust_remote_code,
            quantization=quantization,
        )

    def _loading_device(self, settings: TeacherConfig | StudentConfig) -> Any:
        if isinstance(settings, StudentConfig):
            return self.accelerator.device
        # What is to be held in parts may be too large for one device.
        if settings.sharding != "none" and settings.train is None:
            return "cpu"
        return settings.device or self.accelerator.device

    def _build(
        self, role: str, description: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
    ) -> LanguageModel:
        seed = derive_seed(self.seed_of(role), "build", role)
        return build_model(description, tokenizer, seed=seed)

    def seed_of(self, stage: str) -> int:
        """The seed of what is random in a stage."""
        own = self.config.teacher.seed if stage == "teacher" else None
        return self.config.seed if own is None else own

    def reload(
        self, directory: Path, role: TeacherConfig | StudentConfig, *, verified: bool = False
    ) -> LanguageModel:
        """A model that this run wrote, as its role was first loaded.

        Args:
            directory: of the model.
            role: teacher or student.
            verified: the directory has just been compared with its seal.

        Raises:
            RunError: a file is not what was written.
        """
        model = load_model(
            directory,
            dtype=role.dtype,
            trust_remote_code=role.trust_remote_code,
            verified=verified,
        )
        return self.place(model)

    def place(self, model: LanguageModel) -> LanguageModel:
        """The model on this process's device."""
        return model.to(self.accelerator.device)


def _texts(examples: Sequence[Example]) -> Iterator[str]:
    """The text that a tokenizer is trained on: prompts and targets."""
    for example in examples:
        yield example.prompt
        yield from example.references
        yield from (message["content"] for message in example.messages)
