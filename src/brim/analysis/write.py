"""The files of an analysis: JSON, tidy CSV, Markdown, PNG and SVG."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from brim.analysis.choice import SYMBOLS
from brim.analysis.drawing import TAILS, draw_theorem1, draw_variance
from brim.analysis.results import (
    Row,
    StudentTheorem1,
    StudentVariance,
    Theorem1Analysis,
    VarianceAnalysis,
)
from brim.analysis.sampling import Estimate
from brim.support.files import atomic_write_bytes, atomic_write_text, disk_errors, write_sealed_json
from brim.support.tables import as_csv, as_markdown, escape_markdown, plain_table

COLUMNS = ("student", "k", "lambda", "tail", "quantity", "at", "value", "low", "high")


def write_analysis(analysis: VarianceAnalysis | Theorem1Analysis, out: Path) -> list[Path]:
    """Write all files into `out`, made if need be; their paths.

    `{name}.csv` has one row a number: `at` is the remaining length, distance or position where
    there is one, and empty fields are what is not defined.

    Raises:
        RunError: the folder cannot be written.
    """
    rows: list[dict[str, Any]]
    if isinstance(analysis, VarianceAnalysis):
        name, text, images = "variance", variance_text(analysis), draw_variance(analysis)
        rows = [row for student in analysis.students for row in _variance_rows(student)]
    else:
        name, text, images = "theorem1", theorem1_text(analysis), draw_theorem1(analysis)
        rows = [row for student in analysis.students for row in _theorem1_rows(student)]
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{name}.{ending}" for ending in ("md", "json", "csv", "png", "svg")]
    atomic_write_text(paths[0], text)
    write_sealed_json(paths[1], analysis.as_dict())
    atomic_write_text(paths[2], as_csv([dict.fromkeys(COLUMNS, "") | row for row in rows]))
    atomic_write_bytes(paths[3], images.png)
    atomic_write_bytes(paths[4], images.svg)
    return paths


_STUDENTS = {
    "length": "length",
    "return G₁": "return",
    "reverse KL": "reverse_kl",
    "forward KL": "forward_kl",
    "truncated": "truncated",
}
_WEIGHTS = {"Var weight": "variance_weight", "mean weight": "mean_weight"}
_RETURNS = {
    "Var Ĝ₁": "variance_first",
    "bias Ĝ₁": "bias_first",
    "Var, all tokens": "variance_tokens",
    "bias, all tokens": "bias_tokens",
    **_WEIGHTS,
}
_GRADIENT = {
    "tr Var": "scaled_gradient_variance",
    "of which rollouts": "scaled_gradient_variance_within",
    "SNR of a batch": "scaled_gradient_snr",
    "cosine with {} = 1": "scaled_gradient_cosine",
    "alignment": "scaled_gradient_alignment",
}
_OF_RETURNS = (
    "Ĝ₁ is the K-step return of a completion's first token: its variance is over the rollouts of a "
    "prompt, the mean over prompts. *All tokens* are pooled as in training's log. *Weight*: after "
    "clip and baseline. *Active*: share of completions longer than K. A K marked LLMR is that for "
    "most completions.\n"
)
_OF_GRADIENTS = (
    "Of the gradient, each tensor scaled as Adam would by and large: tr Var of one prompt's "
    "contribution; SNR = ‖E g‖² / tr Var of a batch, unbiased and so possibly negative; cosine of "
    "E g with that of {0} = 1 (— is a root of a negative estimate, and of what has a † noise took "
    "the estimate out of [-1, 1]: the nearer end is given); alignment, the root-mean-square cosine "
    "of a batch's gradient with E g of {0} = 1, by which {0} is recommended."
)


def variance_text(analysis: VarianceAnalysis) -> str:
    """The tables and what follows from them, as Markdown."""
    tail, settings = analysis.objective.get("tail", ""), analysis.objective.items()
    symbol = SYMBOLS[analysis.students[0].choice.knob]
    lines = [
        f"# Variance and bias by {symbol}: {escape_markdown(analysis.run)}",
        "",
        f"{analysis.num_prompts} prompts of the {analysis.split} split, {analysis.num_samples} "
        f"rollouts each, seed {analysis.seed}; {analysis.confidence:.0%} bootstrap intervals over "
        f"prompts. Objective {analysis.objective['name']}: "
        + ", ".join(f"{key} {value}" for key, value in settings if key != "name")
        + f"; batches of {analysis.batch_prompts} prompts.",
        "",
        f"## Which {symbol}?",
        "",
        *(f"- **{escape_markdown(s.label)}.** {s.choice.text}" for s in analysis.students),
        "",
        "## Students",
        "",
        _table(
            ("student",),
            _STUDENTS,
            [((student.label,), student.numbers) for student in analysis.students],
        ),
    ]
    for student in analysis.students:
        lines += [f"## {escape_markdown(student.label)}", ""]
        for each in dict.fromkeys((tail, *(row.tail for row in student.rows))):
            own = " (this run's)" if each == tail else ""
            rows = [row for row in student.rows if row.value == 1 or row.tail == each]
            lines += [f"{TAILS[each]}{own}:", ""] if each else []
            lines += _tables(symbol, rows)
    notes = [_OF_GRADIENTS.format(symbol)]
    return "\n".join([*lines, *([_OF_RETURNS] if tail else []), *notes]) + "\n"


def _tables(symbol: str, rows: Sequence[Row]) -> list[str]:
    """Of weights and of gradients, by K of one tail or by λ."""
    gradient = {title.format(symbol): name for title, name in _GRADIENT.items()}
    named = [(f"{row.value:g}{' (LLMR)' if row.llmr else ''}", row) for row in rows]
    if not rows[0].tail:
        columns = _WEIGHTS | gradient
        return [_table((symbol,), columns, [((name,), row.numbers) for name, row in named])]
    active = [((name, f"{row.active:.0%}"), row.numbers) for name, row in named]
    return [
        _table((symbol, "active"), _RETURNS, active),
        _table((symbol,), gradient, [((name,), row.numbers) for name, row in named]),
    ]


def _table(
    first: Sequence[str],
    columns: Mapping[str, str],
    rows: Iterable[tuple[Sequence[str], Mapping[str, Any]]],
) -> str:
    """A table of numbers, by the titles of their columns, behind the cells that name each row."""
    body = [[*names, *(f"{numbers[name]}" for name in columns.values())] for names, numbers in rows]
    return as_markdown(plain_table([[*first, *columns], *body]))


def _variance_rows(student: StudentVariance) -> Iterable[dict[str, Any]]:
    for name, estimate in student.numbers.items():
        yield {"student": student.label, "quantity": name, **_numbers(estimate)}
    for row in student.rows:
        where = {"student": student.label, row.knob: row.value, "tail": row.tail}
        if row.tail:
            yield {**where, "quantity": "active", "value": row.active}
        for name, estimate in row.numbers.items():
            yield {**where, "quantity": name, **_numbers(estimate)}


# Of a law, as their columns are called.
_FIT = {
    "c": "c",
    "R²": "c_r2",
    "a": "a",
    "b": "b",
    "R² of a + b m": "refined_r2",
    "Var Ĝ / Var G": "growth",
    "by the law": "predicted",
    "ratio": "ratio",
}


def theorem1_text(analysis: Theorem1Analysis) -> str:
    """The tables and what follows from them, as Markdown."""
    lines = [
        f"# Theorem 1 against measurement: {escape_markdown(analysis.run)}",
        "",
        f"{analysis.num_prompts} prompts of the {analysis.split} split, {analysis.num_samples} "
        f"rollouts each, seed {analysis.seed}, q_centering {analysis.q_centering}; "
        f"{analysis.confidence:.0%} bootstrap intervals over prompts. The law: Var Ĝ_t = "
        "c (⌊(n-t)/K⌋ + 1), without a tail, for independent steps that are alike.",
    ]
    pairs = {"correlation of regrets": "regret", "of rewards": "reward"}
    for student in analysis.students:
        constants = [[name, f"{value}"] for name, value in student.constants.items()]
        correlations = [
            ((str(row["distance"]), str(row["tokens"])), row) for row in student.correlations
        ]
        lines += [
            "",
            f"## {escape_markdown(student.label)}",
            "",
            student.verdict,
            "",
            _table(("K",), _FIT, [((str(fit.k),), vars(fit)) for fit in student.fits]),
            as_markdown(plain_table([["number", "over all tokens"], *constants])),
            _table(("distance", "pairs"), pairs, correlations).rstrip(),
        ]
    return "\n".join(lines) + "\n"


def _theorem1_rows(student: StudentTheorem1) -> Iterable[dict[str, Any]]:
    where = {"student": student.label}
    for name, estimate in student.constants.items():
        yield {**where, "quantity": name, **_numbers(estimate)}
    for fit in student.fits:
        for name in _FIT.values():
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
    numbers = estimate.as_dict()
    return {name: "" if numbers[name] is None else numbers[name] for name in COLUMNS[-3:]}
