"""Learning curves as PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from brim.report.evidence import Evidence
from brim.support.figures import COLOURS, MARKERS, Images, log_axis, render

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.lines import Line2D

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Style:
    """How a system is drawn, the same in every panel."""

    colour: str
    marker: str


def draw_curves(systems: Sequence[Evidence], metric: str) -> Images | None:
    """The learning curves of the systems that were trained; the same input gives the same bytes.

    A block of four panels a group: the validation metric, the variance of the returns Ĝ and G
    (or the loss, where nothing of the kind was logged), and the validation return with the length
    of the output beside it, because shorter text has the higher return. Systems whose first
    evaluations agree began from the same model and share a block; so do all the others.

    Args:
        systems: in the order of their colours.
        metric: the one to draw, as in `eval/{metric}`.

    Returns:
        None where no system has a learning curve.
    """
    groups = group_by_start(systems, metric)
    if not groups:
        return None
    styles = {
        system.label: Style(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)])
        for i, system in enumerate(systems)
    }

    def paint(figure: Figure) -> None:
        blocks = figure.subfigures(len(groups), 1, squeeze=False, hspace=0.03)[:, 0]
        for block, group in zip(blocks, groups, strict=True):
            _draw_block(block, group, metric, styles)

    return render((10.5, 6.9 * len(groups)), paint)


def group_by_start(systems: Sequence[Evidence], metric: str) -> list[list[Evidence]]:
    """Systems with curves: those that began from the same model together, all others at the end."""
    groups: dict[tuple[str, ...], list[Evidence]] = {}
    for system in systems:
        if system.metrics:
            curves = [system.curve(f"eval/{name}") for name in (metric, "length")]
            # Six digits: the same model may differ in the last bits from machine to machine.
            start = tuple(f"{curve[0][1]:.6g}" for curve in curves if curve)
            groups.setdefault(start, []).append(system)
    alone = [system for group in groups.values() if len(group) == 1 for system in group]
    together = [group for group in groups.values() if len(group) > 1]
    # Methods are listed after the stages that they build on, and are what the reader looks for.
    together.sort(key=lambda group: systems.index(group[-1]), reverse=True)
    return together + ([alone] if alone else [])


def _draw_block(
    block: SubFigure, group: Sequence[Evidence], metric: str, styles: dict[str, Style]
) -> None:
    axes = block.subplots(2, 2)
    score = group[0].scores[metric]
    direction = "higher" if score.higher_is_better else "lower"
    _draw_evaluations(axes[0, 0], group, metric, styles)
    axes[0, 0].set_title(f"Validation {score.name}")
    axes[0, 0].set_ylabel(f"{score.name} ({direction} is better)")
    if any(system.curve("rollout/var_return_k") for system in group):
        _draw_variances(axes[0, 1], group, styles)
    else:
        _draw_losses(axes[0, 1], group, styles)
    expected = all(system.curve("eval/expected_return") for system in group)
    _draw_evaluations(axes[1, 0], group, "expected_return" if expected else "return", styles)
    axes[1, 0].set_title("Validation return" + (" of sampled text" if expected else ""))
    axes[1, 0].set_ylabel("return in the teacher's logits")
    _draw_evaluations(axes[1, 1], group, "length", styles)
    axes[1, 1].set_title("Validation output length")
    axes[1, 1].set_ylabel("tokens")
    for ax in axes.flat:
        ax.set_xlabel("training step")
    handles = [_handle(styles[system.label], system.label) for system in group]
    block.legend(handles=handles, loc="outside upper left", ncols=4, fontsize=10)


def _handle(style: Style, label: str) -> Line2D:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=style.colour, marker=style.marker, label=label)


def _draw_evaluations(
    ax: Axes, group: Sequence[Evidence], name: str, styles: dict[str, Style]
) -> None:
    """A line a system; a ring marks the checkpoint that was tested."""
    curves = [system.curve(f"eval/{name}") for system in group]
    for system, curve in zip(group, curves, strict=True):
        style = styles[system.label]
        ax.plot(*_columns(curve), color=style.colour, marker=style.marker)
        tested = [point for point in curve if point[0] == system.results.get("best_step")]
        ax.plot(*_columns(tested), "o", markersize=11, fillstyle="none", color=style.colour)
    if not any(curves):
        ax.text(0.5, 0.5, "not logged", ha="center", va="center", transform=ax.transAxes)
        ax.set_xticks([])
        ax.set_yticks([])


def _draw_variances(ax: Axes, group: Sequence[Evidence], styles: dict[str, Style]) -> None:
    """Of the K-step return Ĝ, solid, and of the one-step return G on the same text, dashed."""
    ax.set_title("Variance of the return: Ĝ solid, G dashed")
    ax.set_ylabel("variance over a batch's tokens")
    log_axis(ax)
    for system in group:
        colour = styles[system.label].colour
        for key, line in (("var_return", "--"), ("var_return_k", "-")):
            ax.plot(*_smooth(system.curve(f"rollout/{key}")), line, color=colour)


def _draw_losses(ax: Axes, group: Sequence[Evidence], styles: dict[str, Style]) -> None:
    ax.set_title("Training loss")
    ax.set_ylabel("loss per token")
    for system in group:
        ax.plot(*_smooth(system.curve("train/loss")), color=styles[system.label].colour)


def _smooth(curve: Sequence[tuple[int, float]]) -> tuple[Array, Array]:
    """Means over windows of a thirtieth of the curve, centred on their steps."""
    steps, values = _columns(curve)
    if not curve:
        return steps, values
    width = max(1, len(curve) // 30)
    kernel = np.full(width, 1.0 / width)
    return np.convolve(steps, kernel, "valid"), np.convolve(values, kernel, "valid")


def _columns(curve: Sequence[tuple[int, float]]) -> tuple[Array, Array]:
    steps, values = np.array(curve, dtype=float).reshape(-1, 2).T
    return steps, values
