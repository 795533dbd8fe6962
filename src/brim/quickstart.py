"""The first thing that a newcomer runs: letters to phonemes, four systems, one page of results."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from brim.compare.side_by_side import side_by_side
from brim.config.loading import load_config
from brim.errors import RunError
from brim.recipes import find_recipe
from brim.report import write_reports
from brim.report.labels import name_of
from brim.runs.directory import RunDirectory
from brim.runs.tested import find_tested
from brim.runs.train import train
from brim.support.progress import Reporter
from brim.sweep import Point, run_sweep
from brim.sweep.launching import local_launcher
from brim.training.settings import RunConfig

# A short run checks the set-up, not the method: everything is there, nothing has learned much.
SHORT = (
    "task.max_train_examples=4000",
    "task.max_validation_examples=100",
    "task.max_test_examples=300",
    "teacher.train.trainer.max_steps=60",
    "teacher.train.trainer.evaluate_every=60",
    "student.predistill.trainer.max_steps=40",
    "student.predistill.trainer.evaluate_every=40",
    "trainer.max_steps=10",
    "trainer.evaluate_every=5",
)

METHODS = {"LLMR": "llmr", "BRIM": "brim", "anchored": "anchored"}
# In the paper's settings LLMR and BRIM change places with the machine. In these the variance that
# BRIM saves reaches the gradient: its return was ahead in each seed (docs/results/README.md).
CENTERED = ("objective.q_centering=policy", "objective.baseline=time_mean")
BEST, START = "anchored", "pre-distilled"
SCORES = ("exact_match", "expected_return", "length")


def quickstart(out: Path, *, seed: int, short: bool, reporter: Reporter) -> str:
    """Train a teacher, pre-distill a student, then three methods from it; compare all five.

    What all begin with is made by all cores; then the methods train side by side, as a sweep.

    Args:
        out: folder of the runs, their shared stages, logs and the report; unfinished runs are
            resumed.
        seed: of everything random.
        short: everything once, nothing for long.
        reporter: shows progress.

    Returns:
        The results and what to try next, as text.

    Raises:
        RunError: a run failed, or another process works on it.
        KeyboardInterrupt: it was stopped; the runs have saved what they had.
    """
    started = time.monotonic()
    shared = (f"seed={seed}", *(SHORT if short else ()))
    todo = [
        _point(i, method, seed, shared if method == BEST else (*shared, *CENTERED))
        for i, method in enumerate(METHODS.values(), start=1)
    ]
    first = todo[0]
    train(first.config, out / first.name, stages_dir=out / "stages", stages_only=True,
          reporter=reporter, command=sys.argv)  # fmt: skip
    launcher = local_launcher(len(todo), 1)  # models so small gain little from more threads
    outcome = run_sweep(todo, out, launcher=launcher, retry=0, reporter=reporter)
    if outcome.elsewhere:
        raise RunError(f"{out}: another process is working on it; wait or stop it")
    if outcome.failed:
        raise RunError(f"{outcome.in_words()}\n{out / 'logs'} says why; the same command goes on")
    runs = {label: out / method for label, method in METHODS.items()}
    tested = find_tested(RunDirectory(runs[BEST]), "test")  # by the sweep
    baseline = name_of(first.config.objective.model_dump()).label
    write_reports([*runs.values()], out / "report", baseline=baseline, reporter=reporter)
    return "\n".join(
        [
            headline(tested["teacher"], tested["predistill"], runs[BEST]),
            "",
            side_by_side(
                {"teacher": tested["teacher"], START: tested["predistill"], **runs},
                [*((label, START) for label in runs), (BEST, "LLMR")],
                metrics=SCORES,
            ),
            "",
            f"report: {out / 'report' / 'report.html'}   ({time.monotonic() - started:.0f} s)",
            "next:",
            f"  echo 'd i s t i l' | brim generate {runs[BEST]}",
            f"  brim compare {runs[BEST]} {runs['LLMR']}",
            "  brim train cmudict/brim objective.k=4 --out runs/k4",
            "  brim recipes",
            "  your own teacher on your own file: docs/own_teacher.md",
        ]
    )


class _Run(Point):
    """A run whose folder is its method's name: there is one seed."""

    @property
    def name(self) -> str:
        """The run directory below the quickstart's."""
        return self.label


def _point(number: int, method: str, seed: int, overrides: tuple[str, ...]) -> _Run:
    recipe = f"cmudict/{method}"
    config = load_config(RunConfig, find_recipe(recipe), overrides, search=find_recipe)
    return _Run(number, method, seed, recipe, overrides, config)


def headline(teacher: Path, start: Path, student: Path) -> str:
    """Return what share of the teacher the student keeps, at what share of its size."""
    found = [RunDirectory(path).results("test") for path in (teacher, start, student)]
    metric = found[0].scores["exact_match"]
    _, before, after = (one.scores["exact_match"].value / (metric.value or 1.0) for one in found)
    size = found[2].facts["num_parameters"] / found[0].facts["num_parameters"]
    return (
        f"With {size:.0%} of the teacher's parameters the student keeps {after:.0%} of its "
        f"{metric.name}; it was {before:.0%} before the method ({BEST})."
    )
