"""A comparison as text for a terminal, Markdown, and files."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from brim.compare.seeds import SeedComparison, SeedMetric
from brim.compare.sentences import Comparison, MetricComparison, Sentence
from brim.metrics import Score
from brim.metrics.bootstrap import FEW
from brim.support.files import atomic_write_json, atomic_write_text, disk_errors
from brim.support.tables import (
    ABSENT,
    DIGITS,
    align,
    as_markdown,
    as_text,
    escape_markdown,
    interval_text,
    many,
    mean_text,
    p_text,
    percent,
    plain_table,
)

_LONGEST = 400  # characters of a text in a terminal; Markdown and JSON have all of it
_MOST_DIGITS = 8  # of a difference
# These turn the direction of what follows, and so can show another text than there is.
_BIDIRECTIONAL = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")

Rows = list[list[str]]
"""Of a table; the first one is its head."""


def printable(text: str) -> str:
    r"""Return a text on one line whose control characters are written out, such as `\n` and `\x1b`.

    A model can write escape sequences, which a terminal would obey.
    """
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
        or _BIDIRECTIONAL.match(character)
        else character
        for character in text
    )


def comparison_text(comparison: Comparison | SeedComparison) -> str:
    """Return text for a terminal: no line of it holds a control character."""
    lines = [f"A  {printable(comparison.a)}", f"B  {printable(comparison.b)}"]
    lines += [printable(line) for line in _facts(comparison)]
    for table in _tables(comparison):
        lines += ["", as_text(plain_table(table))]
    lines += ["", *_remarks(comparison)]
    if isinstance(comparison, Comparison):
        for title, sentences in _directions(comparison):
            lines += ["", title]
            for number, sentence in enumerate(sentences, start=1):
                rows = [
                    [f"{number}." if i == 0 else "", name, _short(text)]
                    for i, (name, text) in enumerate(_texts(comparison, sentence))
                ]
                lines += ["", *align(rows)]
    return "\n".join(lines)


def comparison_markdown(comparison: Comparison | SeedComparison) -> str:
    """Return a page in Markdown; the texts are shown as they are, whole."""
    parts = ["# A against B\n"]
    systems = [("", "directory"), ("A", comparison.a), ("B", comparison.b)]
    parts.append(_markdown(systems))
    parts += [f"{escape_markdown(_visible(line))}\n" for line in _facts(comparison)]
    parts += [_markdown(table) for table in _tables(comparison)]
    parts += [f"{escape_markdown(line)}\n" for line in _remarks(comparison)]
    if isinstance(comparison, Comparison):
        for title, sentences in _directions(comparison):
            parts.append(f"## {escape_markdown(title)}\n")
            for number, sentence in enumerate(sentences, start=1):
                parts.append(f"### {number}. {escape_markdown(printable(sentence.id))}\n")
                parts.append(_markdown([("", "text"), *_texts(comparison, sentence)[1:]]))
    signatures = [("score", "signature")]
    for metric in comparison.metrics.values():
        signatures += [(_name(metric), signature) for signature in _signatures(metric)]
    return "\n".join([*parts, "## Signatures\n", _markdown(signatures)])


def write_comparison(comparison: Comparison | SeedComparison, out: Path) -> None:
    """Write `comparison.md` and `comparison.json` into a folder, made if need be.

    Raises:
        RunError: the folder cannot be written.
    """
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    atomic_write_text(out / "comparison.md", comparison_markdown(comparison))
    atomic_write_json(out / "comparison.json", comparison.as_dict())


def _facts(comparison: Comparison | SeedComparison) -> list[str]:
    """What was compared, and what was not."""
    confidence = percent(comparison.confidence)
    if isinstance(comparison, Comparison):
        what = (
            f"{comparison.split} split, {many(comparison.num_examples, 'example')}, the same text "
            f"for {comparison.num_same:,}; {confidence} intervals, {comparison.num_resamples:,} "
            f"resamples, seed {comparison.seed}"
        )
        unpaired: Mapping[str, str] = {}
        stopped = comparison.stopped_at
    else:
        what = (
            f"{comparison.split} split, {many(len(comparison.seeds), 'seed')}: "
            f"{', '.join(comparison.seeds)}; {confidence} intervals"
        )
        unpaired, stopped = comparison.unpaired, {}
    sides = zip("AB", comparison.decodings or (), strict=False)
    decodings = "; ".join(f"{side} {decoding}" for side, decoding in sides)
    return [
        what,
        *(f"{side.upper()}: its training had not ended ({stop})" for side, stop in stopped.items()),
        *([f"decoded differently: {decodings}"] if decodings else []),
        *(f"left out: seed {seed}: {reason}" for seed, reason in unpaired.items()),
        *(f"left out: {name}: {reason}" for name, reason in comparison.left_out.items()),
    ]


def _tables(comparison: Comparison | SeedComparison) -> list[Rows]:
    if isinstance(comparison, SeedComparison):
        return _seed_tables(comparison)
    scores: Rows = [["", "A", "B", "A minus B", "better"]]
    tests: Rows = [
        [
            *("p-values", "randomization", "bootstrap", "sign test"),
            *("A better", "even", "B better", "could see"),
        ]
    ]
    for name, metric in comparison.metrics.items():
        digits, count = DIGITS.get(name, 1), metric.sentences
        scores.append(
            [
                _name(metric),
                _score(metric.a, digits),
                _score(metric.b, digits),
                _interval(metric.difference, metric.low, metric.high, digits + 1),
                _verdict(metric, metric.difference, metric.randomization_p, comparison.confidence),
            ]
        )
        p_values = (metric.randomization_p, metric.bootstrap_p, count.p_value)
        counts = (count.wins, count.ties, count.losses)
        detectable = _detectable(metric.detectable, digits + 1)
        numbers = [*map(p_text, p_values), *(f"{n:,}" for n in counts), detectable]
        tests.append([metric.a.name, *numbers])
    return [scores, tests]


def _seed_tables(comparison: SeedComparison) -> list[Rows]:
    table: Rows = [["", "A", "B", "A minus B", "could see", "p", "effect size", "better"]]
    values: Rows = [["by seed", "", *comparison.seeds]]
    for name, metric in comparison.metrics.items():
        digits, test = DIGITS.get(name, 1), metric.test
        table.append(
            [
                _name(metric),
                mean_text(metric.mean_a, metric.sd_a, digits=digits),
                mean_text(metric.mean_b, metric.sd_b, digits=digits),
                _interval(test.difference, test.low, test.high, digits + 1),
                _detectable(test.detectable, digits + 1),
                p_text(test.p_value),
                ABSENT if test.effect_size is None else f"{test.effect_size:+.2f}",
                _verdict(metric, test.difference, test.p_value, comparison.confidence),
            ]
        )
        for side, numbers in (("A", metric.values_a), ("B", metric.values_b)):
            label = metric.label if side == "A" else ""
            values.append([label, side, *(f"{value:.{digits}f}" for value in numbers)])
    return [table, values]


def _remarks(comparison: Comparison | SeedComparison) -> list[str]:
    """What the columns are."""
    chance = f"{1 - comparison.confidence:.4g}"
    could_see = "could see: the true difference that such a test finds in 80 % of cases."
    if isinstance(comparison, SeedComparison):
        return [
            "A, B: mean ± standard deviation over the seeds. p: two-sided paired t-test.",
            could_see,
            "effect size: mean of the differences over their standard deviation.",
            f"better: p below {chance}.",
        ]
    longer = "; of length: longer" if "length" in comparison.metrics else ""
    few = f"Fewer than {FEW} examples: intervals and bootstrap p are of a t-test (jackknife)."
    return [
        *([few] if comparison.num_examples < FEW else []),
        could_see,
        f"better: p of approximate randomization below {chance}.",
        f"A better, even, B better: number of sentences{longer}.",
    ]


def _directions(comparison: Comparison) -> list[tuple[str, Sequence[Sentence]]]:
    name, metric = next(iter(comparison.metrics.items()))
    more = "longer" if name == "length" else f"ahead by {metric.a.name}"
    sides = (
        ("A", comparison.better_a, metric.sentences.wins),
        ("B", comparison.better_b, metric.sentences.losses),
    )
    return [
        (f"Where {side} is most {more} ({len(sentences)} of {count:,})", sentences)
        for side, sentences, count in sides
        if sentences
    ]


def _texts(comparison: Comparison, sentence: Sentence) -> list[tuple[str, str]]:
    return [
        ("id", sentence.id),
        ("prompt", sentence.prompt),
        *(("reference", reference) for reference in sentence.references),
        ("A", sentence.a),
        ("", _numbers(comparison, sentence.scores_a)),
        ("B", sentence.b),
        ("", _numbers(comparison, sentence.scores_b)),
    ]


def _numbers(comparison: Comparison, scores: Mapping[str, float]) -> str:
    return ", ".join(
        f"{comparison.metrics[name].a.name} {value:.{_digits(name)}f}"
        for name, value in scores.items()
    )


def _digits(name: str) -> int:
    """Of the number of one text."""
    return 0 if name == "length" else DIGITS.get(name, 1)


def _name(metric: MetricComparison | SeedMetric) -> str:
    label = metric.a.name if isinstance(metric, MetricComparison) else metric.label
    return f"{label} (lower is better)" if metric.higher_is_better is False else label


def _signatures(metric: MetricComparison | SeedMetric) -> list[str]:
    """One, or A's and B's."""
    if isinstance(metric, SeedMetric):
        return [metric.signature]
    return list(dict.fromkeys([metric.a.signature, metric.b.signature]))


def _verdict(
    metric: MetricComparison | SeedMetric,
    difference: float,
    p_value: float | None,
    confidence: float,
) -> str:
    if metric.higher_is_better is None or p_value is None:
        return ABSENT
    if p_value >= 1 - confidence:
        return ABSENT if round(difference, _MOST_DIGITS) else "tie"
    return "A" if (difference > 0) == metric.higher_is_better else "B"


def _interval(value: float, low: float | None, high: float | None, digits: int) -> str:
    # What is not zero does not look like it, unless it is rounding.
    shown = (more for more in range(digits, _MOST_DIGITS) if round(value, more))
    digits = next(shown, digits)
    return interval_text(value, low, high, spec=f"+z.{digits}f")


def _detectable(difference: float | None, digits: int) -> str:
    return ABSENT if difference is None else f"{difference:.{digits}f}"


def _score(score: Score, digits: int) -> str:
    return interval_text(score.value, score.low, score.high, spec=f"z.{digits}f")


def _short(text: str) -> str:
    text = printable(text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _visible(text: str) -> str:
    """`printable`, with line breaks as they are, which Markdown shows."""
    return "\n".join(map(printable, text.replace("\r\n", "\n").split("\n")))


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    return as_markdown(plain_table([[_visible(cell) for cell in row] for row in rows]))
