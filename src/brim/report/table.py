"""The table of results, as text for a terminal, Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brim.metrics import Score, paired_difference
from brim.report.evidence import Evidence
from brim.support.tables import markdown_table
from brim.training.predictions import Prediction

ABSENT = "—"
DIGITS = {"expected_return": 2, "return": 2}  # others have one: metrics go from 0 to 100


@dataclass(frozen=True, slots=True)
class Row:
    """One system.

    Attributes:
        label: of the system.
        scores: those of `Table.columns` that the system has.
        difference: mean over the examples of its return (`Table.compared`) minus the baseline's;
            None for the baseline itself, and where one of the two has no returns.
        num_parameters: of the model.
        seconds: spent in training steps, where the directory knows.
    """

    label: str
    scores: Mapping[str, Score]
    difference: Score | None
    num_parameters: int | None
    seconds: float | None

    @property
    def verdict(self) -> str:
        """Whether the interval of the difference leaves out zero."""
        if self.difference is None:
            return ABSENT
        beyond = self.difference.low > 0 or self.difference.high < 0
        return "beyond the interval" if beyond else "within the interval"


@dataclass(frozen=True, slots=True)
class Table:
    """All systems.

    Attributes:
        columns: the scores that are shown: the chosen metric, returns and `length` if known.
        rows: one a system.
        compared: which return the differences are of: the expected one, if all systems have it.
        baseline: label of the system that differences are taken against.
        split: of the data.
        num_examples: in the split.
        confidence: of every interval.
    """

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    compared: str
    baseline: str
    split: str
    num_examples: int
    confidence: float

    @property
    def names(self) -> dict[str, str]:
        """The printed name of each column."""
        return {
            column: next(row.scores[column].name for row in self.rows if column in row.scores)
            for column in self.columns
        }

    @property
    def difference_name(self) -> str:
        """Heading of the differences."""
        return f"{self.compared.replace('_', ' ')} minus {self.baseline}'s"

    @property
    def has_differences(self) -> bool:
        """Whether there is a system to compare with the baseline."""
        return any(row.difference for row in self.rows)

    def cells(self) -> list[list[str]]:
        """Headings and rows as text, the differences left out."""
        headings = ["system", *self.names.values(), "parameters", "train seconds"]
        return [headings, *([row.label, *self._numbers(row)] for row in self.rows)]

    def _numbers(self, row: Row) -> list[str]:
        return [
            *(with_interval(row.scores.get(c), DIGITS.get(c, 1)) for c in self.columns),
            ABSENT if row.num_parameters is None else f"{row.num_parameters:,}",
            ABSENT if row.seconds is None else f"{row.seconds:,.0f}",
        ]

    def as_text(self) -> str:
        """Aligned columns for a terminal; the differences below, so that it is not too wide."""
        lines = [
            f"{self.split} split, {self.num_examples:,} examples, {percent(self.confidence)} "
            "intervals",
            *align(self.cells(), numbers=range(1, 2 + len(self.columns) + 1)),
        ]
        if self.has_differences:
            differences = [
                [row.label, with_interval(row.difference, 2, sign="+"), row.verdict]
                for row in self.rows
                if row.difference is not None
            ]
            lines += [
                "",
                f"{self.difference_name}, paired by example",
                *align(differences, numbers=[1]),
            ]
        return "\n".join(lines)

    def as_markdown(self) -> str:
        """One table, and a line that says what its numbers are."""
        headings, *rows = self.cells()
        if self.has_differences:
            headings[-2:-2] = [self.difference_name, "paired difference"]
            for cells, row in zip(rows, self.rows, strict=True):
                cells[-2:-2] = [with_interval(row.difference, 2, sign="+"), row.verdict]
        caption = (
            f"{self.split} split, {self.num_examples:,} examples; {percent(self.confidence)} "
            "bootstrap intervals over examples."
        )
        return f"{markdown_table([headings, *rows])}\n{caption}\n"

    def as_csv(self) -> str:
        """One line a system, numbers unrounded; a cell is empty where there is no number."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        scores = [*self.columns, "return_difference"]
        writer.writerow(
            [
                "system",
                *(f"{name}{end}" for name in scores for end in ("", "_low", "_high")),
                "verdict",
                "num_parameters",
                "train_seconds",
                "num_examples",
                "confidence",
            ]
        )
        for row in self.rows:
            found = [*(row.scores.get(column) for column in self.columns), row.difference]
            writer.writerow(
                [
                    row.label,
                    *(n for s in found for n in ((s.value, s.low, s.high) if s else ("", "", ""))),
                    row.verdict if row.difference else "",
                    row.num_parameters,
                    row.seconds,
                    self.num_examples,
                    self.confidence,
                ]
            )
        return text.getvalue()


def build_table(evidence: Sequence[Evidence], *, metric: str, baseline: str, split: str) -> Table:
    """The table of these systems; `baseline` is the label of one of them."""
    wanted = dict.fromkeys([metric, "expected_return", "return", "length"])
    columns = tuple(c for c in wanted if any(c in system.scores for system in evidence))
    confidence = evidence[0].scores[metric].confidence
    expected = all("expected_return" in system.scores for system in evidence)
    compared = "expected_return" if expected else "return"
    base = next(system.predictions for system in evidence if system.label == baseline)
    rows = [
        Row(
            label=system.label,
            scores={column: system.scores[column] for column in columns if column in system.scores},
            difference=None
            if system.label == baseline
            else _return_difference(system.predictions, base, compared, confidence),
            num_parameters=system.results.get("num_parameters"),
            seconds=system.results.get("seconds"),
        )
        for system in evidence
    ]
    return Table(columns, tuple(rows), compared, baseline, split, len(base), confidence)


def _return_difference(
    predictions: Sequence[Prediction],
    base: Sequence[Prediction],
    compared: str,
    confidence: float,
) -> Score | None:
    ours, theirs = _returns(predictions, compared), _returns(base, compared)
    if len(ours) < len(predictions) or len(theirs) < len(base):
        return None
    return paired_difference(ours, theirs, name="return difference", confidence=confidence)


def _returns(predictions: Sequence[Prediction], compared: str) -> list[float]:
    sampled = compared == "expected_return"
    returns = [p.sampled_return if sampled else p.teacher_return for p in predictions]
    return [value for value in returns if value is not None]


def summary(results: Mapping[str, Any]) -> str:
    """The results of one split, as `evaluate_model` returns them, for a terminal.

    Each score has its interval and its signature, which says what the number depends on.
    """
    scores = [Score(**fields) for fields in results["scores"].values()]
    confidence = f", {percent(scores[0].confidence)} intervals" if scores else ""
    rows = [
        [s.name, details(s, DIGITS.get(name, 1)), s.signature]
        for name, s in zip(results["scores"], scores, strict=True)
    ]
    prompts, completions = results["num_truncated_prompts"], results["num_truncated_completions"]
    facts = [
        ["truncated", f"{prompts:,} prompts, {completions:,} completions"],
        ["parameters", f"{results['num_parameters']:,}"],
    ]
    if "seconds" in results:
        steps = f"{results['steps']:,} steps in {results['seconds']:,.0f} s"
        facts.append(["training", f"{steps}, best at step {results['best_step']:,}"])
    heading = f"{results['split']} split, {results['num_examples']:,} examples{confidence}"
    return "\n".join([heading, *align([*rows, *facts])])


def details(score: Score | None, digits: int) -> str:
    """`with_interval`, and the further numbers of the metric behind it."""
    extra = score.details.items() if score else ()
    further = [f"{name.replace('_', ' ')} {value:.3g}" for name, value in extra]
    return ", ".join([with_interval(score, digits), *further])


def with_interval(score: Score | None, digits: int, sign: str = "-") -> str:
    """`value [low, high]`, or a dash where there is no score."""
    if score is None:
        return ABSENT
    value, low, high = (f"{x:{sign}z.{digits}f}" for x in (score.value, score.low, score.high))
    return f"{value} [{low}, {high}]"


def percent(confidence: float) -> str:
    """0.95 -> `95 %`."""
    return f"{100 * confidence:.4g} %"


def align(rows: Sequence[Sequence[str]], *, numbers: Container[int] = ()) -> list[str]:
    """Lines with two spaces between columns; the columns `numbers` are set to the right."""
    widths: dict[int, int] = {}
    for row in rows:
        for i, cell in enumerate(row):
            widths[i] = max(widths.get(i, 0), len(cell))

    def padded(i: int, cell: str) -> str:
        return cell.rjust(widths[i]) if i in numbers else cell.ljust(widths[i])

    return ["  ".join(padded(i, cell) for i, cell in enumerate(row)).rstrip() for row in rows]
