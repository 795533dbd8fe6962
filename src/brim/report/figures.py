"""The paper's figures from our runs: returns by method, learning curves, PPO."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brim.errors import RunError
from brim.metrics import spread
from brim.report.systems import SystemRuns, TaskRuns
from brim.support import tables as parts
from brim.support.figures import Style, blocks, draw, draw_mean, handles, log_axis, styles
from brim.support.files import read_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHORTER = (
    "A return is a sum of negative regrets, so shorter text has the higher one: read it beside the "
    "length."
)
_BAND = (
    "Mean over the seeds that all systems of a panel share; band: a standard deviation on each "
    "side."
)
_STAGES = ("teacher", "student")  # families
_VARIANCE = "rollout/var_return_k"
_FAMILIES = {
    "teacher": "#000000",
    "student": "#7a828b",
    "divergence": "#009E73",
    "llmr": "#D55E00",
    "brim": "#0072B2",
    "brim_plus": "#56B4E9",
    "ppo": "#CC79A7",
    "other": "#E69F00",
}


def returns_figure(tasks: Sequence[TaskRuns]) -> parts.Figure | None:
    """Figure 1: average return by method, with the length; None where no return is known."""
    tasks = [task for task in tasks if task.returns]
    if not tasks:
        return None
    heights = [0.9 + 0.24 * len(task.systems) for task in tasks]

    def paint(figure: Figure) -> None:
        grid = figure.subfigures(len(tasks), 1, squeeze=False, height_ratios=heights)
        for block, task in zip(grid[:, 0], tasks, strict=True):
            names = [*task.returns, "length"]
            axes = block.subplots(1, len(names), sharey=True, squeeze=False)[0]
            for ax, name in zip(axes, names, strict=True):
                _draw_dots(ax, task, name)
            if len(tasks) > 1:
                block.suptitle(task.label, x=0.01, ha="left", fontweight="bold")

    return draw(
        "figure1",
        "Figure 1: average return by method",
        f"A large point is the mean over the seeds, its line a standard deviation on each side; "
        f"small points are the seeds. Expected: of sampled text. {SHORTER}",
        (10.5, sum(heights)),
        paint,
    )


def _draw_dots(ax: Axes, task: TaskRuns, name: str) -> None:
    systems = task.systems
    for place, system in enumerate(systems):
        values = system.values(name)
        if not values:
            continue
        mean, deviation = spread(values)
        colour = _FAMILIES[system.name.family]
        if deviation is not None:
            ax.plot(values, [place] * len(values), ".", color=colour, alpha=0.45, markersize=5)
            ax.plot([mean - deviation, mean + deviation], [place, place], "-", color=colour)
        ax.plot([mean], [place], "o", color=colour, markersize=6)
    ax.set_yticks(range(len(systems)), [system.label for system in systems])
    ax.set_ylim(len(systems) - 0.5, -0.5)
    ax.set_title(task.example(name).name)
    ax.set_xlabel("tokens" if name == "length" else "in the teacher's logits")


def learning_curves(tasks: Sequence[TaskRuns]) -> list[parts.Figure]:
    """Figure 2, LLMR and BRIM by K; and the same of all other methods."""
    found = [
        _curves(
            tasks,
            lambda system: system.name.family == "brim" or system.name.stem == "LLMR",
            name="figure2",
            title="Figure 2: learning curves of LLMR and BRIM",
        ),
        _curves(
            tasks,
            lambda system: (
                system.name.family not in ("brim", *_STAGES) and system.name.stem != "LLMR"
            ),
            name="curves",
            title="Learning curves of the other methods",
        ),
    ]
    return [figure for figure in found if figure is not None]


def stage_curves(tasks: Sequence[TaskRuns]) -> parts.Figure | None:
    """The learning curves of the teacher and the pre-distilled students.

    Apart, for they climb from nothing: beside them every method is a flat line.
    """
    return _curves(
        tasks,
        lambda system: system.name.family in _STAGES,
        name="curves_stages",
        title="Learning curves of the teacher and the pre-distilled student",
    )


def _curves(
    tasks: Sequence[TaskRuns], wanted: Callable[[SystemRuns], bool], *, name: str, title: str
) -> parts.Figure | None:
    chosen = []
    for task in tasks:
        systems = [s for s in task.systems if wanted(s) and any(run.metrics for run in s.runs)]
        if systems:
            chosen.append((task, systems))
    if not chosen:
        return None

    def paint(figure: Figure) -> None:
        for block, (task, systems) in zip(blocks(figure, len(chosen)), chosen, strict=True):
            axes = block.subplots(2, 2)
            look = styles([system.label for system in systems])
            score = [*task.returns, *task.metrics, "length"][0]
            named = f"Validation {task.example(score).name}"
            _panel(axes[0, 0], systems, f"eval/{score}", look, title=named)
            gain = f"{named}: change since the start"
            _panel(axes[0, 1], systems, f"eval/{score}", look, title=gain, change=True)
            metric = [*task.metrics, *task.returns, "length"][0]
            named = f"Validation {task.example(metric).name}"
            _panel(axes[1, 0], systems, f"eval/{metric}", look, title=named)
            _panel(axes[1, 1], systems, "eval/length", look, title="Validation output length")
            _legend(block, task, look, several=len(chosen) > 1)

    caption = f"Validation split, against training steps. {_BAND} {SHORTER}"
    return draw(name, title, caption, (10.5, 7 * len(chosen)), paint)


def _panel(
    ax: Axes,
    systems: Sequence[SystemRuns],
    key: str,
    look: dict[str, Style],
    *,
    title: str,
    smooth: bool = False,
    log: bool = False,
    change: bool = False,
) -> None:
    """A line a system, over the seeds that all of those which have the key share."""
    curves = {
        system.label: {run.seed: c for run in system.runs if (c := run.curve(key))}
        for system in systems
    }
    seeds = [set(by_seed) for by_seed in curves.values() if by_seed]
    shared = set.intersection(*seeds) if seeds else set()
    for label, by_seed in curves.items():
        chosen = [curve for seed, curve in by_seed.items() if seed in shared or not shared]
        if change:
            chosen = [[(step, value - c[0][1]) for step, value in c] for c in chosen]
        draw_mean(ax, chosen, look[label], smooth=smooth)
    if not seeds:
        ax.text(0.5, 0.5, "not logged", ha="center", va="center", transform=ax.transAxes)
    elif log:
        log_axis(ax)
    ax.set_title(title)
    ax.set_xlabel("training step")


def _legend(
    block: Figure, task: TaskRuns, look: dict[str, Style], *, several: bool, markers: bool = True
) -> None:
    if several:
        block.suptitle(task.label, x=0.01, ha="left", fontweight="bold")
    block.legend(handles=handles(look, markers=markers), loc="outside lower left", ncols=6)


def ppo_figure(tasks: Sequence[TaskRuns]) -> parts.Figure | None:
    """Figure 3: the critic's errors, and the return under PPO with LLMR and with BRIM."""
    chosen = [
        (task, systems)
        for task in tasks
        if (systems := [system for system in task.systems if system.name.family == "ppo"])
    ]
    if not chosen:
        return None
    panels = (
        ("ppo/td_error", "Squared TD error of the critic", True),
        ("ppo/value_loss", "Value loss", True),
        ("rollout/return", "Average return of the rollouts", False),
        ("rollout/length", "Length of the rollouts", False),
    )

    def paint(figure: Figure) -> None:
        for block, (task, systems) in zip(blocks(figure, len(chosen)), chosen, strict=True):
            axes = block.subplots(2, 2)
            look = styles([system.label for system in systems])
            for ax, (key, title, log) in zip(axes.flat, panels, strict=True):
                _panel(ax, systems, key, look, title=title, smooth=True, log=log)
            _legend(block, task, look, several=len(chosen) > 1, markers=False)

    caption = (
        f"Of training batches, smoothed over a thirtieth of the steps. {_BAND} PPO with BRIM has "
        f"no critic. The value loss is in units of the clip range. {SHORTER}"
    )
    title = "Figure 3: PPO with LLMR and with BRIM"
    return draw("figure3", title, caption, (10.5, 6.4 * len(chosen)), paint)


def training_variance_figure(tasks: Sequence[TaskRuns]) -> parts.Figure | None:
    """Variance and bias of the K-step return while LLMR and BRIM train."""
    chosen = []
    for task in tasks:
        systems = [s for s in task.systems if s.name.family == "brim" or s.name.stem == "LLMR"]
        systems = [s for s in systems if s.curves(_VARIANCE)]
        if systems:
            chosen.append((task, systems))
    if not chosen:
        return None

    def paint(figure: Figure) -> None:
        for block, (task, systems) in zip(blocks(figure, len(chosen)), chosen, strict=True):
            variance, bias = block.subplots(1, 2)
            look = styles([system.label for system in systems])
            title = "Variance of the K-step return Ĝ over tokens"
            _panel(variance, systems, _VARIANCE, look, title=title, smooth=True, log=True)
            title = "Bias: mean of Ĝ less the one-step return G"
            _panel(bias, systems, "rollout/bias", look, title=title, smooth=True)
            _legend(block, task, look, several=len(chosen) > 1, markers=False)

    caption = (
        "Over the tokens of a training batch, smoothed over a thirtieth of the steps. "
        f"{_BAND} LLMR is K = 1, which has no bias."
    )
    title = "Variance and bias of the return during training"
    return draw("variance_training", title, caption, (10.5, 4.1 * len(chosen)), paint)


_PANELS = (
    ("variance_first", "Variance of Ĝ₁ over the rollouts of a prompt", True),
    ("bias_first", "Bias: mean of Ĝ₁ - G₁", False),
)
_TAILS = {"one_step": "one-step tail", "none": "no tail", "average": "phase average"}


def variance_figure(paths: Sequence[Path], out: Path, notes: list[str]) -> parts.Figure | None:
    """Variance and bias by K (the paper's section 3.3), a block a file; None without a file.

    Args:
        paths: `variance.json` of analyses.
        out: folder of the report; files are named as seen from it.
        notes: takes a sentence about each file that cannot be used.
    """
    found: list[tuple[str, list[tuple[str, list[dict[str, Any]]]]]] = []
    for path in paths:
        try:
            found.append((os.path.relpath(path, out), _lines(read_json(path))))
        except (RunError, KeyError, TypeError, AttributeError) as error:
            notes.append(f"{path}: left out, for it cannot be read as an analysis ({error!r}).")
    if not found:
        return None

    def paint(figure: Figure) -> None:
        for block, (name, lines) in zip(blocks(figure, len(found)), found, strict=True):
            axes = block.subplots(1, 2)
            look = styles([label for label, _ in lines])
            for ax, (key, title, log) in zip(axes, _PANELS, strict=True):
                for label, rows in lines:
                    _draw(ax, rows, key, look[label])
                ax.set_title(title)
                ax.set_xlabel("K")
                ax.set_xscale("log")
                ks = sorted({row["k"] for _, rows in lines for row in rows})
                ax.set_xticks(ks, [str(k) for k in ks])
                ax.set_xticks([], minor=True)
                if log:
                    log_axis(ax)
            if len(found) > 1:
                block.suptitle(name, x=0.01, ha="left", fontweight="bold")
            block.legend(handles=handles(look), loc="outside lower left", ncols=4)

    return draw(
        "variance_k",
        "Variance and bias of the return by K",
        f"Measured by brim analyze variance ({', '.join(name for name, _ in found)}); bands are "
        "intervals over prompts. The reverse KL to the teacher, in nats a token, stands beside "
        "each student.",
        (10.5, 4.1 * len(found)),
        paint,
    )


def _lines(analysis: Mapping[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """A label and its rows for each student and tail; K = 1 is in every tail."""
    lines = []
    for student in analysis["students"]:
        divergence = student.get("numbers", {}).get("reverse_kl", {}).get("value")
        name = student["label"] + ("" if divergence is None else f", KL {divergence:.2f}")
        tails = list(dict.fromkeys(row["tail"] for row in student["rows"]))
        for tail in tails:
            rows = [row for row in student["rows"] if row["k"] == 1 or row["tail"] == tail]
            label = f"{name} ({_TAILS.get(tail, tail)})" if len(tails) > 1 else name
            lines.append((label, sorted(rows, key=lambda row: int(row["k"]))))
    return lines


def _draw(ax: Axes, rows: Sequence[Mapping[str, Any]], key: str, style: Any) -> None:
    points = [(row["k"], row["numbers"][key]) for row in rows if key in row["numbers"]]
    points = [(k, number) for k, number in points if number["value"] is not None]
    if not points:
        return
    ks = [k for k, _ in points]
    values = [number["value"] for _, number in points]
    ax.plot(ks, values, style.line, color=style.colour, marker=style.marker)
    bounds = [(number.get("low"), number.get("high")) for _, number in points]
    if all(low is not None and high is not None for low, high in bounds):
        low, high = zip(*bounds, strict=True)
        if all(map(math.isfinite, (*low, *high))):
            ax.fill_between(ks, low, high, color=style.colour, alpha=0.12, linewidth=0)
