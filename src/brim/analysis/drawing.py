"""Figures of analyses as PNG and SVG, from their results alone; matplotlib without pyplot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from brim.support.figures import COLORS, INK, MARKERS, Images, log_axis, render

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from brim.analysis.results import (
        StudentTheorem1,
        StudentVariance,
        Theorem1Analysis,
        VarianceAnalysis,
    )

LINES = {"one_step": "-", "none": "--", "": "-"}
TAILS = {"one_step": "one-step tail", "none": "no tail"}


def draw_variance(analysis: VarianceAnalysis) -> Images:
    """Variance and bias of Ĝ_1 by K as in the paper, and what they do to the gradient.

    A line a student and tail. Where more students than colors there are, colors come again. By λ
    variance is of the weights, and bias the cosine of the mean gradient.
    """
    by_k = analysis.students[0].choice.knob == "k"

    def draw(figure: Figure) -> None:
        panels = [
            ("variance_first", "Variance of Ĝ₁ over rollouts", "variance"),
            ("bias_first", "Bias: mean of Ĝ₁ - G₁", "bias"),
            ("scaled_gradient_variance", "Variance of the gradient", "trace, own scale"),
            ("scaled_gradient_alignment", "Cosine of a batch with E g₁", "cosine"),
        ]
        if not by_k:
            panels[:2] = [
                ("variance_weight", "Variance of the weights", "variance"),
                ("scaled_gradient_cosine", "Bias: cosine of E g with E g₁", "cosine"),
            ]
        for ax, (name, title, label) in zip(figure.subplots(2, 2).flat, panels, strict=True):
            ax.set_title(title)
            ax.set_ylabel(label)
            # What may be negative, and hardly varies in size, has a plain scale.
            _draw_by_value(ax, analysis, name, log=label != "cosine", by_k=by_k)
        handles = _handles(
            [(student.label, "-") for student in analysis.students],
            [(TAILS[tail], LINES[tail]) for tail in _tails(analysis.students[0]) if tail],
        )
        figure.legend(handles=handles, loc="outside upper left", ncols=4, fontsize=9)

    return render((10.5, 7.2), draw)


def _tails(student: StudentVariance) -> list[str]:
    return list(dict.fromkeys(row.tail for row in student.rows))


def _draw_by_value(
    ax: Axes, analysis: VarianceAnalysis, name: str, *, log: bool, by_k: bool
) -> None:
    ax.set_xlabel("K" if by_k else "λ")
    for number, student in enumerate(analysis.students):
        for tail in _tails(student):
            rows = [row for row in student.rows if row.value == 1 or row.tail == tail]
            found = [(row.value, row.numbers[name]) for row in rows if name in row.numbers]
            # Zero has no place on a logarithmic axis: the bias of K = 1 is left out.
            points = [
                (value, estimate)
                for value, estimate in found
                if np.isfinite(estimate.value) and (estimate.value > 0 or not log)
            ]
            if points:
                _draw_estimates(ax, points, number, LINES[tail])
    if by_k:
        _k_axis(ax, sorted({row.value for student in analysis.students for row in student.rows}))
    if log:
        log_axis(ax)


def _draw_estimates(ax: Axes, points: Sequence[tuple[float, Any]], number: int, line: str) -> None:
    """A line with a band where intervals are known."""
    color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
    x = [at for at, _ in points]
    ax.plot(x, [e.value for _, e in points], line, color=color, marker=marker)
    low = [e.low for _, e in points]
    ax.fill_between(x, low, [e.high for _, e in points], color=color, alpha=0.12, linewidth=0)


def draw_theorem1(analysis: Theorem1Analysis) -> Images:
    """Of the first student: variance by remaining length, the ratio, correlations, positions."""
    student = analysis.students[0]

    def draw(figure: Figure) -> None:
        axes = figure.subplots(2, 2)
        _draw_lengths(axes[0, 0], student)
        _draw_ratios(axes[0, 1], analysis)
        _draw_correlations(axes[1, 0], student)
        ax = axes[1, 1]
        ax.set_title("Are steps alike? Regret by position")
        ax.set_xlabel("position t")
        ax.set_ylabel("regret")
        x = [row["position"] for row in student.positions]
        for number, (name, label) in enumerate({"mean": "mean", "var": "variance"}.items()):
            y = [row[f"{name}_regret"] for row in student.positions]
            ax.plot(x, y, color=COLORS[number], marker=MARKERS[number], label=label)
        ax.legend()

    return render((10.5, 7.2), draw)


def _draw_lengths(ax: Axes, student: StudentTheorem1) -> None:
    """Measured, and the law fitted to each K, dashed."""
    ax.set_title("Variance by what is left; dashed: the law")
    ax.set_xlabel("tokens left, n - t + 1")
    ax.set_ylabel(f"variance of Ĝ, no tail ({student.label})")
    log_axis(ax)
    left = np.array([row["remaining"] for row in student.lengths])
    for number, fit in enumerate(student.fits):
        color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
        y = [row["variance"][str(fit.k)] for row in student.lengths]
        ax.plot(left, y, color=color, marker=marker, label=f"K = {fit.k}")
        ax.plot(left, fit.c.value * ((left - 1) // fit.k + 1), "--", color=color, linewidth=1)
    ax.legend()


def _draw_ratios(ax: Axes, analysis: Theorem1Analysis) -> None:
    ax.set_title("Var Ĝ / Var G over what the law says")
    ax.set_xlabel("K")
    ax.set_ylabel("measured / predicted")
    ax.axhline(1, color=INK, linewidth=1)
    for number, student in enumerate(analysis.students):
        _draw_estimates(ax, [(fit.k, fit.ratio) for fit in student.fits], number, "-")
    _k_axis(ax, [fit.k for fit in analysis.students[0].fits])
    ax.legend(handles=_handles([(student.label, "-") for student in analysis.students], []))


def _draw_correlations(ax: Axes, student: StudentTheorem1) -> None:
    from matplotlib.lines import Line2D

    ax.set_title("Are steps independent? Correlation at a distance")
    ax.set_xlabel("distance, tokens")
    ax.set_ylabel("correlation")
    ax.axhline(0, color=INK, linewidth=1)
    for number, name in enumerate(("regret", "reward")):
        points = [
            (row["distance"], row[name])
            for row in student.correlations
            if np.isfinite(row[name].value)
        ]
        _draw_estimates(ax, points, number, "-")
    ax.legend(
        handles=[
            Line2D([], [], color=COLORS[i], marker=MARKERS[i], label=name)
            for i, name in enumerate(("regret", "reward"))
        ]
    )


def _handles(students: Sequence[tuple[str, str]], tails: Sequence[tuple[str, str]]) -> list[Any]:
    from matplotlib.lines import Line2D

    colors = [
        Line2D([], [], color=COLORS[i % len(COLORS)], marker=MARKERS[i % len(MARKERS)], label=x)
        for i, (x, _) in enumerate(students)
    ]
    lines = [Line2D([], [], color=INK, linestyle=line, label=label) for label, line in tails]
    return [*colors, *lines]


def _k_axis(ax: Axes, ks: Sequence[float]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xticks(ks, [f"{k:g}" for k in ks], minor=False)
    ax.set_xticks([], minor=True)
