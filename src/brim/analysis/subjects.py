"""What is analyzed: a run's or a recipe's teacher, students on the way, and prompts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np
from accelerate import Accelerator

from brim.analysis.sampling import Resamples, Samples, check_samples, draw_samples
from brim.errors import ConfigError
from brim.examples import Example
from brim.models import (
    LanguageModel,
    Teacher,
    add_adapters,
    load_model,
    quantization_of,
    same_tokenizer,
    share_vocabulary,
    whole,
)
from brim.objectives.anchored import Anchored
from brim.objectives.policy_gradient import PolicyGradient
from brim.objectives.settings import (
    AnchoredConfig,
    BRIMConfig,
    InductionConfig,
    LLMRConfig,
    PPOBRIMConfig,
    PPOLLMRConfig,
)
from brim.runs.inputs import Made, RunInputs, reopen
from brim.runs.models import check_known, load_checked, load_student
from brim.runs.stages import (
    find_teacher,
    find_trained,
    make_student,
    make_teacher,
    untrained_student,
    write_teacher_outputs,
)
from brim.seeding import derive_seed
from brim.support.progress import Reporter
from brim.tasks import Split
from brim.training.accelerator import make_accelerator
from brim.training.settings import RunConfig


@dataclass(frozen=True, slots=True)
class AnalyzedModel:
    """A student to be analyzed.

    Attributes:
        label: how tables and figures call it.
        path: its folder; None for the one that the run's objective starts from.
    """

    label: str
    path: Path | None = None


@dataclass
class Opened:
    """A run or a recipe whose models are analyzed.

    Attributes:
        run: its settings and data.
        teacher: gives the model whose values are measured, trained at the first call if need be.
        student: makes or loads the student that the objective starts from.
    """

    run: RunInputs
    teacher: Callable[[], LanguageModel]
    student: Callable[[], LanguageModel]


def open_run(run: Path, overrides: Sequence[str] = (), reporter: Reporter | None = None) -> Opened:
    """Open a run, of which teacher and pre-distilled student must be there.

    Raises:
        RunError: `run` is no run directory, or has not come as far.
        ConfigError: an override cannot be used, or several processes were started.
    """
    _only_process()
    opened = reopen(run, overrides, reporter)
    teacher = find_teacher(opened)
    if opened.config.student.predistill is None:
        return Opened(
            opened, lambda: whole(teacher.model), lambda: _untrained(opened, whole(teacher.model))
        )
    student = find_trained(opened, "predistill").model
    return Opened(opened, lambda: whole(teacher.model), lambda: student)


def _untrained(run: RunInputs, teacher: LanguageModel) -> LanguageModel:
    loaded = load_student(run, teacher)
    if loaded is not None:
        check_known(run, "student", loaded)
    return untrained_student(run, loaded, teacher).model


def open_recipe(
    config: RunConfig, out: Path, *, stages_dir: Path, reporter: Reporter | None = None
) -> Opened:
    """Open a recipe: its teacher is trained, and its student when one asks for it, as by a run.

    A run of the same recipe with the same folder of stages uses them again.

    Args:
        config: the recipe's settings.
        out: takes what the task keeps of the user's files.
        stages_dir: where the stages are, or will be.
        reporter: shows progress.

    Raises:
        BrimError: settings, data and models do not go together, or several processes were started.
    """
    run = RunInputs(config, out, _only_process(), stages_dir, reporter or Reporter(quiet=True))
    untrained, loaded, _ = load_checked(run)

    @cache
    def teacher() -> Made[Teacher]:
        return make_teacher(run, untrained)

    def student() -> LanguageModel:
        own = untrained_student(run, loaded, teacher().model)
        outputs = write_teacher_outputs(run, teacher(), own) if config.student.predistill else None
        return make_student(run, own, teacher().model, outputs).model

    return Opened(run, lambda: whole(teacher().model), student)


def _only_process() -> Accelerator:
    accelerator = make_accelerator()
    if accelerator.num_processes > 1:
        raise ConfigError("analyses run in one process; start them without accelerate or torchrun")
    return accelerator


def find_students(paths: Sequence[Path]) -> list[AnalyzedModel]:
    """The students in these folders: a model's, or one that holds models, such as `checkpoints`.

    In the order of the numbers in their names; by default the one that the objective starts from.

    Raises:
        ConfigError: a folder holds no model.
    """
    found: list[Path] = []
    for path in paths:
        inside = sorted(file.parent for file in path.glob("*/config.json"))
        models = [path] if (path / "config.json").exists() else inside
        if not models:
            raise ConfigError(f"{path}: holds no model (no config.json); name a model's folder")
        found += models
    if not found:
        return [AnalyzedModel("pre-distilled student")]
    found = sorted(dict.fromkeys(found), key=_by_number)
    deepest, depth = max(len(path.resolve().parts) for path in found), 1
    while depth < deepest and len({_label(path, depth) for path in found}) < len(found):
        depth += 1
    return [AnalyzedModel(_label(path, depth), path) for path in found]


def _by_number(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (0, part) for part in _NUMBER.split(str(path))]


_NUMBER = re.compile(r"(\d+)")


def _label(path: Path, depth: int) -> str:
    parts = path.resolve().parts
    # What every run's folder of checkpoints is called says nothing.
    named = [part for part in parts[:-1] if part != "checkpoints"]
    return "/".join([*named, parts[-1]][-depth:])


def load_analyzed(opened: Opened, model: AnalyzedModel) -> LanguageModel:
    """The student as the objective's stage would train it, adapters included."""
    config = opened.run.config
    if model.path is None:
        student = opened.student()
        if config.student.lora is not None:
            student = student.copy()  # the run's stays without adapters
    else:
        role = config.student
        student = opened.run.place(
            load_model(model.path, dtype=role.dtype, trust_remote_code=role.trust_remote_code)
        )
    if not same_tokenizer(opened.teacher(), student) and config.teacher.reads == "text":
        raise ConfigError(
            "teacher.reads: text: analyses compare what a teacher says of each token, and this "
            "pair has different tokenizers; analyze a pair of one tokenizer"
        )
    share_vocabulary(opened.teacher(), student)
    if quantization_of(student) is not None:
        raise ConfigError(f"{model.path}: quantized weights have no gradient; name another model")
    student.requires_grad_(True)
    if config.student.lora is not None:
        seed = derive_seed(config.seed, "adapters", "objective")
        add_adapters(student.model, config.student.lora, seed=seed)
    student.batch_tokens = config.trainer.micro_batch_tokens
    return student


def analyzed_objective(run: RunInputs) -> PolicyGradient | Anchored:
    """The policy gradient whose estimates are measured, by the settings of the run's objective.

    That of LLMR and BRIM is itself, on fresh rollouts, and so are anchored advantages. PPO's gives
    centering, clip, truncation and blocks; where its advantages are normalized, that is a mean
    baseline, and a scale. Any other objective has none of these: they are the defaults of `brim`. A
    task reward is left out: what is measured is of the teacher. So is a learned share of Û, whose
    head is no part of a student: Û is the mean of the others.
    """
    decoding = run.config.decoding
    match settings := run.config.objective:
        case LLMRConfig() | BRIMConfig():
            fresh = settings.model_copy(
                update={"rollout_reuse": 1, "sync_every": 1, "reward": None}
            )
            return PolicyGradient(fresh, decoding)
        case AnchoredConfig():
            learned = settings.remaining_regret == "learned"
            of_teacher = {"reward": None} | ({"remaining_regret": "time_mean"} if learned else {})
            return Anchored(settings.model_copy(update=of_teacher), decoding)
        case PPOLLMRConfig() | PPOBRIMConfig():
            shared = {name: getattr(settings, name) for name in InductionConfig.model_fields}
            shared |= {"k": 1, "tail": settings.tail, "reward": None}
            baseline = "mean" if settings.normalize_advantages else "none"
            return PolicyGradient(BRIMConfig(**shared, baseline=baseline), decoding)
        case _:
            return PolicyGradient(LLMRConfig(), decoding)


def choose_prompts(run: RunInputs, split: Split, number: int, seed: int) -> list[Example]:
    """`number` examples of a split, drawn without replacement; all of a smaller one."""
    examples = run.examples(split)
    generator = np.random.default_rng(derive_seed(seed, "analysis prompts"))
    rows = generator.permutation(len(examples))[:number]
    return [examples[int(row)] for row in sorted(rows)]


def check_ks(ks: Sequence[int]) -> Sequence[int]:
    """The K themselves.

    Raises:
        ConfigError: one is below 1.
    """
    if min(ks, default=1) < 1:
        raise ConfigError(f"k: {min(ks)} is no number of steps; give integers of at least 1")
    return ks


@dataclass(frozen=True)
class Analysis:
    """One objective and the same prompts for all students.

    Attributes:
        opened: a run (`open_run`) or a recipe (`open_recipe`).
        objective: whose rollouts and gradients are measured.
        split: where the prompts are from.
        examples: the P prompts.
        num_samples: M, rollouts of each.
        seed: of prompts, rollouts and intervals.
        resamples: of the prompts.
    """

    opened: Opened
    objective: PolicyGradient | Anchored
    split: Split
    examples: Sequence[Example]
    num_samples: int
    seed: int
    resamples: Resamples

    @classmethod
    def plan(
        cls, opened: Opened, *, split: Split, num_prompts: int, num_samples: int, seed: int
    ) -> Self:
        """Draw the prompts, and say so if there are fewer than `num_prompts`.

        Raises:
            ConfigError: the numbers do not go together.
        """
        run = opened.run
        objective, evaluation = analyzed_objective(run), run.config.evaluation
        examples = choose_prompts(run, split, num_prompts, seed)
        check_samples(
            objective, num_samples=num_samples, num_prompts=min(num_prompts, len(examples))
        )
        if len(examples) < num_prompts:
            run.reporter.say(
                f"prompts: {num_prompts} asked for, but {split} has {len(examples)}; all are taken"
            )
        resamples = Resamples.draw(
            len(examples),
            num_resamples=evaluation.num_resamples,
            confidence=evaluation.confidence,
            seed=seed,
        )
        return cls(opened, objective, split, examples, num_samples, seed, resamples)

    def sample(
        self, models: Sequence[AnalyzedModel]
    ) -> Iterator[tuple[AnalyzedModel, LanguageModel, Samples]]:
        """Each student and its rollouts, one after the other."""
        for model in models:
            student = load_analyzed(self.opened, model)
            total = len(self.examples) * self.num_samples
            with self.opened.run.reporter.meter(f"{model.label}: rollouts", total) as meter:
                samples = draw_samples(
                    self.objective,
                    student,
                    self.opened.teacher(),
                    self.examples,
                    num_samples=self.num_samples,
                    seed=self.seed,
                    max_prompt_tokens=self.opened.run.config.decoding.max_prompt_tokens,
                    advance=meter.advance,
                )
            yield model, student, samples

    def facts(self) -> dict[str, Any]:
        """The fields that all results have."""
        return {
            "run": "/".join(self.opened.run.out.resolve().parts[-2:]),
            "split": self.split,
            "seed": self.seed,
            "num_prompts": len(self.examples),
            "num_samples": self.num_samples,
            "confidence": self.resamples.confidence,
            "num_resamples": len(self.resamples.counts) - 1,
        }
