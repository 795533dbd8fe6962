"""Seconds of real steps of each stage on this machine, and the hours of the run that follow."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch

from brim.config.loading import Config
from brim.errors import RunError
from brim.plan.advice import Seen, advise, memory_warnings
from brim.plan.hours import Measured, Part
from brim.plan.plan import Plan, Planner
from brim.runs.directory import RunDirectory
from brim.runs.stage_results import evaluate_stages
from brim.runs.train import train
from brim.support.progress import Meter, Reporter
from brim.support.timing import phases, timed
from brim.tasks import Split
from brim.training.loop_settings import LoopConfig
from brim.training.optimizer import (
    count_evaluations,
    count_saves,
    count_steps,
)
from brim.training.predictions import BLOCK
from brim.training.settings import RunConfig, TrackingConfig

# The first step also takes memory and chooses kernels: it is not counted.
_WARM_UP = 1
# Examples of a measured evaluation, at least: those that are written at once, and these.
_EVALUATED = 64

# As the trainer calls them: parts of a step, and all that it times.
_STEP = ("rollout", "reward", "teacher", "credit", "update")
_TIMED = ("step", "evaluation", "save")

_Settings = TypeVar("_Settings", bound=Config)


def measure(
    plan: Plan, config: RunConfig, *, steps: int = 1, reporter: Reporter | None = None
) -> Plan:
    """Run each stage for a few steps in a folder that is deleted; the plan with what they took.

    Data and models are loaded as `brim train` would, and its errors raised. A step that does not
    count comes first. Evaluations, teacher outputs and tests are of a few hundred examples at most,
    and counted in proportion.

    Args:
        plan: of the run.
        config: the run's settings.
        steps: of each stage, that are measured.
        reporter: shows progress.
    """
    planner, timer = Planner(config, 1), Timer(reporter or Reporter(quiet=True))
    with TemporaryDirectory() as folder:
        out = Path(folder)
        with phases() as seconds, timed("run"):
            train(shortened(config, planner, steps), out, reporter=timer)
            if config.evaluation.stages:
                for split in config.task.splits()[2:]:
                    evaluate_stages(out, split=split, reporter=timer)
        logs = {name: _folder_of(out, name, config) for name, *_ in config.stages()}
        timings = {name: RunDirectory(path).log("timings.jsonl") for name, path in logs.items()}
        metrics = {name: RunDirectory(path).log("metrics.jsonl") for name, path in logs.items()}
        few = RunDirectory(out).manifest()["data"]
        counts = {
            split: (few[split]["num_examples"], _count(config, split, out))
            for split in config.task.splits()
        }
    parts = parts_of_run(config, timings, timer.took, counts, whole=seconds["run"])
    cut = {name: _mean(rows, "rollout/truncated") for name, rows in metrics.items()}
    seen = Seen(cut, counts["validation"][1] or 1, on_gpu=torch.cuda.is_available())
    measured = Measured(parts, advise(planner, parts, seen))
    return replace(
        plan,
        stages=tuple(
            replace(stage, seconds=_of_a_step(stage.name, parts)) for stage in plan.stages
        ),
        warnings=(*plan.warnings, *_warnings(config, plan, planner)),
        measured=measured,
    )


def _of_a_step(stage: str, parts: Iterable[Part]) -> float | None:
    """Seconds; None of a stage without steps."""
    own = [part.seconds for part in parts if part.stage == stage and part.what in (*_STEP, "rest")]
    return math.fsum(own) or None


def _warnings(config: RunConfig, plan: Plan, planner: Planner) -> Iterator[str]:
    yield from memory_warnings(plan, planner, _memory_bytes())
    if config.teacher.build is not None or config.student.build is not None:
        yield (
            "a model from scratch writes up to decoding.max_tokens before it is trained, and was "
            "measured so: what it writes later takes less"
        )


def _memory_bytes() -> int:
    """Of the device that the models are on."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class Timer(Reporter):
    """A reporter that also keeps what each piece of work took, and of how many units it was."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__(quiet=reporter.console.quiet)
        self.took: dict[str, tuple[float, int]] = {}

    @contextmanager
    def meter(self, name: str, total: int) -> Iterator[Meter]:
        """See `Reporter.meter`."""
        with phases() as seconds, timed(name), super().meter(name, total) as meter:
            yield meter
        before, number = self.took.get(name, (0.0, 0))  # the test is read for each model
        self.took[name] = before + seconds[name], number + total


def shortened(config: RunConfig, planner: Planner, steps: int) -> RunConfig:
    """Return the same run with a few steps a stage, and evaluations of few examples."""
    rows = max(loop.rollout_batch_size for _, _, loop, _ in config.stages())
    number = _WARM_UP + steps
    loop = {
        "max_steps": number, "num_epochs": None, "evaluate_every": number, "save_every": number
    }  # fmt: skip
    few = min(BLOCK, max(_EVALUATED, planner.evaluated.rows))
    limits: dict[Split, int] = {"train": max(number * rows, few), "validation": few, "test": few}
    task = {
        f"max_{split}_examples": min(limit, config.task.limit(split) or limit)
        for split, limit in limits.items()
    }
    optim = {"warmup_steps": 0}  # of which so few steps would have to be warned
    return _updated(
        config,
        task=task,
        optim=optim,
        trainer={**loop, "callbacks": ()},
        teacher={"train": {"trainer": loop, "optim": optim}},
        student={"predistill": {"trainer": loop, "optim": optim}},
        evaluation={"num_samples": 0},
        tracking=TrackingConfig(),
    )


def _updated(settings: _Settings, **changes: Any) -> _Settings:
    """A copy of settings with others, those of parts that there are included."""
    values: dict[str, Any] = {}
    for name, change in changes.items():
        part = getattr(settings, name)
        if not isinstance(change, dict):
            values[name] = change
        elif part is not None:
            values[name] = _updated(part, **change)
    return settings.model_copy(update=values)


def _count(config: RunConfig, split: Split, out: Path) -> int | None:
    """The examples of a split as training uses it; None of a stream without a limit."""
    count, limit = config.task.limit(split), None
    if not getattr(config.task, "streaming", False):
        count = len(config.task.load(split, cache_dir=out / "data"))
    if split == "validation":
        limit = config.evaluation.max_validation_examples
    return min(filter(None, (count, limit)), default=None)


def _mean(rows: Iterable[Mapping[str, Any]], key: str) -> float:
    return fmean([row[key] for row in rows if key in row] or [0.0])


def _folder_of(out: Path, name: str, config: RunConfig) -> Path:
    if name == config.objective.name:
        return out
    (folder,) = (out / "stages").glob(f"{name}-*")
    return folder


def parts_of_run(
    config: RunConfig,
    timings: Mapping[str, Sequence[Mapping[str, float]]],
    took: Mapping[str, tuple[float, int]],
    counts: Mapping[str, tuple[int, int | None]],
    *,
    whole: float,
) -> tuple[Part, ...]:
    """Return the parts of a run.

    Args:
        config: of the run.
        timings: by stage that trains, the rows of `timings.jsonl` of a short run.
        took: what else the short run did, see `Timer`.
        counts: by split, the examples of the short run and of the run; None where not known.
        whole: seconds of the short run.

    Raises:
        RunError: of a stage no step was measured.
    """
    stages: dict[str, list[Part]] = {"start": []}
    known = 0.0
    for name, _, loop, _ in config.stages():
        stages[name] = [*_of_training(name, timings[name], loop, counts)]
        known += math.fsum(row.get(f"time/{w}", 0.0) for row in timings[name] for w in _TIMED)
    order = ("start", "teacher", "teacher_outputs", "predistill", config.objective.name, "test")
    for name, (seconds, number) in took.items():
        if name in timings:
            continue
        known += seconds
        of, _, split = name.rpartition(" ")
        if of == "teacher":
            stage, what, split = "teacher_outputs", "example", "train"
        elif of == "reading":
            stage, what = "start", name
        else:
            stage, what = "test", of.removesuffix(" on")
            what += f", {split.removeprefix('test.')}" if split != "test" else ""
        part = Part(stage, what, seconds / max(number, 1), counts[split][1])
        stages.setdefault(stage, []).append(part)
    stages["start"].append(Part("start", "loading", max(0.0, whole - known), 1))
    return tuple(part for stage in order for part in stages.get(stage, ()))


def _of_training(
    stage: str,
    timings: Sequence[Mapping[str, float]],
    loop: LoopConfig,
    counts: Mapping[str, tuple[int, int | None]],
) -> Iterator[Part]:
    """The parts of a step, evaluations, saves; the first of each in the log is a warm-up."""
    rows = [row for row in timings if "time/step" in row][_WARM_UP:]
    if not rows:
        raise RunError(f"{stage}: no step was measured")
    num_train, steps = counts["train"][1], None
    if loop.max_steps is not None or num_train is not None:
        steps = count_steps(loop, num_train or 0)
    found = {w: fmean(row.get(f"time/{w}", 0.0) for row in rows) for w in _STEP}
    found["rest"] = max(0.0, _mean(rows, "time/step") - math.fsum(found.values()))
    yield from (Part(stage, what, seconds, steps) for what, seconds in found.items() if seconds)
    last = {key: value for row in timings for key, value in row.items()}
    few, all_of_them = counts["validation"]
    each, number = last["time/evaluation"] / few, None
    if steps is not None and all_of_them is not None:
        number = 1 + count_evaluations(loop, steps)
    yield Part(stage, "evaluation", each * (all_of_them or few), number)
    yield Part(stage, "save", last["time/save"], steps and count_saves(loop, steps))
