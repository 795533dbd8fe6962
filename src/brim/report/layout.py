"""Where tables and figures stand in a report: by what its reader asks, or as in the paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from brim.support.figures import Figure
from brim.support.tables import Table

Part = Table | Figure


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with what stands below it; `name` is its anchor."""

    name: str
    heading: str
    parts: tuple[Part, ...]


# Name, heading, and the tables and figures by the names of their files. What has no place here
# says nothing new, or is so long that it is in files of its own only.
_BY_QUESTION = (
    ("scores", "Scores", ("table1", "figure1", "returns")),
    ("tests", "Are the differences real?", ("significance",)),
    ("judge", "What a judge prefers", ("table3",)),
    (
        "training",
        "How it trained",
        ("figure2", "curves", "figure3", "stability", "variance_training", "curves_stages"),
    ),
    ("k", "Which K?", ("table8", "variance_k")),
    ("settings", "Which setting?", ("settings",)),
)
_IN_FILES_ONLY = ("significance_all",)
# All that a report may have.
PARTS = {part for *_, parts in _BY_QUESTION for part in parts} | {"table7", *_IN_FILES_ONLY}
_TITLES_OF_THE_PAPER = {
    "table1": "Table 1: main results",
    "table3": "Table 3: judged by a model",
    "table7": "Table 7: decoder-only students",
    "table8": "Table 8: the best K",
    "returns": "Figure 1 in numbers: average return by method",
    "figure1": "Figure 1: average return by method",
    "figure2": "Figure 2: learning curves of LLMR, BRIM and anchored",
    "figure3": "Figure 3: PPO with LLMR and with BRIM",
}


APart = TypeVar("APart", Table, Figure)


def titled_as_the_paper(parts: Sequence[APart]) -> list[APart]:
    """Return tables and figures that the paper has under its titles, the others as they are."""
    return [replace(part, title=_TITLES_OF_THE_PAPER.get(part.name, part.title)) for part in parts]


def sections(tables: Sequence[Table], figures: Sequence[Figure], *, paper: bool) -> list[Section]:
    """Return what is read, in its order: all tables, then all figures, where it is the paper's."""
    if paper:
        shown = tuple(table for table in tables if table.name not in _IN_FILES_ONLY)
        found = [Section("tables", "Tables", shown), Section("figures", "Figures", tuple(figures))]
    else:
        both: list[Part] = [*tables, *figures]
        known = {part.name: part for part in both}
        found = [
            Section(name, heading, tuple(known[part] for part in parts if part in known))
            for name, heading, parts in _BY_QUESTION
        ]
    return [section for section in found if section.parts]
