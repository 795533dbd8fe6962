"""One kind of table, as Markdown, LaTeX, CSV and text, and how numbers are written in it."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ABSENT = "—"
# Others have one: metrics go from 0 to 100.
DIGITS = {
    "expected_return": 2, "return": 2, "expected_cut_return": 2, "cut_return": 2,
    "expected_regret_per_token": 3, "regret_per_token": 3,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a table.

    Attributes:
        best: the best of its column.
        significant: better than the table's baseline beyond chance.
        note: small print, such as the paper's number or a p-value.
    """

    text: str
    best: bool = False
    significant: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells to look at, as long as the head each, and the same numbers unrounded.

    Attributes:
        name: of its files, such as `table1`.
        caption: what the numbers and marks are.
        data: a mapping a number, the lines of the CSV file.
    """

    name: str
    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str
    data: Sequence[Mapping[str, Any]] = ()


def plain_table(rows: Sequence[Sequence[str]]) -> Table:
    """Return a table without name and marks; the first of the rows is its head."""
    head, *body = rows
    return Table("", "", tuple(head), tuple(tuple(map(Cell, row)) for row in body), "")


def score_format(key: str, *, difference: bool = False) -> str:
    """Return the format of a score's numbers; of a difference with a sign and one digit more."""
    digits = DIGITS.get(key, 1)
    return f"+z.{digits + 1}f" if difference else f"z.{digits}f"


def interval_text(
    value: float, low: float | None = None, high: float | None = None, *, spec: str = ".2f"
) -> str:
    """Return `value [low, high]`, or the value alone; `spec` is the format of each number."""
    ends = f" [{low:{spec}}, {high:{spec}}]" if low is not None and high is not None else ""
    return f"{value:{spec}}{ends}"


def mean_text(mean: float, deviation: float | None, *, digits: int = 2) -> str:
    """Return `mean ± standard deviation`, or the mean of a single value."""
    text = f"{mean:z.{digits}f}"
    return text if deviation is None else f"{text} ± {deviation:.{digits}f}"


def p_text(p_value: float | None) -> str:
    """Return a p-value with three digits, or in powers of ten below 0.001."""
    if p_value is None:
        return ABSENT
    return f"{p_value:.3f}" if p_value >= 0.001 else f"{p_value:.1e}"


def many(number: int, noun: str) -> str:
    """Return `1 run`, `2 runs`."""
    return f"{number:,} {noun}{'s' if number != 1 else ''}"


def percent(confidence: float) -> str:
    """Return 0.95 as `95 %`."""
    return f"{100 * confidence:.4g} %"


_NUMBER = re.compile(r"[-+\u2212±]?\d.*|[—-]?")


def numeric_columns(table: Table) -> list[bool]:
    """Return for each column whether all its cells are numbers, or dashes for none."""
    return [
        i > 0 and all(_NUMBER.fullmatch(row[i].text) for row in table.rows)
        for i in range(len(table.head))
    ]


def as_text(table: Table) -> str:
    """Return head and rows in aligned columns, for a terminal."""
    rows = [table.head, *([cell.text for cell in row] for row in table.rows)]
    return "\n".join(align(rows, numeric_columns(table)))


def align(rows: Sequence[Sequence[str]], numeric: Sequence[bool] = ()) -> list[str]:
    """Return lines with two spaces between columns; numeric ones are set to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = [*numeric, *[False] * (len(widths) - len(numeric))]
    return [
        "  ".join(
            cell.rjust(width) if to_the_right else cell.ljust(width)
            for cell, width, to_the_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in rows
    ]


_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "\u2212": r"$-$",
    "—": "---",
    "·": r"$\cdot$",
    "²": r"\textsuperscript{2}",
    "λ": r"$\lambda$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "Ĝ": r"$\hat{G}$",
}


def escape_latex(text: str) -> str:
    """Return text that LaTeX sets as it is, on one line."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def as_latex(table: Table) -> str:
    """Return a `table` with rules of booktabs; best in bold, significant with a star."""
    rows = [" & ".join(map(_latex_cell, row)) + r" \\" for row in table.rows]
    columns = "".join("r" if numeric else "l" for numeric in numeric_columns(table))
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape_latex(f'{table.title}. {table.caption}')}}}",
        rf"\label{{tab:{re.sub('[^a-z0-9]+', '-', table.name)}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        " & ".join(map(escape_latex, table.head)) + r" \\",
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex_cell(cell: Cell) -> str:
    text = escape_latex(cell.text)
    text = rf"\textbf{{{text}}}" if cell.best else text
    star = "$^{*}$" if cell.significant else ""
    note = rf" {{\scriptsize ({escape_latex(cell.note)})}}" if cell.note else ""
    return f"{text}{star}{note}"


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return one line a row, numbers unrounded; a cell is empty where there is no value."""
    text = io.StringIO()
    columns = list(dict.fromkeys(column for row in rows for column in row))
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


_SPECIAL = re.compile(r"([\\`*_<>|~$&]|\](?=\())")


def escape_markdown(text: str) -> str:
    """Return a line of Markdown for a table's cell that renders as `text`, line breaks too."""
    return "<br>".join(_SPECIAL.sub(r"\\\1", line) for line in text.splitlines())


def markdown_sentence(text: str) -> str:
    """Escape a sentence of ours, but for code between backticks, which is copied as it is."""
    pieces = re.split(r"(`[^`\n\r]+`)", text)
    return "".join(p if i % 2 else escape_markdown(p) for i, p in enumerate(pieces))


def as_markdown(table: Table, *, title: bool = True) -> str:
    """Return heading, table and caption; best in bold, significant with a star."""
    rules = ["---:" if numeric else "---" for numeric in numeric_columns(table)]
    rows = [list(map(escape_markdown, table.head)), rules]
    rows += [list(map(_markdown_cell, row)) for row in table.rows]
    body = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    heading = f"## {escape_markdown(table.title)}\n\n" if table.title and title else ""
    caption = f"\n{escape_markdown(table.caption)}\n" if table.caption else ""
    return heading + body + caption


def _markdown_cell(cell: Cell) -> str:
    text = escape_markdown(cell.text)
    text = f"**{text}**" if cell.best else text
    star = r"\*" if cell.significant else ""
    note = f" ({escape_markdown(cell.note)})" if cell.note else ""
    return f"{text}{star}{note}"
