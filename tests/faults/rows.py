"""What came of the faults of one kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class Row:
    """A line of the table.

    Attributes:
        name: of the fault.
        tried: how often it was put in.
        handled: how often the run reached what an undisturbed one reaches, or stopped in one line
            with everything intact.
        silent: how often results were other ones, and no line said so.
        tracebacks: how often the user would have seen one.
        notes: what went wrong, for whoever mends it.
    """

    name: str
    tried: int = 0
    handled: int = 0
    silent: int = 0
    tracebacks: int = 0
    notes: tuple[str, ...] = ()

    def count(self, fault: str | None, *, silent: bool = False, traceback: bool = False) -> None:
        """Add one; `fault` says what was wrong, None that it was handled."""
        self.tried += 1
        self.handled += fault is None
        self.silent += silent and fault is not None
        self.tracebacks += traceback
        if fault is not None:
            self.notes += (fault,)


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    head = ("fault", "tried", "handled", "silent", "tracebacks")
    cells = [head, ("---", *["---:"] * 4)]
    cells += [
        (row.name, *(f"{n:,}" for n in (row.tried, row.handled, row.silent, row.tracebacks)))
        for row in rows
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(5)]
    return "\n".join(
        f"| {line[0]:<{widths[0]}} | "
        + " | ".join(f"{cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=True))
        + " |"
        for line in cells
    )
