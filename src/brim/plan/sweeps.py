"""A sweep on paper: systems, stages that they share counted once, and all of it together."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from rich import box
from rich.console import Console

from brim.plan.plan import plan
from brim.plan.render import add_cells, decimal, table_of
from brim.plan.types import GIB, Plan, StagePlan
from brim.training.settings import RunConfig

SECONDS_OF_A_DAY = 24 * 60 * 60


class PlannedRun(Protocol):
    """A run of a sweep, as `brim.sweep.Point` has it."""

    @property
    def label(self) -> str:
        """Of its system; its runs differ in the seed alone."""

    @property
    def config(self) -> RunConfig:
        """Its settings."""

    @property
    def stage_keys(self) -> tuple[str, ...]:
        """What stands for its teacher with its outputs, then for its pre-distilled student."""


@dataclass(frozen=True)
class SweepRow:
    """A system, or a stage that runs share.

    Attributes:
        name: of the system; of a stage, its own and that of the first system that needs it.
        count: runs, or models that are made.
        num_steps: of one of them; None where there are none, or where data would have to tell.
        peak_bytes: the most memory of a phase, on one device.
        peak: that phase, of a system without the stages that have rows of their own.
        update_bytes: the most memory of an update; None where nothing is trained.
        operations: of all of them on all devices; None where data would have to tell.
    """

    name: str
    count: int
    num_steps: int | None
    peak_bytes: int
    peak: str
    update_bytes: int | None
    operations: int | None


@dataclass(frozen=True)
class SweepPlan:
    """A sweep on paper.

    Attributes:
        stages: that runs share, each counted once.
        systems: without these stages.
        warnings: what will probably not go as it was meant.
        devices: over which each run is shared out.
        tflops: what a device computes, in 10^12 operations a second; None where not known.
    """

    stages: tuple[SweepRow, ...]
    systems: tuple[SweepRow, ...]
    warnings: tuple[str, ...]
    devices: int = 1
    tflops: float | None = None

    @property
    def operations(self) -> int | None:
        """Of all of it; None where a row's are not known."""
        rows = [row.operations for row in (*self.stages, *self.systems)]
        return None if None in rows else sum(filter(None, rows))

    @property
    def device_days(self) -> float | None:
        """What `operations` take one device; None where they or its speed are not known."""
        if self.operations is None or not self.tflops:
            return None
        return self.operations / (self.tflops * 1e12) / SECONDS_OF_A_DAY


def plan_sweep(
    runs: Iterable[PlannedRun],
    *,
    devices: int = 1,
    memory_limit: float | None = None,
    tflops: float | None = None,
) -> SweepPlan:
    """Count the runs of a sweep; arguments and errors are those of `plan`."""
    plans: dict[str, Plan] = {}
    counts: dict[str, int] = {}
    shared: dict[tuple[str, str], tuple[str, StagePlan]] = {}
    for run in runs:
        label = run.label
        if label not in plans:
            plans[label] = plan(run.config, devices=devices, memory_limit=memory_limit)
        counts[label] = counts.get(label, 0) + 1
        for stage in plans[label].stages[:-1]:
            key = run.stage_keys[stage.name == "predistill"]
            shared.setdefault((stage.name, key), (label, stage))
    made: dict[tuple[str, str], list[StagePlan]] = {}
    for label, stage in shared.values():
        made.setdefault((stage.name, label), []).append(stage)
    return SweepPlan(
        tuple(
            _row(f"{name} of {label}", stages[0], len(stages), devices)
            for (name, label), stages in made.items()
        ),
        tuple(_row(label, plans[label].stages[-1], counts[label], devices) for label in plans),
        tuple(_warnings(plans)),
        devices,
        tflops,
    )


def _row(name: str, stage: StagePlan, count: int, devices: int) -> SweepRow:
    peak = max(stage.memory, key=lambda phase: stage.memory[phase].total)
    update, each = stage.memory.get("update"), stage.total_operations
    return SweepRow(
        name=name,
        count=count,
        num_steps=stage.num_steps,
        peak_bytes=stage.memory[peak].total,
        peak=peak,
        update_bytes=None if update is None else update.total,
        operations=None if each is None else each * count * devices,
    )


def _warnings(plans: dict[str, Plan]) -> Iterable[str]:
    """Each once, with the systems that it is about."""
    found: dict[str, list[str]] = {}
    for label, planned in plans.items():
        for warning in planned.warnings:
            found.setdefault(warning, []).append(label)
    for warning, labels in found.items():
        more = f" and {len(labels) - 1} more" if len(labels) > 1 else ""
        yield f"{labels[0]}{more}: {warning}"


def sweep_as_dict(planned: SweepPlan) -> dict[str, Any]:
    """Plain values, bytes and operations as whole numbers."""
    found = {"operations": planned.operations, "device_days": planned.device_days}
    return {**asdict(planned), **found}


def sweep_as_text(planned: SweepPlan, *, width: int | None = None) -> str:
    """The tables of a sweep's plan; `width` as in `as_text`."""
    out, lines = io.StringIO(), None if width is None else box.SIMPLE_HEAD
    console = Console(file=out, width=width or 10_000, highlight=False, no_color=True)
    kinds = (
        ("shared stages, each counted once", "stage", "made", planned.stages),
        ("systems, without these stages", "system", "runs", planned.systems),
    )
    for title, name, count, rows in kinds:
        if not rows:
            continue
        columns = (name, count, "steps", "update, GiB", "most, GiB", "phase", "petaFLOP, all")
        table = table_of(title, columns, lines)
        for row in rows:
            numbers = (row.update_bytes, row.peak_bytes)
            sizes = (_size(n, GIB) for n in numbers)
            cells = (row.name, row.count, row.num_steps, *sizes, row.peak)
            add_cells(table, [*cells, _size(row.operations, 1e15)])
        console.print(table, "", markup=False)
    warnings = (f"warning: {warning}" for warning in planned.warnings)
    text = out.getvalue() + "\n".join([_total(planned), *warnings])
    return "\n".join(line.rstrip() for line in text.splitlines())


def _total(planned: SweepPlan) -> str:
    num_runs = sum(row.count for row in planned.systems)
    peak = max(row.peak_bytes for row in (*planned.stages, *planned.systems))
    total = "operations are not known"
    if planned.operations is not None:
        total = f"{planned.operations:.3g} FLOP without evaluations"
    days = ""
    if planned.device_days is not None:
        days = f" = {decimal(planned.device_days)} device-days at {planned.tflops:g} teraFLOP/s"
    return f"{num_runs:,} runs: {total}{days}; most memory at once: {decimal(peak / GIB)} GiB"


def _size(value: int | None, unit: float) -> str | None:
    return None if value is None else decimal(value / unit)
