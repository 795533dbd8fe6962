"""What a report is made of, whatever it is about: tables, figures, outputs side by side."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: what it says, as plain text.
        best: the best of its column.
        significant: better than the table's baseline beyond chance.
        note: small print, such as the paper's number or a p-value.
    """

    text: str
    best: bool = False
    significant: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class PartTable:
    """A table as rows of cells.

    Attributes:
        name: of its files, such as `table1`.
        title: above it.
        head: the names of the columns, the first one that of the rows.
        rows: as long as the head each.
        caption: what the numbers and marks are.
    """

    name: str
    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing as the bytes of two image files; the same input gives the same bytes.

    Attributes:
        name: of its files, such as `curves`.
        title: above it.
        png, svg: the images.
        caption: what is drawn, and how.
    """

    name: str
    title: str
    png: bytes
    svg: bytes
    caption: str


@dataclass(frozen=True, slots=True)
class Output:
    """One example with the text of each system.

    Attributes:
        id, prompt, references: of the example.
        texts: by the label of the system.
        numbers: by the label of the system, numbers of its text by name (`return`, `bleu`, …).
    """

    id: str
    prompt: str
    references: tuple[str, ...]
    texts: Mapping[str, str]
    numbers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


_NUMBER = re.compile(r"[-+\u2212±]?\d.*|[—-]?")


def numeric_columns(table: PartTable) -> list[bool]:
    """For each column of the table whether all its cells are numbers, or dashes for none."""
    return [
        i > 0 and all(_NUMBER.fullmatch(row[i].text) for row in table.rows)
        for i in range(len(table.head))
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


_SPECIAL = re.compile(r"([\\`*_<>|~$&]|\](?=\())")


def escape_markdown(text: str) -> str:
    """One line of Markdown, fit for a table's cell, that renders as `text`, line breaks too."""
    return "<br>".join(_SPECIAL.sub(r"\\\1", line) for line in text.splitlines())


def markdown_sentence(text: str) -> str:
    """A sentence of ours that may hold code between backticks, which is to be copied as it is."""
    pieces = re.split(r"(`[^`\n\r]+`)", text)
    return "".join(p if i % 2 else escape_markdown(p) for i, p in enumerate(pieces))


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is its head, from cells of plain text."""
    head, *body = [f"| {' | '.join(map(escape_markdown, row))} |" for row in rows]
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body, ""])
