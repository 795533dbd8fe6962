"""The files of an analysis: JSON, tidy CSV, Markdown, PNG and SVG."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from brim.analysis.drawing import TAILS, draw_theorem1, draw_variance
from brim.analysis.results import (
    StudentTheorem1,
    StudentVariance,
    Theorem1Analysis,
    VarianceAnalysis,
)
from brim.analysis.sampling import Estimate
from brim.support.figures import Images
from brim.support.files import atomic_write_bytes, atomic_write_text, disk_errors, write_sealed_json

COLUMNS = ("student", "k", "tail", "quantity", "at", "value", "low", "high")


def write_analysis(analysis: VarianceAnalysis | Theorem1Analysis, out: Path) -> list[Path]:
    """Write all files into `out`, made if need be; their paths.

    `{name}.csv` has one row a number: `at` is the remaining length, distance or position where
    there is one, and empty fields are what is not defined.

    Raises:
        RunError: the folder cannot be written.
    """
    name, text, rows, images = render(analysis)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{name}.{ending}" for ending in ("md", "json", "csv", "png", "svg")]
    atomic_write_text(paths[0], text)
    write_sealed_json(paths[1], analysis.as_dict())
    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write_text(paths[2], table.getvalue())
    atomic_write_bytes(paths[3], images.png)
    atomic_write_bytes(paths[4], images.svg)
    return paths


def render(
    analysis: VarianceAnalysis | Theorem1Analysis,
) -> tuple[str, str, Iterable[dict[str, Any]], Images]:
    """Name of the files, Markdown, rows of the CSV file and the figure."""
    if isinstance(analysis, VarianceAnalysis):
        rows = (row for student in analysis.students for row in _variance_rows(student))
        return "variance", variance_text(analysis), rows, draw_variance(analysis)
    rows = (row for student in analysis.students for row in _theorem1_rows(student))
    return "theorem1", theorem1_text(analysis), rows, draw_theorem1(analysis)


def variance_text(analysis: VarianceAnalysis) -> str:
    """The tables and what follows from them, as Markdown."""
    tail = analysis.objective["tail"]
    lines = [
        f"# Variance and bias by K: {_escape(analysis.run)}",
        "",
        f"{analysis.num_prompts} prompts of the {analysis.split} split, {analysis.num_samples} "
        f"rollouts each, seed {analysis.seed}; {analysis.confidence:.0%} bootstrap intervals over "
        f"prompts. Objective {analysis.objective['name']}: "
        + ", ".join(f"{k} {v}" for k, v in analysis.objective.items() if k != "name")
        + f"; batches of {analysis.batch_prompts} prompts.",
        "",
        "## Which K?",
        "",
        *(
            f"- **{_escape(student.label)}.** {student.choice.text}"
            for student in analysis.students
        ),
        "",
        "## Students",
        "",
        *_table(
            ("student", "length", "return G₁", "reverse KL", "forward KL", "truncated"),
            (
                (student.label, *(f"{student.numbers[name]}" for name in names))
                for names in [("length", "return", "reverse_kl", "forward_kl", "truncated")]
                for student in analysis.students
            ),
        ),
    ]
    for student in analysis.students:
        lines += ["", f"## {_escape(student.label)}"]
        for each in dict.fromkeys((tail, *(row.tail for row in student.rows))):
            own = " (this run's)" if each == tail else ""
            lines += ["", f"{TAILS[each]}{own}:", "", *_returns_table(student, each), ""]
            lines += _gradient_table(student, each)
    return "\n".join([*lines, "", *_NOTES]) + "\n"


_NOTES = (
    "Ĝ₁ is the K-step return of a completion's first token: its variance is over the rollouts of a "
    "prompt, the mean over prompts. *All tokens* are pooled as in training's log. *Weight*: after "
    "clip and baseline. *Active*: share of completions longer than K.",
    "",
    "Of the gradient, each tensor scaled as Adam would by and large: tr Var of one prompt's "
    "contribution; SNR = ‖E g‖² / tr Var of a batch, unbiased and so possibly negative; cosine of "
    "E g with that of K = 1 (by unbiased estimates: noise may take it out of [-1, 1], and — is a "
    "root of a negative estimate); alignment, the root-mean-square cosine of a batch's gradient "
    "with E g of K = 1, by which K is recommended.",
)


def _returns_table(student: StudentVariance, tail: str) -> list[str]:
    names = (
        "variance_first", "bias_first", "variance_tokens", "bias_tokens", "variance_weight",
        "mean_weight",
    )  # fmt: skip
    head = (
        "K", "active", "Var Ĝ₁", "bias Ĝ₁", "Var, all tokens", "bias, all tokens", "Var weight",
        "mean weight",
    )  # fmt: skip
    return _table(
        head,
        (
            (str(row.k), f"{row.active:.0%}", *(f"{row.numbers[name]}" for name in names))
            for row in _rows_of(student, tail)
        ),
    )


def _gradient_table(student: StudentVariance, tail: str) -> list[str]:
    names = ("variance", "variance_within", "snr", "cosine", "alignment")
    return _table(
        ("K", "tr Var", "of which rollouts", "SNR of a batch", "cosine with K = 1", "alignment"),
        (
            (str(row.k), *(f"{row.numbers[f'scaled_gradient_{name}']}" for name in names))
            for row in _rows_of(student, tail)
        ),
    )


def _rows_of(student: StudentVariance, tail: str) -> list[Any]:
    return [row for row in student.rows if row.k == 1 or row.tail == tail]


def _variance_rows(student: StudentVariance) -> Iterable[dict[str, Any]]:
    for name, estimate in student.numbers.items():
        yield {"student": student.label, "quantity": name, **_numbers(estimate)}
    for row in student.rows:
        where = {"student": student.label, "k": row.k, "tail": row.tail}
        yield {**where, "quantity": "active", "value": row.active}
        for name, estimate in row.numbers.items():
            yield {**where, "quantity": name, **_numbers(estimate)}


def theorem1_text(analysis: Theorem1Analysis) -> str:
    """The tables and what follows from them, as Markdown."""
    lines = [
        f"# Theorem 1 against measurement: {_escape(analysis.run)}",
        "",
        f"{analysis.num_prompts} prompts of the {analysis.split} split, {analysis.num_samples} "
        f"rollouts each, seed {analysis.seed}, q_centering {analysis.q_centering}; "
        f"{analysis.confidence:.0%} bootstrap intervals over prompts. The law: Var Ĝ_t = "
        "c (⌊(n-t)/K⌋ + 1), without a tail, for independent steps that are alike.",
    ]
    for student in analysis.students:
        lines += ["", f"## {_escape(student.label)}", "", student.verdict, ""]
        lines += _table(
            ("K", "c", "R²", "a", "b", "R² of a + b m", "Var Ĝ / Var G", "by the law", "ratio"),
            (
                (
                    str(fit.k),
                    *(f"{x}" for x in (fit.c, fit.c_r2, fit.a, fit.b, fit.refined_r2)),
                    *(f"{x}" for x in (fit.growth, fit.predicted, fit.ratio)),
                )
                for fit in student.fits
            ),
        )
        lines += ["", *_table(
            ("number", "over all tokens"),
            ((name, f"{value}") for name, value in student.constants.items()),
        )]  # fmt: skip
        lines += ["", *_table(
            ("distance", "pairs", "correlation of regrets", "of rewards"),
            (
                (str(row["distance"]), str(row["tokens"]), f"{row['regret']}", f"{row['reward']}")
                for row in student.correlations
            ),
        )]  # fmt: skip
    return "\n".join(lines) + "\n"


def _theorem1_rows(student: StudentTheorem1) -> Iterable[dict[str, Any]]:
    where = {"student": student.label}
    for name, estimate in student.constants.items():
        yield {**where, "quantity": name, **_numbers(estimate)}
    for fit in student.fits:
        for name in ("c", "c_r2", "a", "b", "refined_r2", "growth", "predicted", "ratio"):
            yield {**where, "k": fit.k, "tail": "none", "quantity": name,
                   **_numbers(getattr(fit, name))}  # fmt: skip
    for row in student.lengths:
        for k, value in row["variance"].items():
            yield {**where, "k": k, "tail": "none", "quantity": "variance",
                   "at": row["remaining"], "value": value}  # fmt: skip
    for row in student.correlations:
        for name in ("reward", "regret"):
            yield {**where, "quantity": f"correlation_{name}", "at": row["distance"],
                   **_numbers(row[name])}  # fmt: skip
    for row in student.positions:
        for name in ("mean_regret", "var_regret", "mean_taken", "var_taken"):
            yield {**where, "quantity": name, "at": row["position"], "value": row[name]}


def _numbers(estimate: Estimate) -> dict[str, Any]:
    return {name: "" if x is None else x for name, x in estimate.as_dict().items()}


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(_escape(cell) for cell in line) + " |" for line in lines]


def _escape(text: str) -> str:
    """A label in Markdown: nothing of it is markup."""
    for character in "\\|*_<>`":
        text = text.replace(character, f"\\{character}")
    return text.replace("\n", " ")
