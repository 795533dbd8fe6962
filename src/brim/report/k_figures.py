"""Variance and bias by K, from what `brim analyze variance` has measured."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brim.errors import RunError
from brim.files import read_json
from brim.plotting import log_axis
from brim.report import parts
from brim.report.drawing import blocks, draw, handles, styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
