"""What lies under the folders of a report: runs, finished or not, and other evaluated models.

All that a report reads of a directory of runs is read here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from brim.config.yaml import parse
from brim.errors import BrimError, RunError
from brim.metrics import Score
from brim.metrics.regrets import REGRETS
from brim.report.labels import name_of
from brim.runs.directory import RunDirectory, curve_of
from brim.support.files import read_json
from brim.support.seals import find_damage, is_sealed
from brim.training.predictions import Prediction

SWEEP_FILE = "sweep.yaml"  # as `brim sweep` keeps it in its folder
NOT_BEGUN = "not begun"


@dataclass(frozen=True, eq=False)
class Run:
    """A directory with results of the split: a run's, a stage's, or a model's that was evaluated.

    Attributes:
        directory: of all of it.
        seed: of the training; None where there was none.
        settings: of `config.yaml`; empty without one.
        text: `config.yaml`, or a stage's `inputs.json`, as it is written.
        manifest: the provenance; empty without one.
        results: counts and training facts of the split.
        scores: by metric, `return`, `expected_return` and `length` among them.
        split: of the data.
        stopped_at: how far the training was, in words, where it had not ended.
    """

    directory: Path
    seed: int | None
    settings: Mapping[str, Any]
    text: str
    manifest: Mapping[str, Any]
    results: Mapping[str, Any]
    scores: Mapping[str, Score]
    split: str
    stopped_at: str | None

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`; none without one."""
        return RunDirectory(self.directory).log("metrics.jsonl")

    def curve(self, key: str) -> list[tuple[int, float]]:
        """Return (step, value) of each line of `metrics.jsonl` with a finite number under `key`."""
        return curve_of(self.metrics, key)

    def validation(self, name: str) -> float | None:
        """Return the validation score of the checkpoint that was tested; None if unknown."""
        best = self.results.get("best_step")
        return dict(self.curve(f"eval/{name}")).get(best) if best is not None else None

    def predictions(self, count: int, places: Collection[int]) -> Iterator[Prediction]:
        """Yield what was written for the examples at these places of the `count` of the split.

        Raises:
            RunError: the file is missing, damaged there, or has another number of rows.
        """
        return RunDirectory(self.directory).predictions(self.split, count=count, at=set(places))

    def without_tokens(self) -> Run:
        """Return the run without what counts tokens, where its tokens are not the students'."""
        scores = {k: v for k, v in self.scores.items() if k not in REGRETS.values()}
        results = {k: v for k, v in self.results.items() if k != "mean_regrets"}
        return replace(self, scores=scores, results=results)

    def stage(self, name: str) -> Path | None:
        """Return the folder of a stage that the run began with; None where it had none."""
        folder = self.manifest.get("stages", {}).get(name)
        if folder is None:
            return None
        place = Path(self.directory, self.manifest.get("stages_dir", "stages"), folder)
        return Path(os.path.normpath(place))


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A run directory without results of the split.

    Attributes:
        directory, label, seed: which it is, as far as known.
        state: how far it came, or how it failed.
    """

    directory: Path
    label: str
    seed: int | None
    state: str


# Folders with nothing to find in them; stages are found by the manifests of their runs.
_SKIPPED = {"checkpoints", "best", "predictions", "data", "stages", "inputs"}


def folders(roots: Sequence[Path]) -> Iterator[tuple[Path, set[str]]]:
    """Return each folder under these once, in the order of the names, and the files in it.

    Raises:
        RunError: one of them is no folder.
    """
    seen: set[Path] = set()
    for root in roots:
        if not root.is_dir():
            raise RunError(f"{root}: no such folder; check the path")
        for place, below, files in os.walk(root, followlinks=True):
            directory = Path(place)
            below[:] = sorted(
                f
                for f in below
                if f not in _SKIPPED
                and not f.startswith(".")
                and (directory / f).resolve() not in seen  # a link may lead back
            )
            if directory.resolve() not in seen:
                seen.add(directory.resolve())
                yield directory, set(files)


def is_run(directory: Path, files: Collection[str]) -> bool:
    """Return whether a folder with these files is a run's, finished or not.

    Raises:
        RunError: it is, and one of the files that make it one is missing.
    """
    missing = [name for name in ("config.yaml", "manifest.json") if name not in files]
    if len(missing) == 1 and not {"results.json", "metrics.jsonl"}.isdisjoint(files):
        raise RunError(f"{directory}: {missing[0]} is missing; bring it back, or remove the run")
    return not missing


def read_run(directory: Path, split: str) -> Run:
    """Read a directory; the run is without scores where there are no results of the split.

    Raises:
        RunError: a file is damaged.
    """
    run = RunDirectory(directory)
    found, settings = run.find_results(split), run.settings()
    return Run(
        directory=directory,
        seed=settings.get("seed"),
        settings=settings,
        text=run.settings_text(),
        manifest=run.manifest(),
        results=found.facts if found else {},
        scores=found.scores if found else {},
        split=split,
        stopped_at=found.stopped_at if found else None,
    )


_ENCODER_DECODERS = ("t5", "mt5")  # families of models that are built from settings


def kind_of_student(run: Run) -> str:
    """Return `encoder-decoder` or `decoder-only`, by a saved configuration or the settings.

    `unknown` where the student was loaded from elsewhere and no folder has its configuration.

    Raises:
        RunError: the configuration is damaged.
    """
    roles = [run.settings.get(role) or {} for role in ("student", "teacher")]
    model = next((role for role in roles if role.get("build") or role.get("path")), {})
    stage, path = run.stage("predistill"), model.get("path")
    places = [run.directory / "best", *([stage / "best"] if stage else [])]
    for place in [*places, *([Path(path)] if path else [])]:
        if not (place / "config.json").exists():
            continue
        damage = find_damage(place, lambda name: name == "config.json") if is_sealed(place) else ""
        if damage:
            raise RunError(
                f"{place}: damaged: {damage}; start again the brim train that wrote it, which "
                "makes it again where it can"
            )
        both = read_json(place / "config.json").get("is_encoder_decoder")
        return "encoder-decoder" if both else "decoder-only"
    if not model.get("build"):
        return "unknown"
    return "encoder-decoder" if model["build"]["family"] in _ENCODER_DECODERS else "decoder-only"


def unfinished(run: Run) -> Unfinished:
    """Say how far a run came that has no results, or none of its end."""
    planned = RunDirectory(run.directory).planned_steps()
    try:
        step = max((row["step"] for row in run.metrics), default=0)
        state = f"at step {step:,}" + (f" of {planned:,}" if planned else "")
    except RunError as error:
        step, state = -1, str(error)
    if step == planned:
        state = f"trained, without results of the {run.split} split"
        if run.stopped_at:
            state = f"trained, but its results of the {run.split} split are of {run.stopped_at}"
    label = name_of(run.settings.get("objective", {})).label
    return Unfinished(run.directory, label, run.seed, _failure(run.directory) or state)


def not_trained(directory: Path) -> Unfinished:
    """Say of a folder with a lock only that its run is before its own training."""
    is_seed, seed = directory.name.startswith("seed="), directory.name.removeprefix("seed=")
    label = directory.parent.name if is_seed else directory.name
    state = _failure(directory) or "in the stages before its own training"
    return Unfinished(directory, label, int(seed) if is_seed and seed.isdecimal() else None, state)


def points_not_begun(
    directory: Path, found: Collection[Path], notes: list[str]
) -> list[Unfinished]:
    """Return the points of the sweep in this folder of which there is no run.

    Args:
        directory: has a `sweep.yaml`.
        found: the run directories that there are, resolved.
        notes: takes a sentence where the file cannot be used, say because a recipe is elsewhere.
    """
    # With the settings comes torch: only where there is a sweep to expand.
    from brim.sweep.grid import load_sweep, points

    path = directory / SWEEP_FILE
    begun = any((directory / name).is_dir() for name in ("logs", "stages"))
    try:
        planned = points(load_sweep(path), str(path))
    except BrimError as error:
        if begun:
            notes.append(f"{path}: which of its runs have not begun is not known: {error}.")
        return []
    if not begun and not any((directory / point.name).is_dir() for point in planned):
        return []  # a file of a sweep that is elsewhere
    missing = []
    for point in planned:
        place = directory / point.name
        if place.resolve() not in found:
            label = name_of(point.config.objective.model_dump()).label
            missing.append(Unfinished(place, label, point.seed, _failure(place) or NOT_BEGUN))
    return missing


def description_of(directory: Path) -> str:
    """Return what the `sweep.yaml` in this folder says of itself, on one line; "" if nothing."""
    path = directory / SWEEP_FILE
    try:
        data = parse(path.read_text(encoding="utf-8"), lambda line: f"{path}:{line}").data
    except (BrimError, OSError, UnicodeDecodeError):  # `points_not_begun` says so
        return ""
    text = data.get("description") if isinstance(data, dict) else None
    return " ".join(text.split()) if isinstance(text, str) else ""


# What `brim sweep` writes into the log of a run that has failed.
_FAILED = re.compile(r"^brim sweep: (.*)$", re.MULTILINE)


def _failure(directory: Path) -> str | None:
    """What a sweep's log says of a run in it that has failed; None where it has not."""
    directory = directory.absolute()
    log = directory.parent.parent / "logs" / f"{directory.parent.name}-{directory.name}.log"
    if not log.is_file():
        return None
    words = _FAILED.findall(log.read_text(encoding="utf-8", errors="replace"))
    return f"{words[-1]} (see {log})" if words and words[-1].startswith("failed") else None
