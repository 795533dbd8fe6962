"""A crash right after each rename and each fsync of a run, with and without a power cut."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

from brim.training.trainer import Trainer

from .rows import Row
from .runs import lab_in, start, wait

# What makes names and bytes durable; the two of `shutil` and `pathlib` end in these.
CALLS = ("fsync", "rename", "replace")


# A run makes about so many.
NUM_CALLS = 250


def run(seed: int, count: int, directory: Path) -> list[Row]:
    """Crash after `count` random calls of a run; for 0, after each call of a save, and 20 others.

    Of a save, that is, of the second evaluation, which replaces `best/`, and the checkpoint.
    """
    lab, generator = lab_in(directory), random.Random(seed)
    journal = directory / "calls.txt"
    moments = generator.sample(range(1, NUM_CALLS + 1), count or 20)
    if not count:
        wait(start(lab.train(lab.fresh("counted")), lab.log, _crash_after(0, journal)))
        lines = journal.read_text().splitlines()
        moments += [i for i, line in enumerate(lines, start=1) if line.endswith("saving")]
    rows = [Row("crash after a rename or fsync"), Row("the same, and the power goes")]
    for row in rows:
        for moment in moments:
            out = lab.fresh("crashed")
            end = wait(start(lab.train(out), lab.log, _crash_after(moment, journal)))
            if row is rows[1] and end.code == -signal.SIGKILL:
                _lose_what_is_not_on_the_disk(out, journal)
            fault = lab.finish(out)
            row.count(
                fault and f"call {moment}: {fault}",
                silent="differs" in (fault or ""),
                traceback=end.traceback or "Traceback" in (fault or ""),
            )
    return rows


def _crash_after(moment: int, journal: Path) -> Callable[[], None]:
    """Have a process note its calls, with the file that is durable after it, and die at one."""

    def prepare() -> None:
        journal.write_text("")
        calls, saving = 0, False

        def marked(act: Callable[[Trainer], None]) -> Callable[[Trainer], None]:
            def wrapped(self: Trainer) -> None:
                nonlocal saving
                # The teacher and pre-distillation have two steps.
                saving = self.state.step == 2 < self.num_steps
                act(self)
                saving = False

            return wrapped

        def noted(call: Callable[..., None]) -> Callable[..., None]:
            def wrapped(*arguments: object) -> None:
                nonlocal calls
                call(*arguments)
                calls += 1
                line = "- -"
                if isinstance(arguments[0], int):
                    status = os.fstat(arguments[0])
                    line = f"{status.st_ino} {status.st_size}"
                line += " saving" if saving else ""
                with journal.open("a") as file:
                    file.write(line + "\n")
                if calls == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

            return wrapped

        for name in ("_evaluate", "_save"):
            setattr(Trainer, name, marked(getattr(Trainer, name)))
        for name in CALLS:
            setattr(os, name, noted(getattr(os, name)))

    return prepare


def _lose_what_is_not_on_the_disk(out: Path, journal: Path) -> None:
    """Cut each file to the length that it had when it was last forced to the disk."""
    lines = (line.split() for line in journal.read_text().splitlines())
    durable = {int(number): int(size) for number, size, *_ in lines if number != "-"}
    for path in out.rglob("*"):
        if path.is_file():
            kept = durable.get(path.stat().st_ino, 0)
            if kept < path.stat().st_size:
                os.truncate(path, kept)
