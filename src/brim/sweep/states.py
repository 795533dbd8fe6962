"""How far each point of a sweep is, from what is on the disk; nothing here writes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from brim.runs.directory import RunDirectory
from brim.support.files import is_held
from brim.sweep.grid import Point, StageTest, Task

State = Literal["done", "running", "failed", "stopped", "waiting", "foreign"]
"""`stopped`: begun, and resumed when the sweep is; `foreign`: a run of other settings."""

MARK, FAILED = "brim sweep: ", "failed with exit code"
_SHOWN_SCORES = 3


def log_of(task: Task, out: Path) -> Path:
    """Where the output of a point's runs goes, or that of a stage's test."""
    return out / "logs" / f"{task.name.replace('/', '-')}.log"


def stage_tests(points: Iterable[Point], out: Path) -> list[StageTest]:
    """The tests of teachers and students that these points' runs have begun with so far.

    Points whose `evaluation.stages` is false ask for none.
    """
    found: dict[str, StageTest] = {}
    points = [point for point in points if point.config.evaluation.stages]
    for stage in ("teacher", "student", "predistill"):
        for point in points:
            folder = RunDirectory(out / point.name).manifest().get("stages", {}).get(stage)
            if folder is not None and (out / "stages" / folder).is_dir():
                found.setdefault(folder, StageTest(point.name, stage, folder))
    return list(found.values())


def state_of(task: Task, out: Path) -> State:
    """How far a point is, or a stage's test.

    Raises:
        RunError: a file of the directory is damaged.
    """
    folder, begun = out / task.name, False
    if isinstance(task, Point):
        begun, locks = (folder / "config.yaml").exists(), [folder / ".lock"]
        from brim.runs.train import (
            changed_settings,
        )  # and torch, which a sweep's file does not need

        if begun and changed_settings(folder, task.config):
            return "foreign"
        last = RunDirectory(folder).tests()[-1]
    else:
        *_, last = tests = RunDirectory(out / task.run).tests()
        locks = [folder / "predictions" / f".{test}.partial.lock" for test in tests]
    if any(map(is_held, locks)):
        return "running"
    results = results_of(folder, last)
    ended = results and not RunDirectory(folder).stopped_at(results)
    if ended and (begun or isinstance(task, StageTest)):
        return "done"
    if _has_failed(log_of(task, out)):
        return "failed"
    return "stopped" if begun else "waiting"


def results_of(directory: Path, split: str) -> Mapping[str, Any]:
    """What `results.json` holds of a split; nothing where there is none."""
    results: dict[str, Any] = RunDirectory(directory).splits(split).get(split, {})
    return results


def has_stages(run: Path) -> bool:
    """Whether a run has all of its stages, and is at its objective or behind it."""
    return "stages" in RunDirectory(run).manifest()


def first_scores(run: Path) -> str:
    """The first scores of a finished run on one line."""
    scores = list(results_of(run, RunDirectory(run).tests()[0]).get("scores", {}).values())
    return " · ".join(f"{score['name']} {score['value']:.2f}" for score in scores[:_SHOWN_SCORES])


def last_lines(log: Path, number: int = 5) -> list[str]:
    """The end of what the last run wrote into a log, less empty lines."""
    if not log.exists():
        return []
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 20_000))
        lines = file.read().decode(errors="replace").splitlines()
    ours = [i for i, line in enumerate(lines) if line.startswith(MARK)]
    return [line for line in lines[ours[-1] + 1 if ours else 0 :] if line.strip()][-number:]


def status_table(points: Sequence[Point], out: Path) -> str:
    """A line a point and a line a stage, and how many there are of each state."""
    kinds: dict[str, Sequence[Task]] = {"points": points, "stages": stage_tests(points, out)}
    width = max(len(task.name) for tasks in kinds.values() for task in tasks)
    lines, summary = [], []
    for kind, tasks in kinds.items():
        states = [state_of(task, out) for task in tasks]
        for task, state in zip(tasks, states, strict=True):
            number = str(task.number) if isinstance(task, Point) else ""
            scores = first_scores(out / task.name) if state == "done" else ""
            lines.append(f"{number:>4}  {task.name:<{width}}  {state:<7}  {scores}".rstrip())
        counts = ", ".join(f"{n} {state}" for state, n in Counter(states).most_common())
        summary += [f"{len(tasks)} {kind}: {counts}"] if tasks else []
    return "\n".join([*lines, *summary])


def _has_failed(log: Path) -> bool:
    """Whether the last thing that we wrote into a log is an exit code of a failed run."""
    if not log.exists():
        return False
    ours = re.findall(rf"^{MARK}(.*)$", log.read_text(errors="replace"), re.MULTILINE)
    return bool(ours) and ours[-1].startswith(FAILED)
