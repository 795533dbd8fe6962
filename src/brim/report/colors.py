"""One color and one marker a system, in every figure, table and text of a report."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from brim.report.systems import TaskRuns
from brim.support.figures import MARKERS, Style

# Those of one figure differ most, also to color-blind readers. All have a contrast of 3:1 with
# white and, turned as the page turns figures in the dark, with its dark paper.
_COLORS = {
    "Teacher": "#111111",
    "Pre-distilled student": "#77808A",
    "LLMR": "#D55E00",
    "BRIM (K = 2)": "#0072B2",
    "Anchored (λ = 0.0)": "#A31929",
    "BRIM (K = 4)": "#A53785",
    "BRIM (K = 8)": "#4D19C1",
    "BRIM (K = 16)": "#3081FF",
    "BRIM (auto)": "#021853",
    "SeqKD": "#A58F28",
    "KL": "#2E9AB1",
    "RKL": "#A0000B",
    "JS": "#005A0A",
    "TVD": "#511600",
    "LLMR + Mean baseline": "#003986",
    "LLMR + Min-Var baseline": "#E33918",
    "PPO with LLMR": "#B126D5",
    "PPO with BRIM": "#1B8A48",
    "Student": "#4A4F57",
    "PPO, anchored critic": "#FF3C59",
}
COLORS = tuple(_COLORS.values())
_LINES = ("-", "--", ":")


def looks_of(tasks: Sequence[TaskRuns]) -> dict[str, Style]:
    """Return how each system is drawn, by its label: the same in all tasks.

    A label has a color of its own, whatever other systems there are: one that is named above, or
    one that its letters choose. Where that is taken it has the next that is free. Beyond twenty
    systems colors come again with other lines.
    """
    labels = dict.fromkeys(system.label for task in tasks for system in task.systems)
    known = {label: i for i, label in enumerate(_COLORS) if label in labels}
    taken = set(known.values())
    for label in labels:
        if label not in known:
            lap = len(known) // len(COLORS) * len(COLORS)
            first = zlib.crc32(label.encode()) % len(COLORS)
            places = ((first + step) % len(COLORS) + lap for step in range(len(COLORS)))
            known[label] = next(place for place in places if place not in taken)
            taken.add(known[label])
    return {label: _style(known[label]) for label in labels}


def _style(place: int) -> Style:
    lap, color = divmod(place, len(COLORS))
    return Style(COLORS[color], MARKERS[place % len(MARKERS)], _LINES[lap % len(_LINES)])
