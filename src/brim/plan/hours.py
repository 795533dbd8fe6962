"""Where the hours of a run go, from seconds that were measured."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """What a stage does again and again.

    Attributes:
        stage: of the run; `start` and `test` come before and after those that train.
        what: a part of a step (`rollout`, `teacher`, `credit`, `reward`, `update`, `rest`), an
            `evaluation`, a `save`; of what is written outside of training, an `example`.
        seconds: of one.
        count: how many there are; None where only data that is not here could tell.
    """

    stage: str
    what: str
    seconds: float
    count: int | None

    @property
    def hours(self) -> float | None:
        """Of all of them."""
        return None if self.count is None else self.seconds * self.count / 3600


@dataclass(frozen=True)
class Advice:
    """A setting that would save time.

    Attributes:
        setting: its name.
        now, instead: its values.
        hours: what it saves, by what was measured.
        at_most: whether that is a bound: what takes the time may not get shorter in proportion.
        why: in a few words.
    """

    setting: str
    now: str
    instead: str
    hours: float
    at_most: bool
    why: str


@dataclass(frozen=True)
class Measured:
    """What a few real steps say of a whole run.

    Attributes:
        parts: of all stages, in the order of the run.
        advice: what to change first, what saves most before the others.
    """

    parts: tuple[Part, ...]
    advice: tuple[Advice, ...] = ()

    @property
    def hours(self) -> float:
        """Of the run, but for parts whose count is not known."""
        return total_hours(self.parts)


def total_hours(parts: Iterable[Part]) -> float:
    """Of all parts whose count is known."""
    return math.fsum(part.hours or 0.0 for part in parts)
