"""Find run directories and read them; nothing here writes or needs a model."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from brim.errors import ConfigError, RunError
from brim.report.labels import name_of
from brim.report.systems import Run, Unfinished
from brim.written import (
    find_results,
    planned_steps,
    read_manifest,
    stopped_at,
    text_of_settings,
)
from brim.yaml12 import parse

# Folders with nothing to find in them; stages are found by the manifests of their runs.
_SKIPPED = {"checkpoints", "best", "predictions", "data", "stages"}
# What `brim sweep` writes into the log of a run that has failed.
_FAILED = re.compile(r"^brim sweep: (.*)$", re.MULTILINE)


def folders(roots: Sequence[Path]) -> Iterator[tuple[Path, set[str]]]:
    """Each folder under these once, in the order of the names, and the files in it.

    Raises:
        RunError: one of them is no folder.
    """
    seen: set[Path] = set()
    for root in roots:
        if not root.is_dir():
            raise RunError(f"{root}: no such folder; check the path")
        for place, below, files in os.walk(root):
            below[:] = sorted(f for f in below if f not in _SKIPPED and not f.startswith("."))
            directory = Path(place)
            if directory.resolve() not in seen:
                seen.add(directory.resolve())
                yield directory, set(files)


def read_run(directory: Path, split: str) -> Run:
    """A directory; without scores where there are no results of the split.

    Raises:
        RunError: a file is damaged.
    """
    found = find_results(directory, split)
    config, text = directory / "config.yaml", text_of_settings(directory)
    settings = _read_settings(config, text) if config.exists() else {}
    return Run(
        directory=directory,
        seed=settings.get("seed"),
        settings=settings,
        text=text,
        manifest=read_manifest(directory),
        results=found.facts if found else {},
        scores=found.scores if found else {},
        split=split,
    )


def is_run(directory: Path, files: Collection[str]) -> bool:
    """Whether a folder with these files is a run's, finished or not.

    Raises:
        RunError: it is, and one of the files that make it one is missing.
    """
    missing = [name for name in ("config.yaml", "manifest.json") if name not in files]
    if len(missing) == 1 and not {"results.json", "metrics.jsonl"}.isdisjoint(files):
        raise RunError(f"{directory}: {missing[0]} is missing; bring it back, or remove the run")
    return not missing


def _read_settings(path: Path, text: str) -> dict[str, Any]:
    """The settings of a `config.yaml`; runs that differ in the seed are parsed once."""
    seed = re.search(r"^seed: (\d+)$", text, re.MULTILINE)
    rest = text.replace(seed[0], "seed: 0", 1) if seed else text
    try:
        settings = _parse(rest)
    except ConfigError as error:
        raise RunError(f"{path.parent}: {error}") from None
    if not isinstance(settings, dict) or not isinstance(settings.get("task"), dict):
        raise RunError(f"{path}: damaged: no settings of a run; take it out of the folder")
    return {**settings, "seed": int(seed[1])} if seed else settings


@lru_cache(maxsize=64)
def _parse(text: str) -> Any:
    return parse(text, lambda line: f"config.yaml:{line}").data


def unfinished(run: Run) -> Unfinished:
    """How far a run came that has no results, or none of its end."""
    planned = planned_steps(run.directory)
    try:
        step = max((row["step"] for row in run.metrics), default=0)
        state = f"at step {step:,}" + (f" of {planned:,}" if planned else "")
    except RunError as error:
        step, state = -1, str(error)
    if step == planned:
        state = f"trained, without results of the {run.split} split"
        stop = stopped_at(run.directory, run.results)
        if stop:
            state = f"trained, but its results of the {run.split} split are of {stop}"
    label = name_of(run.settings.get("objective", {})).label
    return Unfinished(run.directory, label, run.seed, failure(run.directory) or state)


def not_begun(directory: Path) -> Unfinished:
    """A run that is held or was left before its own training began."""
    seed = re.fullmatch(r"seed=(\d+)", directory.name)
    label = directory.parent.name if seed else directory.name
    state = failure(directory) or "in the stages before its own training"
    return Unfinished(directory, label, int(seed[1]) if seed else None, state)


def failure(directory: Path) -> str | None:
    """What a sweep's log says of a run in it that has failed; None where it has not."""
    log = directory.parents[1] / "logs" / f"{directory.parent.name}-{directory.name}.log"
    if not log.is_file():
        return None
    words = _FAILED.findall(log.read_text(encoding="utf-8", errors="replace"))
    return f"{words[-1]} (see {log})" if words and words[-1].startswith("failed") else None
