"""A sweep on paper: systems, stages that they share counted once, and all of it together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from brim.plan.plan import GIB, Plan, StagePlan, plan
from brim.plan.render import decimal, scaled, table_of, text_of
from brim.sweep import Point

SECONDS_OF_A_DAY = 24 * 60 * 60


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
    """A sweep on paper; stages that runs share are counted once, and not in systems.

    `tflops` is what a device reaches, in 10^12 operations a second; None where not known.
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
    runs: Iterable[Point],
    *,
    devices: int = 1,
    memory_limit: float | None = None,
    tflops: float | None = None,
) -> SweepPlan:
    """Count the runs of a sweep; other arguments and errors are those of `plan`.

    `tflops` is what a device reaches, in 10^12 operations a second, as `brim plan --measure` finds
    it; None to leave device-days out.
    """
    plans: dict[str, Plan] = {}
    counts: Counter[str] = Counter()
    shared: dict[tuple[str, str], tuple[str, StagePlan]] = {}
    for run in runs:
        if run.label not in plans:
            plans[run.label] = plan(run.config, devices=devices, memory_limit=memory_limit)
        counts[run.label] += 1
        for stage in plans[run.label].stages[:-1]:
            key = run.stage_keys[stage.name == "predistill"]
            shared.setdefault((stage.name, key), (run.label, stage))
    made: dict[str, list[StagePlan]] = {}
    for label, stage in shared.values():
        made.setdefault(f"{stage.name} of {label}", []).append(stage)
    warned: dict[str, list[str]] = {}
    for label, planned in plans.items():
        for warning in planned.warnings:
            warned.setdefault(warning, []).append(label)
    return SweepPlan(
        tuple(_row(name, stages[0], len(stages), devices) for name, stages in made.items()),
        tuple(_row(label, plans[label].stages[-1], counts[label], devices) for label in plans),
        tuple(
            f"{labels[0]}{f' and {len(labels) - 1} more' if labels[1:] else ''}: {warning}"
            for warning, labels in warned.items()
        ),
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


def sweep_as_dict(planned: SweepPlan) -> dict[str, Any]:
    """Plain values, bytes and operations as whole numbers."""
    found = {"operations": planned.operations, "device_days": planned.device_days}
    return {**asdict(planned), **found}


def sweep_as_text(planned: SweepPlan, *, width: int | None = None) -> str:
    """The tables of a sweep's plan; `width` as in `as_text`."""
    kinds = (
        ("shared stages, each counted once", "stage", "made", planned.stages),
        ("systems, without these stages", "system", "runs", planned.systems),
    )
    tables = [
        table_of(
            title,
            (name, count, "steps", "update, GiB", "most, GiB", "phase", "petaFLOP, all"),
            [
                (
                    *(row.name, row.count, row.num_steps, scaled(row.update_bytes, GIB)),
                    *(scaled(row.peak_bytes, GIB), row.peak, scaled(row.operations, 1e15)),
                )
                for row in rows
            ],
        )
        for title, name, count, rows in kinds
        if rows
    ]
    num_runs = sum(row.count for row in planned.systems)
    peak = max(row.peak_bytes for row in (*planned.stages, *planned.systems))
    total, days = "operations are not known", ""
    if planned.operations is not None:
        total = f"{planned.operations:.3g} FLOP without evaluations"
    if planned.device_days is not None:
        days = f" = {decimal(planned.device_days)} device-days at {planned.tflops:g} teraFLOP/s"
    last = f"{num_runs:,} runs: {total}{days}; most memory at once: {decimal(peak / GIB)} GiB"
    return text_of(tables, last, planned.warnings, width)
