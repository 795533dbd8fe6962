"""Other systems of a comparison: the models that its runs began with, and models without a run."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from brim.compare.measures import other_measure
from brim.report.folders import Run, read_run
from brim.report.labels import Name
from brim.report.paper_numbers import SEEDS
from brim.report.systems import SystemRuns
from brim.runs.directory import RunDirectory
from brim.runs.tested import results_folder

_STAGES = {
    "teacher": Name("Teacher", "teacher", "Teacher"),
    "student": Name("Student", "student", "Student"),
    "predistill": Name("Pre-distilled student", "student", "Pre-distilled student"),
}


def data_of(run: Run) -> str | None:
    """Return the hash of the examples of the split; None where the file does not have it."""
    data = run.results.get("data", {})
    return data.get("sha256") if isinstance(data, dict) else None


def in_seed_order(runs: Iterable[Run]) -> list[Run]:
    """Return the paper's five seeds first and in its order, then others ascending."""

    def place(run: Run) -> tuple[int, int]:
        seed = -1 if run.seed is None else run.seed
        return (SEEDS.index(seed) if seed in SEEDS else len(SEEDS)), seed

    return sorted(runs, key=place)


def begun_with(runs: Sequence[Run], notes: list[str]) -> list[SystemRuns]:
    """Return the teacher, and the students as loaded and as pre-distilled, of these runs.

    Their results are of the same examples and decoding as the run's.

    Args:
        runs: of one comparison.
        notes: takes a sentence about each model without such results.
    """
    systems = []
    for stage, name in _STAGES.items():
        found: dict[Path, Run] = {}
        for run in in_seed_order(runs):
            place = run.stage(stage)
            if place is None:
                continue
            own = RunDirectory(run.directory).results(run.split)
            directory = results_folder(place, own, run.split)
            if directory in found:
                continue
            tested = replace(read_run(directory, run.split), seed=_seed_of(run, stage))
            if stage == "teacher" and run.settings["teacher"].get("reads") == "text":
                tested = tested.without_tokens()
            if any(_same_test(tested, other) for other in found.values()):
                continue  # made with another budget of memory
            if data_of(tested) not in (None, data_of(run)):
                tested = replace(tested, scores={})
            found[directory] = tested
            if not tested.scores:
                notes.append(_how_to_evaluate(run, stage, place, tested.seed))
        with_scores = tuple(run for run in found.values() if run.scores)
        if with_scores:
            systems.append(SystemRuns(name.label, name, with_scores))
    return systems


def _seed_of(run: Run, stage: str) -> int | None:
    """The seed that a model before the run's own training depends on; None for any seed's."""
    teacher = run.settings["teacher"]
    one_teacher = teacher.get("train") is None or teacher.get("seed") is not None
    return None if one_teacher and stage != "predistill" else run.seed


def _same_test(a: Run, b: Run) -> bool:
    return a.seed == b.seed and a.results.get("decoding") == b.results.get("decoding")


def _how_to_evaluate(run: Run, stage: str, directory: Path, seed: int | None) -> str:
    label = _STAGES[stage].label
    which = label if seed is None else f"{label} of seed {seed}"
    if not directory.is_dir():
        return f"{which}: not in the tables, for its folder {directory} is missing."
    command = ["brim", "evaluate", str(run.directory), "--stage", stage, "--split", run.split]
    return f"{which}: not evaluated, so not in the tables; evaluate by `{shlex.join(command)}`."


def evaluated_alone(models: Sequence[Run], runs: Sequence[Run]) -> list[SystemRuns]:
    """Return the models that were evaluated by `--model … --out` on the examples of these runs.

    Scores by another teacher are left out.
    """
    systems = []
    for model in models:
        if model.split != runs[0].split or not data_of(model) == data_of(runs[0]) is not None:
            continue
        scores = {
            name: score
            for name, score in model.scores.items()
            if not all(other_measure(name, model.results, run.results) for run in runs)
        }
        if scores:
            folder = model.directory.name
            name = _STAGES.get(folder, Name(folder, "other", folder))
            systems.append(SystemRuns(name.label, name, (replace(model, scores=scores),)))
    return systems
