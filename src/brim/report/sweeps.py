"""Points of a sweep that have no run directory yet."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from brim.errors import BrimError
from brim.report.directories import failure
from brim.report.labels import name_of
from brim.report.systems import Unfinished

SWEEP_FILE = "sweep.yaml"  # as `brim sweep` keeps it in its folder
NOT_BEGUN = "not begun"


def points_not_begun(
    directory: Path, found: Collection[Path], notes: list[str]
) -> list[Unfinished]:
    """The points of the sweep in this folder of which there is no run.

    Args:
        directory: has a `sweep.yaml`.
        found: the run directories that there are, resolved.
        notes: takes a sentence where the file cannot be used, say because a recipe is elsewhere.
    """
    # With the settings comes torch: only where there is a sweep to expand.
    from brim.sweep.grid import points
    from brim.sweep.spec import load_sweep

    path = directory / SWEEP_FILE
    begun = any((directory / name).is_dir() for name in ("logs", "stages"))
    try:
        planned = points(load_sweep(path), str(path))
    except BrimError as error:
        if begun:
            notes.append(f"{path}: which of its runs have not begun is not known: {error}.")
        return []
    if not begun and not any((directory / point.name).is_dir() for point in planned):
        return []  # a file that somebody wrote here, and whose sweep is elsewhere
    missing = []
    for point in planned:
        place = directory / point.name
        if place.resolve() not in found:
            label = name_of(point.config.objective.model_dump()).label
            state = failure(place) or NOT_BEGUN
            missing.append(Unfinished(place, label, point.seed, state))
    return missing
