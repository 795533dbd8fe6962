"""A task reward beside the teacher's returns: what a metric says of each finished text.

Torch-free, as settings are; `brim.objectives.credit` adds it to the credit of the tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from textwrap import shorten
from typing import Self

from pydantic import Field, model_validator

from brim.config.loading import Config
from brim.errors import ConfigError, DataError
from brim.examples import Example
from brim.metrics import get_metric, sentence_scores
from brim.objectives.method import MethodConfig
from brim.support.imports import find_object, is_path_of_object
from brim.support.numerals import REFERENCE_ANSWERS

_KEY = "objective.reward.metric"
_OWN = "a function of your own, MODULE:FUNCTION"


class RewardConfig(Config):
    """A metric of each finished text against its references, as a reward at its last step."""

    metric: str
    """A metric by which more is better, one text at a time and from 0 to 1: `rougeL`, `bleu`,
    `chrf`, `exact_match`, `answer_accuracy`, …; or `MODULE:FUNCTION`, a function of yours
    (docs/concepts.md), for which 0 to 1 is recommended too."""
    weight: float = Field(1.0, ge=0)
    """What a score is multiplied by before it is added to the teacher's return, whose unit is that
    of logits. The clip is of the sum (`clip.target: return`), or of the teacher's rewards alone
    (`reward`)."""

    @model_validator(mode="after")
    def _names_a_metric(self) -> Self:
        if self._is_function:
            if not is_path_of_object(self.metric):
                raise ValueError(f"metric: {self.metric} is no path of a function; write {_OWN}")
        elif not get_metric(self.metric).higher_is_better:
            raise ValueError(f"metric: less {self.metric} is better; choose another, or {_OWN}")
        return self

    @property
    def _is_function(self) -> bool:
        return ":" in self.metric

    def check(self, examples: Sequence[Example]) -> None:
        """Refuse, before any training, what cannot score completions of these examples.

        A function is tried on the first two, completed by their references.

        Raises:
            ConfigError: an example has nothing to compare with, or the function is not found.
            DataError: the function gives something other than a finite number for each text.
        """
        if self._is_function:
            some = examples[:2]
            self.score(
                [example.references[0] if example.references else "" for example in some], some
            )
            return
        read = REFERENCE_ANSWERS.get(self.metric)
        for example in examples:
            if not example.references:
                raise ConfigError(
                    f"{_KEY}: {self.metric} compares with references, and training example "
                    f"{example.id} has none; name a target column, or choose {_OWN}"
                )
            for text in example.references if read else ():
                if read and read(text) is None:
                    raise ConfigError(
                        f"{_KEY}: {self.metric} finds no answer in the reference of training "
                        f"example {example.id}, {shorten(text, 60)!r}; choose another metric, such "
                        f"as rougeL or exact_match, or {_OWN}"
                    )

    def score(self, texts: Sequence[str], examples: Sequence[Example]) -> list[float]:
        """Return the score of each text, not yet weighted.

        Args:
            texts: N completions as evaluation decodes them.
            examples: the N examples that they complete; one of several completions is repeated.

        Raises:
            ConfigError: there is no such function.
            DataError: a function gives something other than N finite numbers, or an example has
                nothing to compare with.
        """
        if not self._is_function:
            references = [example.references for example in examples]
            scores: list[float] = (sentence_scores(self.metric, texts, references) / 100).tolist()
            return scores
        found = find_object(self.metric, _KEY)(list(texts), list(examples))
        first = f"the first of example {examples[0].id}"
        try:
            if isinstance(found, str | Mapping | Set):  # their items are in no order of the texts
                raise TypeError
            scores = [float(number) for number in found]
        except (TypeError, ValueError):
            raise DataError(
                f"{_KEY}: {self.metric} gave {shorten(repr(found), 60)} for {len(texts)} texts, "
                f"{first}; return a list of numbers"
            ) from None
        if len(scores) != len(texts):
            raise DataError(
                f"{_KEY}: {self.metric} gave {len(scores)} numbers for {len(texts)} texts, "
                f"{first}; return one for each"
            )
        for number, example in zip(scores, examples, strict=True):
            if not math.isfinite(number):
                raise DataError(
                    f"{_KEY}: {self.metric} gave {number} for a text of example {example.id}; "
                    "return finite numbers"
                )
        return scores


class RewardedConfig(MethodConfig):
    """Settings of every method that learns from returns, to which a task's reward may be added."""

    reward: RewardConfig | None = None
    """A metric of the task, added to the teacher's returns at the last step of each completion;
    null for none. It is not centered, and enters each token's return whatever K is; in anchored
    advantages it is less the mean of the prompt's other completions (`num_generations` above 1),
    or of the batch's."""


def check_reward(settings: MethodConfig, examples: Sequence[Example]) -> None:
    """Check that a method's reward suits the training examples; raises as `RewardConfig.check`."""
    if isinstance(settings, RewardedConfig) and settings.reward is not None:
        settings.reward.check(examples)
