"""What a report is made of, whatever it is about: tables, figures, outputs side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


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
