"""Plans as text and as JSON."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from brim.plan.hours import Measured, total_hours
from brim.plan.memory import Memory
from brim.plan.plan import GIB, Plan

if TYPE_CHECKING:
    from rich.table import Table

Rows = Sequence[Sequence[str | int | None]]

# Of a step, as operations and traffic have them.
PHASES = ("rollout", "teacher", "student", "update", "total")
_WORDS = {
    "role", "model", "stage", "system", "phase", "what it does", "part", "setting", "why"
}  # fmt: skip


def as_dict(plan: Plan) -> dict[str, Any]:
    """Plain values, bytes and operations as whole numbers."""
    found = asdict(plan)
    del found["text"]
    for stage, row in zip(plan.stages, found["stages"], strict=True):
        for phase, memory in stage.memory.items():
            row["memory"][phase]["total"] = memory.total
        for name in ("operations", "traffic"):
            if row[name] is not None:
                row[name]["total"] = getattr(stage, name).total
    if plan.measured is not None:
        found["measured"]["hours"] = plan.measured.hours
    return {**found, "peak_bytes": plan.peak_bytes, "kept_bytes": plan.kept_bytes}


def as_text(plan: Plan, *, width: int | None = None) -> str:
    """The tables of a plan; with a terminal's `width`, lines are drawn."""
    unit, size = ("GiB", GIB) if plan.peak_bytes >= GIB else ("MiB", 2**20)
    of_each = "" if plan.devices == 1 else f", on each of {plan.devices:,} devices"
    tables = [
        _models(plan, unit, size),
        _stages(plan, unit, size),
        _memory(plan, f"{of_each}, {unit}", size),
        _by_phase(plan, "operations", f"operations of a step{of_each}", ("tera", "giga"), "FLOP"),
    ]
    if plan.devices > 1:
        tables.append(_by_phase(plan, "traffic", f"sent in a step{of_each}", ("G", "M"), "B"))
    if plan.measured is not None:
        tables += [_reached(plan), _hours(plan.measured), *_advice(plan.measured)]
    peak, kept = (decimal(value / size) for value in (plan.peak_bytes, plan.kept_bytes))
    last = f"most memory at once: {peak} {unit}; left on the disk: {kept} {unit}"
    if plan.reads == "text":
        last = (
            "pair: the teacher reads text in tokens of its own, by segments of about a word (see "
            "rollout/segment_length); a text is counted as decoding.max_tokens of either\n" + last
        )
    return text_of(tables, last, plan.warnings, width)


def _models(plan: Plan, unit: str, size: int) -> Table:
    rows = [
        (
            *(model.role, model.name, model.stored),
            *(model.num_parameters, model.num_trainable, model.num_adapters),
            scaled(model.weight_bytes, size),
        )
        for model in plan.models
    ]
    columns = ("role", "model", "weights", "parameters", "trained", "LoRA", unit)
    return table_of("models", columns, rows, words={*_WORDS, "weights"})


def _stages(plan: Plan, unit: str, size: int) -> Table:
    numbers = ("examples", "steps", "completions", "tokens at most")
    columns = ("stage", "what it does", *numbers, f"a checkpoint, {unit}", f"left, {unit}")
    rows = [
        (
            *(stage.name, stage.does, stage.num_examples, stage.num_steps),
            *(stage.num_completions, stage.max_tokens),
            *(scaled(value, size) for value in (stage.checkpoint_bytes, stage.kept_bytes)),
        )
        for stage in plan.stages
    ]
    return table_of("stages", columns, rows)


def _memory(plan: Plan, where: str, size: int) -> Table:
    held = [(s.name, phase, memory) for s in plan.stages for phase, memory in s.memory.items()]
    parts = [*(field.name for field in fields(Memory)), "total"]
    if plan.devices == 1 and not any(memory.exchange for _, _, memory in held):
        parts.remove("exchange")
    rows = [
        (name, phase, *(scaled(getattr(memory, part), size) for part in parts))
        for name, phase, memory in held
    ]
    return table_of(f"memory at the peak of each phase{where}", ("stage", "phase", *parts), rows)


def _by_phase(plan: Plan, name: str, title: str, prefixes: tuple[str, str], unit: str) -> Table:
    """Operations or traffic of each stage, in the larger of two units if they are so many."""
    found = [getattr(stage, name) for stage in plan.stages]
    largest = max(counts.total for counts in found if counts)
    prefix, (small, large) = prefixes, (1e9, 1e12) if name == "operations" else (1e6, 1e9)
    unit, size = (prefix[0] + unit, large) if largest > large else (prefix[1] + unit, small)
    every = name == "operations"
    rows = [
        (
            stage.name,
            *(scaled(getattr(counts, phase, None), size) for phase in PHASES),
            *([scaled(stage.total_operations, size)] if every else []),
        )
        for stage, counts in zip(plan.stages, found, strict=True)
    ]
    columns = ("stage", *PHASES, *(["all steps"] if every else []))
    return table_of(f"{title}, {unit}", columns, rows)


def _reached(plan: Plan) -> Table:
    rows = [
        (stage.name, scaled(stage.seconds, 1), scaled(stage.operations.total / stage.seconds, 1e12))
        for stage in plan.stages
        if stage.seconds and stage.operations
    ]
    columns = ("stage", "seconds of a step", "teraFLOP/s")
    return table_of("measured on this device", columns, rows)


def _hours(measured: Measured) -> Table:
    """Each part, each stage and the run, with their share of it."""
    whole, rows = measured.hours, []
    for name in dict.fromkeys(part.stage for part in measured.parts):
        own = [part for part in measured.parts if part.stage == name]
        rows += [
            (name, part.what, scaled(part.seconds, 1), part.count, *_share(part.hours, whole))
            for part in own
        ]
        rows.append((name, "all", None, None, *_share(total_hours(own), whole)))
    rows.append(("run", "all", None, None, *_share(whole, whole)))
    columns = ("stage", "part", "seconds each", "times", "hours", "share")
    return table_of("hours of the run", columns, rows)


def _share(hours: float | None, whole: float) -> tuple[str | None, str | None]:
    return scaled(hours, 1), f"{hours / whole:.1%}" if hours and whole else None


def _advice(measured: Measured) -> Iterator[Table]:
    rows = [
        (
            *(advice.setting, advice.now, advice.instead),
            ("at most " if advice.at_most else "") + decimal(advice.hours),
            advice.why,
        )
        for advice in measured.advice
    ]
    if rows:
        columns = ("setting", "now", "instead", "saves hours", "why")
        yield table_of("what to change first", columns, rows)


def table_of(title: str, columns: Sequence[str], rows: Rows, words: set[str] = _WORDS) -> Table:
    """A table; columns of words are left-aligned. Whole numbers get commas, nothing is a dash."""
    from rich.table import Table  # only who prints a plan needs it

    table = Table(title=title, title_justify="left", title_style="", pad_edge=False)
    for name in columns:
        table.add_column(name, justify="left" if name in words else "right", overflow="fold")
    for row in rows:
        table.add_row(
            *(f"{cell:,}" if isinstance(cell, int) and cell else str(cell or "-") for cell in row)
        )
    return table


def text_of(tables: Iterable[Table], last: str, warnings: Iterable[str], width: int | None) -> str:
    """Tables, a last line and warnings; lines are drawn where there is a `width`."""
    from rich import box
    from rich.console import Console

    out = io.StringIO()
    console = Console(file=out, width=width or 10_000, highlight=False, no_color=True)
    for table in tables:
        table.box = None if width is None else box.SIMPLE_HEAD
        console.print(table, "", markup=False)
    text = out.getvalue() + "\n".join([last, *(f"warning: {warning}" for warning in warnings)])
    return "\n".join(line.rstrip() for line in text.splitlines())


def scaled(value: float | None, unit: float) -> str | None:
    """In units, or None where there is nothing."""
    return decimal(value / unit) if value else None


def decimal(value: float) -> str:
    """Three digits, or all of those before the point."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:#.3g}".rstrip(".")
