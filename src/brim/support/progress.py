"""Progress with an estimate of the time left: bars on a terminal, a line now and then in a log."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

LOG_INTERVAL_SECONDS = 15.0
# A log of days gets fewer lines: one each time a hundredth of the time so far has gone by.
_LOG_INTERVAL_SHARE = 0.01
# Loading that takes this long is announced, and its seconds are shown.
PATIENCE_SECONDS = 1.0


@dataclass
class Meter:
    """One piece of work under way; `advance` moves it."""

    name: str
    total: int
    show: Callable[[Meter], None] = lambda meter: None
    done: int = 0
    note: str = ""
    started: float = field(default_factory=lambda: time.monotonic())
    known_left: float | None = None

    def advance(
        self, amount: int = 1, note: str | None = None, seconds_left: float | None = None
    ) -> None:
        """Count `amount` more as done; `note` is shown behind the bar.

        `seconds_left` are for who knows better than that the rest goes as what is done.
        """
        self.done = min(self.done + amount, self.total)
        self.note = self.note if note is None else note
        if amount or seconds_left is not None:  # else what is known still holds
            self.known_left = seconds_left
        self.show(self)

    @property
    def eta(self) -> str:
        """The time left, in words; nothing while nothing is known of it."""
        if self.done == self.total and not self.known_left:
            return "done"
        if not self.done and self.known_left is None:
            return ""
        left = self.known_left
        if left is None:
            left = (time.monotonic() - self.started) / self.done * (self.total - self.done)
        return f"ETA {timedelta(seconds=round(left))}"


class Reporter:
    """Reports progress on standard error, unless `quiet`."""

    def __init__(self, *, quiet: bool = False) -> None:
        from rich.console import Console  # only who reports needs it

        self.console = Console(stderr=True, quiet=quiet)
        self._reported = time.monotonic()

    @property
    def animated(self) -> bool:
        """Whether a bar may move: a file, and a terminal that cannot, get lines."""
        console = self.console
        return not console.quiet and console.file.isatty() and not console.is_dumb_terminal

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def progress(self, what: str, done: int, total: int) -> None:
        """A line now and then about work that is known only while it goes on; 0 is no total."""
        if time.monotonic() - self._reported >= LOG_INTERVAL_SECONDS:
            self._reported = time.monotonic()
            self.say(f"{what}: {done}/{total}" if total else f"{what}: {done}")

    @contextmanager
    def loading(self, what: str) -> Iterator[list[str]]:
        """Say what the block loads, with the facts that it appends to the list it gets.

        Where that takes a while, what is loading is said before, and the seconds after.
        """
        facts: list[str] = []
        started = time.monotonic()
        timer = threading.Timer(PATIENCE_SECONDS, self.say, [f"loading {what}"])
        timer.daemon = True
        timer.start()
        try:
            yield facts
        finally:
            timer.cancel()
        seconds = time.monotonic() - started
        took = [f"{seconds:.0f} s"] if seconds >= PATIENCE_SECONDS else []
        self.say(f"{what}: {', '.join([*facts, *took]) or 'loaded'}")

    @contextmanager
    def meter(self, name: str, total: int) -> Iterator[Meter]:
        """Show work of `total` units called `name` while the block runs."""
        if self.console.quiet:
            yield Meter(name, total)
        elif not self.animated:
            meter = Meter(name, total, show=self._log_line())
            yield meter
            if meter.done == total:
                meter.known_left = None  # what it was to take after the last unit is over
                self.say(_line(meter))
        else:
            from rich import progress as bars
            from rich.text import Text

            class Bars(bars.Progress):
                """The note has a line of its own: 80 columns have no room for it beside the bar."""

                def get_renderables(self) -> Iterator[RenderableType]:
                    yield self.make_tasks_table(self.tasks)
                    yield from (
                        Text(f"  {line}")
                        for task in self.tasks
                        for line in task.fields["note"].splitlines()
                    )

            with Bars(
                bars.TextColumn("{task.description}", markup=False), bars.BarColumn(20),
                bars.MofNCompleteColumn(), bars.TimeElapsedColumn(),
                bars.TextColumn("{task.fields[eta]}"),
                console=self.console,
            ) as progress:  # fmt: skip
                task = progress.add_task(name, total=total, note="", eta="")
                meter = Meter(
                    name,
                    total,
                    show=lambda meter: progress.update(
                        task, completed=meter.done, note=meter.note, eta=meter.eta
                    ),
                )
                yield meter
                if meter.done == total:
                    meter.known_left = None
                    meter.show(meter)

    def _log_line(self) -> Callable[[Meter], None]:
        shown = time.monotonic()

        def show(meter: Meter) -> None:
            nonlocal shown
            now = time.monotonic()
            interval = max(LOG_INTERVAL_SECONDS, _LOG_INTERVAL_SHARE * (now - meter.started))
            if now - shown >= interval and meter.done < meter.total:
                shown = now
                self.say(_line(meter))

        return show


def _line(meter: Meter) -> str:
    """Where the work is, for a log."""
    elapsed = time.monotonic() - meter.started
    eta = f", {meter.eta}" if meter.done else ""
    line = f"{meter.name}: {meter.done}/{meter.total} in {elapsed:.0f} s{eta}"
    between = "\n  " if "\n" in meter.note else "  "
    return between.join([line, *meter.note.splitlines()])
