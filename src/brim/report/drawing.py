"""What the figures of a report have in common; matplotlib without pyplot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from brim.plotting import COLOURS, MARKERS, render
from brim.report import parts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# LLMR comes first where it is drawn, and is orange everywhere.
_ORDER = (COLOURS[1], COLOURS[0], *COLOURS[2:])

Array = npt.NDArray[np.float64]
Curve = Sequence[tuple[int, float]]


class Style(NamedTuple):
    """How a system is drawn, the same in every panel."""

    colour: str
    marker: str
    line: str


def styles(labels: Sequence[str]) -> dict[str, Style]:
    """A style a label; beyond the colours there are, they come again with another line."""
    lines = ("-", "--", ":")
    return {
        label: Style(
            _ORDER[i % len(_ORDER)],
            MARKERS[i % len(MARKERS)],
            lines[i // len(_ORDER) % len(lines)],
        )
        for i, label in enumerate(labels)
    }


def draw(
    name: str,
    title: str,
    caption: str,
    size: tuple[float, float],
    paint: Callable[[Figure], None],
) -> parts.Figure:
    """The figure that `paint` makes of an empty one; the same input gives the same bytes.

    Args:
        name: of its files.
        title: above it.
        caption: below it.
        size: width and height in inches.
        paint: draws into it.
    """
    images = render(size, paint)
    return parts.Figure(name, title, images.png, images.svg, caption)


def draw_mean(ax: Axes, curves: Sequence[Curve], style: Style, *, smooth: bool = False) -> None:
    """The mean over the curves' common steps, with a band of a standard deviation on each side.

    Args:
        ax: drawn into.
        curves: one a seed; nothing is drawn without any.
        style: of the line.
        smooth: replace each curve by means over windows of a thirtieth of it, without markers.
    """
    tables = [dict(curve) for curve in curves if curve]
    if not tables:
        return
    steps = sorted(set.intersection(*(set(table) for table in tables)))
    values = np.array([[table[step] for step in steps] for table in tables])
    at = np.array(steps, dtype=float)
    if smooth and steps:
        kernel = np.full(width := max(1, len(steps) // 30), 1 / width)
        at = np.convolve(at, kernel, "valid")
        values = np.array([np.convolve(row, kernel, "valid") for row in values])
    mean = values.mean(axis=0)
    marker = "" if smooth else style.marker
    ax.plot(at, mean, style.line, color=style.colour, marker=marker)
    if len(values) > 1:
        deviation = values.std(axis=0, ddof=1)
        low, high = mean - deviation, mean + deviation
        ax.fill_between(at, low, high, color=style.colour, alpha=0.12, linewidth=0)


def handles(chosen: dict[str, Style], *, markers: bool = True) -> list[Line2D]:
    """What a legend shows."""
    from matplotlib.lines import Line2D

    lines = [
        Line2D([], [], color=style.colour, linestyle=style.line, label=label)
        for label, style in chosen.items()
    ]
    for line, style in zip(lines, chosen.values(), strict=True):
        line.set_marker(style.marker if markers else "")
    return lines


def blocks(figure: Figure, number: int) -> list[Any]:
    """The figure in so many parts, one below the other."""
    return list(figure.subfigures(number, 1, squeeze=False, hspace=0.03)[:, 0])
