"""Ctrl-C and other signals at random moments: one line, and the same command goes on."""

from __future__ import annotations

import random
import signal
from pathlib import Path

from .rows import Row
from .runs import End, lab_in, start, wait

# The signals, and the exit codes that they may end in besides 0; SIGTERM stops like Ctrl-C while a
# stage is trained, and at once elsewhere.
KINDS = {
    "SIGINT": ([signal.SIGINT], {130}),
    "SIGINT twice": ([signal.SIGINT, signal.SIGINT], {130}),
    "SIGTERM": ([signal.SIGTERM], {130, -signal.SIGTERM}),
    "SIGHUP": ([signal.SIGHUP], {-signal.SIGHUP}),
}


def run(seed: int, count: int, directory: Path) -> list[Row]:
    """Send `count` signals, or two of them, and look at what is said and at what is left."""
    lab, generator = lab_in(directory), random.Random(seed)
    rows = {name: Row(f"{name} at a random moment") for name in KINDS}
    for number in range(count):
        name = list(KINDS)[number % len(KINDS)]
        out = lab.fresh("stopped")
        process = start(lab.train(out), lab.log)
        process.ends_within(generator.uniform(0, lab.seconds))
        for sent in KINDS[name][0]:
            process.send(sent)
            process.ends_within(generator.uniform(0, 0.1))
        end = wait(process)
        fault = _wrong(end, KINDS[name][1]) or lab.finish(out)
        rows[name].count(fault, silent="differs" in (fault or ""), traceback=end.traceback)
    return [row for row in rows.values() if row.tried]


def _wrong(end: End, codes: set[int]) -> str | None:
    if end.code not in {0, *codes}:
        return f"ends by {end.code}: {end.output[-400:]}"
    if end.traceback:
        return f"a traceback: {end.output[-400:]}"
    if len(end.errors) > 1:
        return f"says {end.errors}"
    return None
