"""The figures of a report: returns by system, learning curves, PPO, variance and bias."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brim.errors import RunError
from brim.metrics import spread
from brim.report.colors import looks_of
from brim.report.systems import SystemRuns, TaskRuns
from brim.support.figures import Figure, Style, draw_mean, handles, log_axis, render, styles
from brim.support.files import read_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

SHORTER = (
    "A return is a sum of negative regrets, so shorter text has the higher one: read it beside the "
    "length."
)
_BAND = (
    "Mean over the seeds that all systems of a panel share; band: a standard deviation on each "
    "side."
)
_WIDTH = 7.2  # inches: a figure can still be read on a phone
_STAGES = ("teacher", "student")  # families
_VARIANCE = "rollout/var_return_k"


def returns_figure(tasks: Sequence[TaskRuns]) -> Figure | None:
    """Return the average return by system (Figure 1), with the length; None without returns."""
    look = looks_of(tasks)
    tasks = [task for task in tasks if task.returns]
    if not tasks:
        return None
    heights = [0.9 + 0.24 * _num_lines(task) for task in tasks]

    def paint(figure: Canvas) -> None:
        grid = figure.subfigures(len(tasks), 1, squeeze=False, height_ratios=heights)
        for block, task in zip(grid[:, 0], tasks, strict=True):
            names = [*task.returns, "length"]
            axes = block.subplots(1, len(names), sharey=True, squeeze=False)[0]
            for ax, name in zip(axes, names, strict=True):
                _draw_dots(ax, task, name, look)
            _name_block(block, task.label, several=len(tasks) > 1)

    caption = (
        "A large point is the mean over the seeds, its line a standard deviation on each side; "
        f"small points are the seeds. Expected: of sampled text. {SHORTER}"
    )
    images = render((_WIDTH, sum(heights)), paint)
    return Figure("figure1", "Return and length by system", *images, caption)


def _draw_dots(ax: Axes, task: TaskRuns, name: str, look: Mapping[str, Style]) -> None:
    systems = task.systems
    for place, system in enumerate(systems):
        values = system.values(name)
        if not values:
            continue
        mean, deviation = spread(values)
        color = look[system.label].color
        if deviation is not None:
            ax.plot(values, [place] * len(values), ".", color=color, alpha=0.45, markersize=5)
            ax.plot([mean - deviation, mean + deviation], [place, place], "-", color=color)
        ax.plot([mean], [place], "o", color=color, markersize=6)
    ax.set_yticks(range(len(systems)), [_wrapped(system.label) for system in systems])
    ax.set_ylim(len(systems) - 0.5, -0.5)
    ax.set_title(task.example(name).name)
    ax.set_xlabel("tokens" if name == "length" else "teacher's logits")


def _wrapped(label: str, letters: int = 30) -> str:
    """On lines of a part of the width, so that a long name leaves room for what it names."""
    return textwrap.fill(label, letters)


def _num_lines(task: TaskRuns) -> int:
    return sum(_wrapped(system.label).count("\n") + 1 for system in task.systems)


def _draw_legend(block: Canvas, look: Mapping[str, Style], *, markers: bool = True) -> None:
    """Below the panels, in as many columns as fit."""
    wrapped = {_wrapped(label, 45): style for label, style in look.items()}
    longest = max(len(line) for label in wrapped for line in label.splitlines())
    columns = max(1, min(6, int(_WIDTH * 11 / (longest + 6))))
    legend = handles(wrapped, markers=markers)
    block.legend(handles=legend, loc="outside lower left", ncols=columns)


def _name_block(block: Canvas, label: str, *, several: bool) -> None:
    if several:
        block.suptitle(label, x=0.01, ha="left", fontweight="bold")


# Curves: a block of panels a task, a line a system


@dataclass(frozen=True, slots=True)
class _Panel:
    """What one panel shows, against training steps.

    Attributes:
        key: of `metrics.jsonl`.
        title: above it.
        log: whether its axis is logarithmic.
        change: whether each curve begins at zero.
    """

    key: str
    title: str
    log: bool = False
    change: bool = False


def learning_curves(tasks: Sequence[TaskRuns]) -> list[Figure]:
    """Return curves of LLMR and BRIM (Figure 2), others', of PPO (3), variance and bias, stages'.

    The teacher's and the pre-distilled students' are apart, for they climb from nothing: beside
    them every method is a flat line.
    """
    drawn = [_curves(tasks, *figure) for figure in _FIGURES]
    return [figure for figure in drawn if figure is not None]


def _capital(name: str) -> str:
    return f"{name[:1].upper()}{name[1:]}"


def _is_llmr_or_brim(system: SystemRuns) -> bool:
    return system.name.family == "brim" or system.name.stem == "LLMR"


def _compared(task: TaskRuns) -> list[SystemRuns]:
    """LLMR, BRIM and anchored; LLMR and BRIM with a baseline where there are none without."""
    found = [s for s in task.systems if _is_llmr_or_brim(s)]
    if not found:
        found = [s for s in task.systems if s.name.stem.startswith(("LLMR", "BRIM"))]
    return [s for s in task.systems if s in found or s.name.family == "anchored"]


def _others(task: TaskRuns) -> list[SystemRuns]:
    compared = _compared(task)
    return [s for s in task.systems if s not in compared and s.name.family not in _STAGES]


def _with_variance(task: TaskRuns) -> list[SystemRuns]:
    found = [s for s in task.systems if _is_llmr_or_brim(s)]
    return [s for s in found if any(run.curve(_VARIANCE) for run in s.runs)]


def _evaluations(task: TaskRuns) -> tuple[_Panel, ...]:
    score = [*task.returns, *task.metrics, "length"][0]
    metric = [*task.metrics, *task.returns, "length"][0]
    title = _capital(task.example(score).name)
    return (
        _Panel(f"eval/{score}", title),
        _Panel(f"eval/{score}", f"{title}: change since start", change=True),
        _Panel(f"eval/{metric}", _capital(task.example(metric).name)),
        _Panel("eval/length", "Length of the output"),
    )


def _ppo(task: TaskRuns) -> tuple[_Panel, ...]:
    return (
        _Panel("ppo/td_error", "Squared TD error of critic", log=True),
        _Panel("ppo/value_loss", "Value loss", log=True),
        _Panel("rollout/return", "Average return of the rollouts"),
        _Panel("rollout/length", "Length of the rollouts"),
    )


def _in_training(task: TaskRuns) -> tuple[_Panel, ...]:
    return (
        _Panel(_VARIANCE, "Variance of the K-step return Ĝ", log=True),
        _Panel("rollout/bias", "Bias: mean of Ĝ - G (one step)"),
    )


_Wanted = Callable[[TaskRuns], Sequence[SystemRuns]]
_Panels = Callable[[TaskRuns], tuple[_Panel, ...]]
# Name, title, which systems, panels, and what the caption says besides: of training batches only.
_FIGURES: tuple[tuple[str, str, _Wanted, _Panels, str], ...] = (
    (
        "figure2",
        "Learning curves of LLMR, BRIM and anchored",
        _compared,
        _evaluations,
        "",
    ),
    (
        "curves",
        "Learning curves of other methods",
        _others,
        _evaluations,
        "",
    ),
    (
        "figure3",
        "PPO: critic, return and length",
        lambda task: [s for s in task.systems if s.name.family == "ppo"],
        _ppo,
        f"PPO with BRIM has no critic. The value loss is in units of the clip range. {SHORTER}",
    ),
    (
        "variance_training",
        "Variance and bias of the return during training",
        _with_variance,
        _in_training,
        "LLMR is K = 1, which has no bias.",
    ),
    (
        "curves_stages",
        "Learning curves of the teacher and the pre-distilled student",
        lambda task: [s for s in task.systems if s.name.family in _STAGES],
        _evaluations,
        "",
    ),
)


def _curves(
    tasks: Sequence[TaskRuns], name: str, title: str, wanted: _Wanted, panels: _Panels, more: str
) -> Figure | None:
    chosen = []
    for task in tasks:
        systems = [s for s in wanted(task) if any(run.metrics for run in s.runs)]
        if systems:
            chosen.append((task, systems, panels(task)))
    if not chosen:
        return None
    smooth = bool(more)  # of every batch there is a point
    looks = looks_of(tasks)

    def paint(figure: Canvas) -> None:
        blocks = figure.subfigures(len(chosen), 1, squeeze=False, hspace=0.03)[:, 0]
        for block, (task, systems, shown) in zip(blocks, chosen, strict=True):
            look = {system.label: looks[system.label] for system in systems}
            axes = block.subplots(len(shown) // 2, 2, squeeze=False)
            for ax, panel in zip(axes.flat, shown, strict=True):
                _draw_panel(ax, systems, panel, look, smooth=smooth)
            _name_block(block, task.label, several=len(chosen) > 1)
            _draw_legend(block, look, markers=not smooth)

    text = f"Validation split, against training steps. {_BAND} {SHORTER}"
    if smooth:
        text = f"Of training batches, smoothed over a thirtieth of the steps. {_BAND} {more}"
    height = 1.2 + 2.3 * len(chosen[0][2]) / 2
    return Figure(name, title, *render((_WIDTH, height * len(chosen)), paint), text)


def _draw_panel(
    ax: Axes,
    systems: Sequence[SystemRuns],
    panel: _Panel,
    look: Mapping[str, Style],
    *,
    smooth: bool,
) -> None:
    """A line a system, over the seeds that all of those which have the key share."""
    curves = {
        system.label: {run.seed: c for run in system.runs if (c := run.curve(panel.key))}
        for system in systems
    }
    seeds = [set(by_seed) for by_seed in curves.values() if by_seed]
    shared = set.intersection(*seeds) if seeds else set()
    for label, by_seed in curves.items():
        chosen = [curve for seed, curve in by_seed.items() if seed in shared or not shared]
        if panel.change:
            chosen = [[(step, value - c[0][1]) for step, value in c] for c in chosen]
        draw_mean(ax, chosen, look[label], smooth=smooth)
    if not seeds:
        ax.text(0.5, 0.5, "not logged", ha="center", va="center", transform=ax.transAxes)
    elif panel.log:
        log_axis(ax)
    ax.set_title(panel.title)
    ax.set_xlabel("training step")


# Variance and bias by K, as `brim analyze variance` measured them

_BY_K = (
    ("variance_first", "Variance of Ĝ₁ over a prompt's rollouts", True),
    ("bias_first", "Bias: mean of Ĝ₁ - G₁", False),
)
_TAILS = {"one_step": "one-step tail", "none": "no tail"}

Lines = list[tuple[str, list[dict[str, Any]]]]


def variance_figure(paths: Sequence[Path], out: Path, notes: list[str]) -> Figure | None:
    """Return variance and bias by K (the paper's section 3.3), a block a file, or None.

    Args:
        paths: `variance.json` of analyses.
        out: folder of the report; files are named as seen from it.
        notes: takes a sentence about each file that cannot be used.
    """
    found: list[tuple[str, Lines]] = []
    for path in paths:
        try:
            if lines := _lines(read_json(path)):
                found.append((os.path.relpath(path, out), lines))
        except (RunError, LookupError, TypeError, AttributeError) as error:
            notes.append(f"{path}: left out, for it cannot be read as an analysis ({error!r}).")
    if not found:
        return None

    def paint(figure: Canvas) -> None:
        blocks = figure.subfigures(len(found), 1, squeeze=False, hspace=0.03)[:, 0]
        for block, (name, lines) in zip(blocks, found, strict=True):
            look = styles([label for label, _ in lines])
            for ax, (key, title, log) in zip(block.subplots(1, 2), _BY_K, strict=True):
                _draw_by_k(ax, lines, key, look)
                ax.set_title(title)
                if log:
                    log_axis(ax)
            _name_block(block, name, several=len(found) > 1)
            _draw_legend(block, look)

    caption = (
        f"Measured by brim analyze variance ({', '.join(name for name, _ in found)}); bands are "
        "intervals over prompts. Each student is labeled with its reverse KL to the teacher, in "
        "nats a token."
    )
    images = render((_WIDTH, 3.6 * len(found)), paint)
    return Figure("variance_k", "Variance and bias of the return by K", *images, caption)


def _lines(analysis: Mapping[str, Any]) -> Lines:
    """A label and its rows for each student and tail; K = 1 is in every tail; none of λ."""
    lines = []
    for student in analysis["students"]:
        if "lambda" in student["rows"][0]:
            continue
        divergence = student.get("numbers", {}).get("reverse_kl", {}).get("value")
        name = student["label"] + ("" if divergence is None else f", KL {divergence:.2f}")
        tails = list(dict.fromkeys(row["tail"] for row in student["rows"]))
        for tail in tails:
            rows = [row for row in student["rows"] if row["k"] == 1 or row["tail"] == tail]
            label = f"{name} ({_TAILS.get(tail, tail)})" if len(tails) > 1 else name
            lines.append((label, sorted(rows, key=lambda row: int(row["k"]))))
    return lines


def _draw_by_k(ax: Axes, lines: Lines, key: str, look: Mapping[str, Style]) -> None:
    for label, rows in lines:
        points = [(row["k"], row["numbers"][key]) for row in rows if key in row["numbers"]]
        points = [(k, number) for k, number in points if number["value"] is not None]
        if not points:
            continue
        ks, style = [k for k, _ in points], look[label]
        values = [number["value"] for _, number in points]
        ax.plot(ks, values, style.line, color=style.color, marker=style.marker)
        bounds = [number.get(end) for end in ("low", "high") for _, number in points]
        if all(bound is not None and math.isfinite(bound) for bound in bounds):
            low, high = bounds[: len(ks)], bounds[len(ks) :]
            ax.fill_between(ks, low, high, color=style.color, alpha=0.12, linewidth=0)
    ks = sorted({row["k"] for _, rows in lines for row in rows})
    ax.set_xlabel("K")
    ax.set_xscale("log")
    ax.set_xticks(ks, [str(k) for k in ks])
    ax.set_xticks([], minor=True)
