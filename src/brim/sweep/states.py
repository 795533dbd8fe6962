"""How far each point of a sweep is, from what is on the disk; nothing here writes."""

from __future__ import annotations

import fcntl
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from brim.config import load_config
from brim.errors import BrimError
from brim.files import read_json
from brim.rundir import read_manifest
from brim.settings import RunConfig
from brim.sweep.grid import Point

State = Literal["done", "running", "failed", "stopped", "waiting", "foreign"]
"""`stopped`: begun, and gone on with when the sweep is; `foreign`: a run of other settings."""

MARK, FAILED = "brim sweep: ", "failed with exit code"
_SHOWN_SCORES = 3


def log_of(point: Point, out: Path) -> Path:
    """Where the output of a point's runs goes."""
    return out / "logs" / f"{point.label}-seed={point.seed}.log"


def state_of(point: Point, out: Path) -> State:
    """How far a point is.

    Raises:
        RunError: a file of the run directory is damaged.
    """
    run = out / point.name
    if not (run / "config.yaml").exists():
        if _is_held(run):
            return "running"
        return "failed" if _has_failed(log_of(point, out)) else "waiting"
    if not _same_settings(run / "config.yaml", point.config):
        return "foreign"
    if _is_held(run):
        return "running"
    if "test" in results_of(run):
        return "done"
    return "failed" if _has_failed(log_of(point, out)) else "stopped"


def results_of(run: Path) -> Mapping[str, Any]:
    """What is in `results.json`; nothing where there is none."""
    path = run / "results.json"
    results: dict[str, Any] = read_json(path) if path.exists() else {}
    return results


def has_stages(run: Path) -> bool:
    """Whether a run has all of its stages, and is at its objective or behind it."""
    return "stages" in read_manifest(run)


def first_scores(run: Path) -> str:
    """The first scores of a finished run on one line."""
    scores = list(results_of(run).get("test", {}).get("scores", {}).values())
    return " · ".join(f"{score['name']} {score['value']:.2f}" for score in scores[:_SHOWN_SCORES])


def last_lines(log: Path, number: int = 5) -> list[str]:
    """The end of what the last run wrote into a log, less empty lines."""
    if not log.exists():
        return []
    lines = log.read_bytes()[-20_000:].decode(errors="replace").splitlines()
    ours = [i for i, line in enumerate(lines) if line.startswith(MARK)]
    return [line for line in lines[ours[-1] + 1 if ours else 0 :] if line.strip()][-number:]


def status_table(points: Sequence[Point], out: Path) -> str:
    """A line a point, and how many there are of each state."""
    states = [state_of(point, out) for point in points]
    width = max((len(point.name) for point in points), default=0)
    lines = [
        f"{point.number:>4}  {point.name:<{width}}  {state:<7}  "
        + (first_scores(out / point.name) if state == "done" else "")
        for point, state in zip(points, states, strict=True)
    ]
    count = Counter(states)
    summary = ", ".join(f"{number} {state}" for state, number in count.most_common())
    return "\n".join([*(line.rstrip() for line in lines), f"{len(points)} points: {summary}"])


def _same_settings(path: Path, config: RunConfig) -> bool:
    """Whether a run directory's settings are a point's, but for what changes no result."""
    leave_out = {"description", "tracking"}
    try:
        known = load_config(RunConfig, path)
    except BrimError:
        return False
    return known.model_dump(exclude=leave_out) == config.model_dump(exclude=leave_out)


def _is_held(run: Path) -> bool:
    """Whether a process works on a run directory: it holds the lock then."""
    try:
        with (run / ".lock").open("rb") as file:
            # Shared, and given back at once: those who look do not get into each other's way.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _has_failed(log: Path) -> bool:
    """Whether the last thing that we wrote into a log is an exit code of a failed run."""
    if not log.exists():
        return False
    ours = re.findall(rf"^{MARK}(.*)$", log.read_text(errors="replace"), re.MULTILINE)
    return bool(ours) and ours[-1].startswith(FAILED)
