"""Progress with an estimate of the time left: bars on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

LOG_INTERVAL_SECONDS = 15.0


@dataclass
class Meter:
    """One piece of work under way; `advance` moves it."""

    name: str
    total: int
    show: Callable[[Meter], None] = lambda meter: None
    done: int = 0
    note: str = ""
    started: float = field(default_factory=time.monotonic)
    known_left: float | None = None

    def advance(
        self, amount: int = 1, note: str | None = None, seconds_left: float | None = None
    ) -> None:
        """Count `amount` more as done; `note` is shown behind the bar.

        `seconds_left` are for who knows better than that the rest goes as what is done.
        """
        self.done = min(self.done + amount, self.total)
        self.note = self.note if note is None else note
        self.known_left = seconds_left
        self.show(self)

    @property
    def eta(self) -> str:
        """The time left, in words."""
        if self.done == self.total and not self.known_left:
            return "done"
        each = (time.monotonic() - self.started) / max(self.done, 1)
        left = each * (self.total - self.done) if self.known_left is None else self.known_left
        return f"ETA {timedelta(seconds=round(left))}"


class Reporter:
    """Tells the person who watches, on standard error; says nothing where `quiet`."""

    def __init__(self, *, quiet: bool = False) -> None:
        from rich.console import Console  # only who reports needs it

        self.console = Console(stderr=True, quiet=quiet)
        self._told = time.monotonic()

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def progress(self, what: str, done: int, total: int) -> None:
        """A line now and then about work that is known only while it goes on; 0 is no total."""
        if time.monotonic() - self._told >= LOG_INTERVAL_SECONDS:
            self._told = time.monotonic()
            self.say(f"{what}: {done}/{total}" if total else f"{what}: {done}")

    @contextmanager
    def meter(self, name: str, total: int) -> Iterator[Meter]:
        """Show work of `total` units called `name` while the block runs."""
        if self.console.quiet:
            yield Meter(name, total)
        elif not self.console.is_terminal:
            yield Meter(name, total, show=self._log_line())
        else:
            from rich import progress as bars

            with bars.Progress(
                bars.TextColumn("{task.description}"), bars.BarColumn(), bars.MofNCompleteColumn(),
                bars.TimeElapsedColumn(), bars.TextColumn("{task.fields[eta]}"),
                bars.TextColumn("{task.fields[note]}"),
                console=self.console,
            ) as progress:  # fmt: skip
                task = progress.add_task(name, total=total, note="", eta="")
                yield Meter(
                    name,
                    total,
                    show=lambda meter: progress.update(
                        task, completed=meter.done, note=meter.note, eta=meter.eta
                    ),
                )

    def _log_line(self) -> Callable[[Meter], None]:
        shown = time.monotonic()

        def show(meter: Meter) -> None:
            nonlocal shown
            now = time.monotonic()
            finished = meter.done == meter.total
            if now - shown < LOG_INTERVAL_SECONDS and not finished:
                return
            shown = now
            elapsed = now - meter.started
            line = f"{meter.name}: {meter.done}/{meter.total} in {elapsed:.0f} s, {meter.eta}"
            self.say(f"{line}  {meter.note}".rstrip())

        return show
