"""A table as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from brim.report.markdown import escape_markdown
from brim.report.page import numeric_columns
from brim.report.parts import Cell, PartTable

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
    "Ĝ": r"$\hat{G}$",
}


def escape_latex(text: str) -> str:
    """Text that LaTeX sets as it is, on one line."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def as_markdown(table: PartTable) -> str:
    """Heading, table and caption; best in bold, significant with a star."""
    rules = ["---:" if numeric else "---" for numeric in numeric_columns(table)]
    lines = [list(map(escape_markdown, table.head)), rules]
    lines += [[_markdown_cell(cell) for cell in row] for row in table.rows]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"## {escape_markdown(table.title)}\n\n{body}\n\n{escape_markdown(table.caption)}\n"


def _markdown_cell(cell: Cell) -> str:
    text = escape_markdown(cell.text)
    text = f"**{text}**" if cell.best else text
    star = r"\*" if cell.significant else ""
    note = f" ({escape_markdown(cell.note)})" if cell.note else ""
    return f"{text}{star}{note}"


def as_latex(table: PartTable) -> str:
    """A `table` with rules of booktabs; best in bold, significant with a star."""
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
    """One line a row, numbers unrounded; a cell is empty where there is no value."""
    text = io.StringIO()
    columns = list(dict.fromkeys(column for row in rows for column in row))
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
