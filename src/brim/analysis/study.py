"""What both analyses do first: prompts, resamples of them, and each student's rollouts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

from brim.analysis.resampling import Resamples
from brim.analysis.sampling import Samples, check_samples, draw_samples
from brim.analysis.subjects import Subject, analysed_objective, choose_prompts, load_student
from brim.errors import ConfigError
from brim.models import LanguageModel
from brim.objectives.policy_gradient import PolicyGradient
from brim.pipeline import Pipeline
from brim.tasks import Split
from brim.types import Example


def check_ks(ks: Sequence[int]) -> Sequence[int]:
    """The K themselves.

    Raises:
        ConfigError: one is below 1.
    """
    if min(ks, default=1) < 1:
        raise ConfigError(f"k: {min(ks)} is no number of steps; give integers of at least 1")
    return ks


@dataclass(frozen=True)
class Study:
    """One objective and the same prompts for all students.

    Attributes:
        pipeline: of a run (`open_run`) or a recipe (`open_recipe`).
        objective: whose rollouts and gradients are measured.
        split: where the prompts are from.
        examples: the P prompts.
        num_samples: M, rollouts of each.
        seed: of prompts, rollouts and intervals.
        resamples: of the prompts.
    """

    pipeline: Pipeline
    objective: PolicyGradient
    split: Split
    examples: Sequence[Example]
    num_samples: int
    seed: int
    resamples: Resamples

    @classmethod
    def plan(
        cls, pipeline: Pipeline, *, split: Split, num_prompts: int, num_samples: int, seed: int
    ) -> Self:
        """Draw the prompts, and say so if there are fewer than `num_prompts`.

        Raises:
            ConfigError: the numbers do not go together.
        """
        objective, evaluation = analysed_objective(pipeline), pipeline.config.evaluation
        examples = choose_prompts(pipeline, split, num_prompts, seed)
        check_samples(
            objective, num_samples=num_samples, num_prompts=min(num_prompts, len(examples))
        )
        if len(examples) < num_prompts:
            pipeline.reporter.say(
                f"prompts: {num_prompts} asked for, but {split} has {len(examples)}; all are taken"
            )
        resamples = Resamples.draw(
            len(examples),
            num_resamples=evaluation.num_resamples,
            confidence=evaluation.confidence,
            seed=seed,
        )
        return cls(pipeline, objective, split, examples, num_samples, seed, resamples)

    def sample(
        self, subjects: Sequence[Subject]
    ) -> Iterator[tuple[Subject, LanguageModel, Samples]]:
        """Each student and its rollouts, one after the other."""
        for subject in subjects:
            student = load_student(self.pipeline, subject)
            total = len(self.examples) * self.num_samples
            with self.pipeline.reporter.meter(f"{subject.label}: rollouts", total) as meter:
                samples = draw_samples(
                    self.objective,
                    student,
                    self.pipeline.teacher,
                    self.examples,
                    num_samples=self.num_samples,
                    seed=self.seed,
                    max_prompt_tokens=self.pipeline.config.decoding.max_prompt_tokens,
                    advance=meter.advance,
                )
            yield subject, student, samples

    def facts(self) -> dict[str, Any]:
        """The fields that all results have."""
        return {
            "run": "/".join(self.pipeline.out.resolve().parts[-2:]),
            "split": self.split,
            "seed": self.seed,
            "num_prompts": len(self.examples),
            "num_samples": self.num_samples,
            "confidence": self.resamples.confidence,
            "num_resamples": len(self.resamples.counts) - 1,
        }
