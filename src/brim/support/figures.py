"""What all figures have in common: colors, settings, two files of bytes; no pyplot."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas
    from matplotlib.lines import Line2D

# The colors of Okabe and Ito, which color-blind readers can distinguish.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^Dv<>P"
INK = "#24292f"
_SETTINGS = {
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlepad": 10,
    "font.size": 9.5,
    "grid.color": "#e3e6ea",
    "legend.frameon": False,
    "lines.linewidth": 1.7,
    "lines.markersize": 4.5,
    "svg.hashsalt": "brim",  # ids of clip paths would be random
    "text.color": INK,
    "text.parse_math": False,  # a label may hold dollar signs
    "xtick.color": INK,
    "ytick.color": INK,
}


class Images(NamedTuple):
    """One figure, as the bytes of two image files."""

    png: bytes
    svg: bytes


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing as the bytes of two image files; the same input gives the same bytes.

    `name` is that of its files, such as `curves`; `caption` says what is drawn, and how.
    """

    name: str
    title: str
    png: bytes
    svg: bytes
    caption: str


def render(size: tuple[float, float], paint: Callable[[Canvas], None]) -> Images:
    """Return what `paint` makes of a figure of so many inches; the same input gives the same bytes.

    Matplotlib's settings are the user's again when it is done, and no state outlives the figure.
    """
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user's matplotlibrc says
        matplotlib.rcParams.update(_SETTINGS)
        figure = Canvas(figsize=size, dpi=150, layout="constrained")
        paint(figure)
        png, svg = io.BytesIO(), io.BytesIO()
        figure.savefig(png, format="png")
        figure.set_layout_engine("none")  # keep the layout that was found, finding it takes time
        figure.savefig(svg, format="svg", metadata={"Date": None})
    return Images(png.getvalue(), svg.getvalue())


def log_axis(ax: Axes) -> None:
    """Make the vertical axis logarithmic, with numbers that need no mathtext."""
    from matplotlib.ticker import LogFormatter

    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(LogFormatter())  # the usual one writes mathtext
    ax.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))


# LLMR comes first where it is drawn, and is orange everywhere.
_ORDER = (COLORS[1], COLORS[0], *COLORS[2:])

Curve = Sequence[tuple[int, float]]


class Style(NamedTuple):
    """How a system is drawn, the same in every panel."""

    color: str
    marker: str
    line: str


def styles(labels: Sequence[str]) -> dict[str, Style]:
    """Return a style a label; where there are more labels than colors, lines differ."""
    lines = ("-", "--", ":")
    return {
        label: Style(
            _ORDER[i % len(_ORDER)],
            MARKERS[i % len(MARKERS)],
            lines[i // len(_ORDER) % len(lines)],
        )
        for i, label in enumerate(labels)
    }


def draw_mean(ax: Axes, curves: Sequence[Curve], style: Style, *, smooth: bool = False) -> None:
    """Draw the mean over the curves' common steps, with a band of a standard deviation.

    Nothing is drawn without a curve. `smooth` replaces each by means over windows of a thirtieth of
    it.
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
    ax.plot(at, mean, style.line, color=style.color, marker=marker)
    if len(values) > 1:
        deviation = values.std(axis=0, ddof=1)
        low, high = mean - deviation, mean + deviation
        ax.fill_between(at, low, high, color=style.color, alpha=0.12, linewidth=0)


def handles(chosen: Mapping[str, Style], *, markers: bool = True) -> list[Line2D]:
    """Return what a legend shows."""
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=s.color, linestyle=s.line, marker=s.marker * markers, label=label)
        for label, s in chosen.items()
    ]
