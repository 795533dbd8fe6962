"""Prediction rows: what a model wrote for each example, as evaluations write and readers read it.

A row is a line of `predictions/SPLIT.jsonl`. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from brim.models import Decoding

# Completions that are written and scored together, in passes of what their tokens allow.
BLOCK = 512


@dataclass(frozen=True, slots=True)
class Completion:
    """One completion of a prompt; None where an evaluation left it out.

    Attributes:
        text: without special tokens.
        num_tokens: actions, EOS included.
        truncated: cut at the length limit.
        teacher_return: `G_1` (Eq 10) in the teacher's logits.
        token_ids: the actions.
        regrets: of each action, `max_a q - q` in the teacher's logits, to four decimals.
    """

    text: str
    num_tokens: int | None = None
    truncated: bool | None = None
    teacher_return: float | None = None
    token_ids: tuple[int, ...] = ()
    regrets: tuple[float, ...] | None = None

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Completion:
        """Return the completion of a row, or of one of its samples."""
        return cls(
            row["text"],
            row.get("num_tokens"),
            row.get("truncated"),
            row.get("teacher_return"),
            tuple(row.get("token_ids", ())),
            _tuple(row.get("regrets")),
        )


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model wrote for one example.

    Attributes:
        id, prompt, references: of the example.
        completions: what is scored: the decoded text, or all samples of a sampled evaluation.
        sampled_text, sampled_return, sampled_regrets: a sample of the policy, its return and its
            regrets, if it was drawn beside.
        statistics: of each metric the additive statistics, summed over the completions; empty
            without references.
        sampled: the completions are samples, which a row lists one by one.
    """

    id: str
    prompt: str
    references: tuple[str, ...]
    completions: tuple[Completion, ...]
    sampled_text: str | None = None
    sampled_return: float | None = None
    statistics: Mapping[str, Sequence[float]] = field(default_factory=dict)
    sampled: bool = False
    sampled_regrets: tuple[float, ...] | None = None

    @property
    def text(self) -> str:
        """The one that is shown: the first."""
        return self.completions[0].text

    @property
    def texts(self) -> tuple[str, ...]:
        """The text of each completion."""
        return tuple(completion.text for completion in self.completions)

    @property
    def num_tokens(self) -> float | None:
        """The mean over the completions; None if one does not know it."""
        return _mean([completion.num_tokens for completion in self.completions])

    @property
    def teacher_return(self) -> float | None:
        """The mean over the completions; None if one does not know it."""
        return _mean([completion.teacher_return for completion in self.completions])

    def regrets(self, name: str) -> tuple[tuple[float, ...], ...] | None:
        """Return the regrets of each text behind `return` or `expected_return`; None if unknown."""
        sampled = name == "expected_return"
        texts = [self.sampled_regrets] if sampled else [c.regrets for c in self.completions]
        known = tuple(regrets for regrets in texts if regrets)
        return known if len(known) == len(texts) else None

    def as_dict(self) -> dict[str, Any]:
        """Return the row: plain values, those of the first completion, and all of the samples."""
        first = asdict(self.completions[0])
        per_token = {name: first.pop(name) for name in ("token_ids", "regrets")}
        row = {
            "id": self.id,
            "prompt": self.prompt,
            "references": self.references,
            **first,
            "sampled_text": self.sampled_text,
            "sampled_return": self.sampled_return,
            **per_token,
            "sampled_regrets": self.sampled_regrets,
            "statistics": self.statistics,
        }
        samples = [asdict(completion) for completion in self.completions]
        return row | ({"samples": samples} if self.sampled else {})

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Prediction:
        """Return what `as_dict` was made of, also after a way through JSON.

        Rows of older versions and of other programs may lack all but the texts.
        """
        samples = row.get("samples")
        statistics = row.get("statistics") or {}
        return cls(
            id=row["id"],
            prompt=row["prompt"],
            references=tuple(row["references"]),
            completions=tuple(map(Completion.from_dict, samples or [row])),
            sampled_text=row.get("sampled_text"),
            sampled_return=row.get("sampled_return"),
            statistics={name: tuple(values) for name, values in statistics.items()},
            sampled=bool(samples),
            sampled_regrets=_tuple(row.get("sampled_regrets")),
        )


@dataclass(frozen=True, slots=True)
class Block:
    """Adjacent examples of a split, answered together.

    Attributes:
        predictions: one an example, in order.
        num_truncated_prompts: how many prompts were cut.
    """

    predictions: tuple[Prediction, ...]
    num_truncated_prompts: int


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """How a split is answered and measured: all that its predictions depend on but the models.

    Attributes:
        decoding: how the text that is scored is written.
        num_samples: completions an example; more than one only of sampled text.
        sampling: how a sample of the policy is written beside it, for the expected return.
        metrics: names in `METRICS`.
        max_prompt_tokens: longer prompts are cut.
        seed: of the sampling; a completion depends on it, on its example's position and on its own
            number only.
    """

    decoding: Decoding
    num_samples: int = 1
    sampling: Decoding | None = None
    metrics: tuple[str, ...] = ()
    max_prompt_tokens: int | None = None
    seed: int = 0

    @property
    def block(self) -> int:
        """Examples that a process answers together."""
        return max(1, BLOCK // self.num_samples)


def _tuple(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(values)


def _mean(values: Sequence[Any]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None
