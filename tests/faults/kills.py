"""kill -9 at random moments of a run, which goes on every time and ends in the same bits."""

from __future__ import annotations

import random
import signal
from pathlib import Path

from .rows import Row
from .runs import lab_in, start, wait


def run(seed: int, count: int, directory: Path) -> list[Row]:
    """Kill processes `count` times; runs that have ended are compared and begun anew."""
    lab, generator = lab_in(directory), random.Random(seed)
    row = Row("kill -9 at a random moment")
    out, kills = lab.fresh("killed"), 0

    def settle(fault: str | None, traceback: bool = False) -> None:
        for _ in range(kills):
            row.count(fault, silent=fault is not None and "differs" in fault, traceback=traceback)

    while row.tried + kills < count:
        process = start(lab.train(out), lab.log)
        process.ends_within(generator.uniform(0, 1.1 * lab.seconds))
        process.send(signal.SIGKILL)
        end = wait(process)
        if end.code == -signal.SIGKILL:
            kills += 1
            continue
        fault = lab.difference(out) if end.code == 0 else f"ends by {end.code}: {end.output[-400:]}"
        settle(fault, end.traceback)
        out, kills = lab.fresh("killed"), 0
    settle(lab.finish(out))
    return [row]
