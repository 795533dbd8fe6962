"""What all figures have in common: colours, settings, two files of bytes; no pyplot."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind eyes tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
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


def render(size: tuple[float, float], paint: Callable[[Figure], None]) -> Images:
    """What `paint` makes of an empty figure; the same input gives the same bytes.

    Matplotlib's settings are the user's again when it is done, and no state outlives the figure.

    Args:
        size: width and height in inches.
        paint: draws into the figure.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user's matplotlibrc says
        matplotlib.rcParams.update(_SETTINGS)
        figure = Figure(figsize=size, dpi=150, layout="constrained")
        paint(figure)
        png, svg = io.BytesIO(), io.BytesIO()
        figure.savefig(png, format="png")
        figure.set_layout_engine("none")  # keep the layout that was found, finding it takes time
        figure.savefig(svg, format="svg", metadata={"Date": None})
    return Images(png.getvalue(), svg.getvalue())


def log_axis(ax: Axes) -> None:
    """A logarithmic vertical axis whose numbers need no mathtext."""
    from matplotlib.ticker import LogFormatter

    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(LogFormatter())  # the usual one writes mathtext
    ax.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))
