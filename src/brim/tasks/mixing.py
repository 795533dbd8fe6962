"""Several sources of one split, and how often an epoch has the rows of each."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import Field

from brim.config.loading import Config
from brim.examples import Example
from brim.seeding import derive_seed
from brim.tasks.base import Selected


class WeightedSource(Config):
    """One of several sources of training data."""

    path: str
    """File, folder or hub id, as `task.train` has it."""
    weight: float = Field(1, gt=0, le=1000)
    """How often an epoch has each of its rows: 2 is twice, 0.5 a fixed half of them, 1.5 all of
    them once and a fixed half once more. Which half is by a hash of the row's number."""


class Weighted(Selected):
    """Rows of sources, one source behind the other, each row as often as its source's weight says.

    A row is there floor(weight) times, and once more where a hash of its number in the source, from
    0 to 1, is below the rest of the weight. The second time its id ends in `*2`, and so on.

    Args:
        examples: the rows of all sources.
        parts: how many rows each source has, and its weight.
        facts: for `describe`.
    """

    def __init__(
        self, examples: Sequence[Example], parts: Sequence[tuple[int, float]], **facts: Any
    ) -> None:
        rows, first = array("q"), 0
        for count, weight in parts:
            whole, rest = divmod(weight, 1)
            for row in range(count):
                again = rest > 0 and derive_seed(0, "weight", row) / 2**63 < rest
                rows.extend([first + row] * (int(whole) + again))
            first += count
        super().__init__(examples, rows, **facts)

    def row(self, number: int) -> Example:
        """See `Rows.row`."""
        rows, copy = self._rows, 1
        while copy <= number and rows[number - copy] == rows[number]:
            copy += 1
        example = super().row(number)
        return example if copy == 1 else replace(example, id=f"{example.id}*{copy}")
