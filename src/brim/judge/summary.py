"""From the replies about many pairs to a win rate with its interval, and what is wrong with it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

from brim.judge.prompts import VARIANTS, Variant, Verdict
from brim.metrics import sign_test

# A bias is flagged where chance alone would show one as large this seldom.
BIAS_LEVEL = 0.01

Answers = Sequence[Verdict | None]
"""What the judge said to each of `VARIANTS` about one pair; None where there is no reply."""


@dataclass(frozen=True, slots=True)
class Bias:
    """How often the judge preferred a place, whatever stood there.

    Attributes:
        rate: share of the verdicts for one text that went to the place; None without any. Half,
            without a bias: each text is there in two of the four queries.
        p_value: two-sided sign test over the pairs that lean to either side.
        biased: the p-value is below `BIAS_LEVEL`.
    """

    rate: float | None
    p_value: float
    biased: bool


@dataclass(frozen=True, slots=True)
class Disagreement:
    """How often a swap that should not matter changed the verdict.

    Attributes:
        rate: `changed / compared`; None where nothing was compared.
        changed, compared: couples of queries that differ in the swap alone.
    """

    rate: float | None
    changed: int
    compared: int


@dataclass(frozen=True, slots=True)
class Summary:
    """What the judge thinks of system a against system b by one criterion.

    A pair's score is the mean over its four queries: 1 where a won, 0 where b did, ½ for a tie. A
    pair counts once all four have a verdict (a pair of equal texts is ½ without being asked), so
    that in each pair every text stood in both places under both IDs: preferring a place comes to ½.

    Attributes:
        win_rate: mean score of the pairs; None where none that was asked about counts, for equal
            texts alone say nothing of the systems.
        low, high: Wilson interval of it with n = `num_pairs`. The four queries about a pair are no
            independent trials, pairs are; and no score in [0, 1] varies more than a trial that is
            won or lost, so that the interval is not too narrow.
        confidence: of the interval.
        num_pairs: that count.
        num_identical: of these, pairs of equal texts.
        num_incomplete: pairs with a query that has no verdict; they count for nothing.
        pairs_won, pairs_lost: all four queries for a, for b.
        pairs_split: all others, those of equal texts among them.
        p_value: two-sided sign test over the pairs with a score other than ½.
        query_win_rate: share of a's wins in all queries with a verdict, ties being half a win; the
            paper reports this plain fraction of queries.
        wins, losses, ties, refusals, unparsable: of a, by query; of asked pairs.
        unanswered: queries without a reply, to be asked by the next start.
        by_order, by_id: the swap of the order alone, and of the IDs alone.
        first_position: the place of the text that is listed first.
        id_a: the place of the text that goes by the ID A.
    """

    win_rate: float | None
    low: float | None
    high: float | None
    confidence: float
    num_pairs: int
    num_identical: int
    num_incomplete: int
    pairs_won: int
    pairs_lost: int
    pairs_split: int
    p_value: float
    query_win_rate: float | None
    wins: int
    losses: int
    ties: int
    refusals: int
    unparsable: int
    unanswered: int
    by_order: Disagreement
    by_id: Disagreement
    first_position: Bias
    id_a: Bias

    @property
    def position_biased(self) -> bool:
        """Whether the judge prefers what is listed first, or what is listed second."""
        return self.first_position.biased

    @property
    def id_biased(self) -> bool:
        """Whether the judge prefers what is called A, or what is called B."""
        return self.id_a.biased

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        flags = {"position_biased": self.position_biased, "id_biased": self.id_biased}
        return {**asdict(self), **flags}


def pair_score(answers: Answers) -> float | None:
    """Return the mean of system a's four scores; None where a query has no verdict."""
    scores = [score for score in _scores(answers) if score is not None]
    return sum(scores) / len(scores) if len(scores) == len(answers) else None


def summarize(
    pairs: Sequence[Answers], *, num_identical: int = 0, confidence: float = 0.95
) -> Summary:
    """Count verdicts about each asked pair; equal texts (`num_identical`) are not asked about."""
    scored = [(pair_score(answers), answers) for answers in pairs]
    complete = [answers for score, answers in scored if score is not None]
    scores = [score for score, _ in scored if score is not None]
    num_pairs = len(scores) + num_identical
    low = high = win_rate = None
    if scores:
        win_rate = (math.fsum(scores) + num_identical / 2) / num_pairs
        low, high = wilson(win_rate, num_pairs, confidence)
    by_query = Counter(score for answers in pairs for score in _scores(answers))
    verdicts = Counter(verdict for answers in pairs for verdict in answers)
    wins, ties, losses = by_query[1.0], by_query[0.5], by_query[0.0]
    num_decided = wins + ties + losses
    won, lost = scores.count(1.0), scores.count(0.0)
    return Summary(
        win_rate=win_rate,
        low=low,
        high=high,
        confidence=confidence,
        num_pairs=num_pairs,
        num_identical=num_identical,
        num_incomplete=len(pairs) - len(complete),
        pairs_won=won,
        pairs_lost=lost,
        pairs_split=num_pairs - won - lost,
        p_value=_sign_test(score - 0.5 for score in scores),
        query_win_rate=(wins + ties / 2) / num_decided if num_decided else None,
        wins=wins,
        losses=losses,
        ties=ties,
        refusals=verdicts[Verdict.REFUSAL],
        unparsable=verdicts[Verdict.UNPARSABLE],
        unanswered=verdicts[None],
        by_order=_disagreement(pairs, ((0, 2), (1, 3))),
        by_id=_disagreement(pairs, ((0, 1), (2, 3))),
        first_position=_bias(complete, lambda variant: variant.ids[0]),
        id_a=_bias(complete, lambda variant: "A"),
    )


def wilson(rate: float, n: int, confidence: float) -> tuple[float, float]:
    """Return Wilson's score interval of a share of n trials (Wilson 1927)."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    middle = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _scores(answers: Answers) -> list[float | None]:
    return [variant.score(verdict) for variant, verdict in zip(VARIANTS, answers, strict=True)]


def _sign_test(differences: Iterable[float]) -> float:
    signs = [difference > 0 for difference in differences if difference]
    return sign_test(sum(signs), len(signs) - sum(signs))


def _disagreement(pairs: Sequence[Answers], couples: Sequence[tuple[int, int]]) -> Disagreement:
    compared = [
        (scores[i], scores[j])
        for scores in map(_scores, pairs)
        for i, j in couples
        if scores[i] is not None and scores[j] is not None
    ]
    changed = sum(one != other for one, other in compared)
    return Disagreement(changed / len(compared) if compared else None, changed, len(compared))


def _bias(pairs: Sequence[Answers], place: Callable[[Variant], str]) -> Bias:
    """Of the text under the ID that `place` names; pairs are the independent trials here too."""
    leans = []
    chosen = total = 0
    for answers in pairs:
        decided = [
            verdict.value == place(variant)
            for variant, verdict in zip(VARIANTS, answers, strict=True)
            if verdict in (Verdict.A, Verdict.B)
        ]
        chosen, total = chosen + sum(decided), total + len(decided)
        leans.append(2 * sum(decided) - len(decided))
    p_value = _sign_test(leans)
    return Bias(chosen / total if total else None, p_value, p_value < BIAS_LEVEL)
