"""Seconds of a real step of each stage, on this machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from brim.config.loading import Config
from brim.errors import RunError
from brim.plan.plan import Plan
from brim.runs.directory import RunDirectory
from brim.runs.train import train
from brim.support.progress import Reporter
from brim.training.optimizer import training_stages
from brim.training.settings import RunConfig, TrackingConfig

# The first one also takes memory and chooses kernels; the last one is measured.
_STEPS = 2

_Settings = TypeVar("_Settings", bound=Config)


def measure(plan: Plan, config: RunConfig, *, reporter: Reporter | None = None) -> Plan:
    """Train each stage for two steps, in a folder that is deleted; the plan with their seconds.

    Data and models are loaded as `brim train` would, and its errors raised. Texts are as long as
    they happen to be, and a tokenizer that is trained sees those of two batches only.
    """
    with TemporaryDirectory() as folder:
        train(shortened(config), Path(folder), reporter=reporter)
        stages = tuple(
            stage
            if stage.operations is None
            else replace(stage, seconds=_seconds(Path(folder), stage.name, config))
            for stage in plan.stages
        )
    return replace(plan, stages=stages)


def shortened(config: RunConfig) -> RunConfig:
    """Return the same run with two steps a stage, and next to no evaluations."""
    rows = max(loop.rollout_batch_size for _, _, loop, _ in training_stages(config))
    loop = {
        "max_steps": _STEPS, "num_epochs": None, "evaluate_every": _STEPS, "save_every": _STEPS
    }  # fmt: skip
    task = {"max_train_examples": _STEPS * rows, "max_validation_examples": 1}
    return _updated(
        config,
        task={**task, "max_test_examples": 1},
        trainer={**loop, "callbacks": ()},
        teacher={"train": {"trainer": loop}},
        student={"predistill": {"trainer": loop}},
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


def _seconds(run: Path, name: str, config: RunConfig) -> float:
    folder = run
    if name != config.objective.name:
        (folder,) = (run / "stages").glob(f"{name}-*")
    log = RunDirectory(folder).log("timings.jsonl")
    rows = [row["time/step"] for row in log if "time/step" in row]
    if len(rows) < _STEPS:
        raise RunError(f"{name}: no step was measured")
    return float(rows[-1])
