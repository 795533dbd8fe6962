"""A plan as text and as JSON."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from brim.plan.memory import Memory
from brim.plan.types import GIB, Plan

Cell = str | int | None

# Of a step, as operations and traffic have them.
PHASES = ("rollout", "teacher", "student", "update", "total")


def as_dict(plan: Plan) -> dict[str, Any]:
    """Plain values, bytes and operations as whole numbers."""
    found = asdict(plan)
    for stage, row in zip(plan.stages, found["stages"], strict=True):
        for phase, memory in stage.memory.items():
            row["memory"][phase]["total"] = memory.total
        if stage.operations is not None:
            row["operations"]["total"] = stage.operations.total
        if stage.traffic is not None:
            row["traffic"]["total"] = stage.traffic.total
    return {**found, "peak_bytes": plan.peak_bytes, "kept_bytes": plan.kept_bytes}


def as_text(plan: Plan, *, width: int | None = None) -> str:
    """The tables of a plan.

    Args:
        plan: what to show.
        width: of a terminal, for which lines are drawn; None for plain columns.
    """
    out = io.StringIO()
    console = Console(file=out, width=width or 10_000, highlight=False, no_color=True)
    for table in _tables(plan, None if width is None else box.SIMPLE_HEAD):
        console.print(table, "", markup=False)
    unit, size = _memory_unit(plan)
    peak, kept = (decimal(value / size) for value in (plan.peak_bytes, plan.kept_bytes))
    lines = [f"most memory at once: {peak} {unit}; left on the disk: {kept} {unit}"]
    lines += [f"warning: {warning}" for warning in plan.warnings]
    text = out.getvalue() + "\n".join(lines)
    return "\n".join(line.rstrip() for line in text.splitlines())


def _tables(plan: Plan, lines: box.Box | None) -> list[Table]:
    unit, size = _memory_unit(plan)
    models = table_of(
        "models", ("role", "model", "weights", "parameters", "trained", "LoRA", unit), lines
    )
    for model in plan.models:
        texts = (model.role, model.name, model.stored)
        parameters = (model.num_parameters, model.num_trainable, model.num_adapters)
        add_cells(models, [*texts, *parameters, _scaled(model.weight_bytes, size)])
    numbers = ("examples", "steps", "completions", "tokens at most")
    sizes = (f"a checkpoint, {unit}", f"left, {unit}")
    stages = table_of("stages", ("stage", "what it does", *numbers, *sizes), lines)
    for stage in plan.stages:
        counts = (stage.num_examples, stage.num_steps, stage.num_completions, stage.max_tokens)
        disk = (_scaled(value, size) for value in (stage.checkpoint_bytes, stage.kept_bytes))
        add_cells(stages, [stage.name, stage.does, *counts, *disk])
    parts = [*(field.name for field in fields(Memory)), "total"]
    if plan.devices == 1 and not _any_exchange(plan):
        parts.remove("exchange")
    title = f"memory at the peak of each phase{_of_each(plan)}, {unit}"
    memory = table_of(title, ("stage", "phase", *parts), lines)
    for stage in plan.stages:
        for phase, held in stage.memory.items():
            add_cells(
                memory, [stage.name, phase, *(_scaled(getattr(held, part), size) for part in parts)]
            )
    tables = [models, stages, memory, _operations(plan, lines)]
    if plan.devices > 1:
        tables.append(_traffic(plan, lines))
    if any(stage.compute_seconds or stage.network_seconds for stage in plan.stages):
        tables.append(_seconds(plan, lines))
    return tables


def _operations(plan: Plan, lines: box.Box | None) -> Table:
    largest = max(stage.operations.total for stage in plan.stages if stage.operations)
    unit, size = ("teraFLOP", 1e12) if largest > 1e12 else ("gigaFLOP", 1e9)
    title = f"operations of a step{_of_each(plan)}, {unit}"
    table = table_of(title, ("stage", *PHASES, "all steps"), lines)
    for stage in plan.stages:
        counts = [getattr(stage.operations, phase, None) for phase in PHASES]
        add_cells(
            table, [stage.name, *(_scaled(n, size) for n in (*counts, stage.total_operations))]
        )
    return table


def _traffic(plan: Plan, lines: box.Box | None) -> Table:
    largest = max(stage.traffic.total for stage in plan.stages if stage.traffic)
    unit, size = ("GB", 1e9) if largest > 1e9 else ("MB", 1e6)
    table = table_of(f"sent in a step{_of_each(plan)}, {unit}", ("stage", *PHASES), lines)
    for stage in plan.stages:
        counts = [getattr(stage.traffic, phase, None) for phase in PHASES]
        add_cells(table, [stage.name, *(_scaled(n, size) for n in counts)])
    return table


def _seconds(plan: Plan, lines: box.Box | None) -> Table:
    table = table_of("seconds of a step, on paper", ("stage", "computing", "sending"), lines)
    for stage in plan.stages:
        seconds = (stage.compute_seconds, stage.network_seconds)
        add_cells(table, [stage.name, *(_scaled(n, 1) for n in seconds)])
    return table


def _of_each(plan: Plan) -> str:
    return "" if plan.devices == 1 else f", on each of {plan.devices:,} devices"


def _any_exchange(plan: Plan) -> bool:
    return any(memory.exchange for stage in plan.stages for memory in stage.memory.values())


def _memory_unit(plan: Plan) -> tuple[str, int]:
    return ("GiB", GIB) if plan.peak_bytes >= GIB else ("MiB", 2**20)


def table_of(title: str, columns: Sequence[str], lines: box.Box | None) -> Table:
    """An empty table; columns of words stand left, those of numbers right."""
    table = Table(title=title, title_justify="left", title_style="", box=lines, pad_edge=False)
    for name in columns:
        words = name in ("role", "model", "weights", "stage", "system", "phase", "what it does")
        words &= not (name == "weights" and "phase" in columns)
        table.add_column(name, justify="left" if words else "right", overflow="fold")
    return table


def add_cells(table: Table, cells: Sequence[Cell]) -> None:
    """A row; whole numbers get commas, and what is zero or None a dash."""
    table.add_row(
        *(f"{cell:,}" if isinstance(cell, int) and cell else str(cell or "-") for cell in cells)
    )


def _scaled(value: float | None, unit: float) -> str | None:
    return decimal(value / unit) if value else None


def decimal(value: float) -> str:
    """Three digits, or all of those before the point."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:#.3g}".rstrip(".")
