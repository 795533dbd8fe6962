"""What a return does not say: regret per token, and the return of texts of a common length.

The regret of a token is `d = max_a q(s, a) − q(s, token) ≥ 0`, and a return is the best value of
the first state less the sum of the regrets. So a shorter text has the higher return: these numbers
tell whether it is better token for token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from brim.metrics.base import Score

# By the key of a return, those of its companions: of greedy text, and of sampled text.
REGRETS = {"return": "regret_per_token", "expected_return": "expected_regret_per_token"}
CUT_RETURNS = {"return": "cut_return", "expected_return": "expected_cut_return"}
# By the key of a return or a companion, the return that it goes with.
RETURN_OF = {key: name for keys in (REGRETS, CUT_RETURNS) for name, key in keys.items()}
RETURN_OF |= {name: name for name in REGRETS}

Texts: TypeAlias = Sequence[Sequence[float]]
"""Of the texts that were written for one example, the regret of each token."""


def regret_and_length(texts: Texts) -> tuple[float, float]:
    """Return the sum of the regrets of a text and its number of tokens, means over the texts."""
    number = len(texts)
    return sum(map(sum, texts)) / number, sum(map(len, texts)) / number


def regret_behind(texts: Texts, length: int) -> float:
    """Return the regrets behind the first `length` tokens: what a return gains by the cut there."""
    return sum(sum(regrets[length:]) for regrets in texts) / len(texts)


def mean_regrets(examples: Iterable[Texts]) -> list[float]:
    """Return by position the mean regret over examples; a text that has ended has none.

    The mean of `regret_behind` is the sum of this list behind `length`, but for its rounding to six
    digits.
    """
    total, count = np.zeros(0), 0
    for texts in examples:
        count += 1
        for regrets in texts:
            if len(regrets) > len(total):
                total = np.pad(total, (0, len(regrets) - len(total)))
            total[: len(regrets)] += np.asarray(regrets) / len(texts)
    return [float(f"{value:.6g}") for value in total / max(count, 1)]


def common_length(medians: Iterable[float]) -> int:
    """Return the length at which returns are compared, from the median length of each system.

    The smallest of them: at least half of each system's texts are as long.
    """
    return max(int(min(medians)), 1)


def length_common_to(
    systems: Iterable[Sequence[tuple[Mapping[str, Score], Mapping[str, Any]]]],
) -> int | None:
    """Return the length at which the returns of several systems are compared.

    Args:
        systems: of each its runs: their scores, and the facts of `results.json`, of which
            `mean_regrets` counts. The length of a system is the median over its runs.

    Returns:
        None where none knows any regrets, being older.
    """
    lengths = []
    for runs in systems:
        medians = [median_length(scores) for scores, facts in runs if facts.get("mean_regrets")]
        if known := [median for median in medians if median is not None]:
            lengths.append(float(np.median(known)))
    return common_length(lengths) if lengths else None


def median_length(scores: Mapping[str, Score]) -> float | None:
    """Return the median number of tokens of the texts that were scored; None of old results."""
    length = scores.get("length")
    return None if length is None else length.details.get("median")


def cut_label(name: str, length: int) -> str:
    """Return the printed name of the cut return that goes with `return` or `expected_return`."""
    return f"{name.replace('_', ' ')}, first {length} tokens"


def with_cut_returns(
    scores: Mapping[str, Score], facts: Mapping[str, Any], length: int | None
) -> dict[str, Score]:
    """Return the scores, each return followed by that of the texts cut at `length`.

    Args:
        scores: by key.
        facts: of `results.json`: by the key of a return its `mean_regrets`; a return without them
            is not cut.
        length: tokens that are left; None to cut nothing.
    """
    if length is None:
        return dict(scores)
    found: dict[str, Score] = {}
    regrets = facts.get("mean_regrets") or {}
    for key, score in scores.items():
        found[key] = score
        if key in CUT_RETURNS and key in regrets:
            found[CUT_RETURNS[key]] = Score(
                name=cut_label(key, length),
                value=score.value + sum(regrets[key][length:]),
                low=None,
                high=None,
                confidence=score.confidence,
                signature=f"{score.signature}|first:{length}",
                higher_is_better=True,
                num_examples=score.num_examples,
            )
    return found
