"""Whether the numbers of two evaluations are of one measure: how texts were written, who scored.

All of it as far as both say it: results of older versions say less. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from brim.metrics.regrets import CUT_RETURNS, REGRETS, RETURN_OF
from brim.runs.directory import Results, decoding_in_words

Facts = Mapping[str, Any]


def different_decodings(a: Results, b: Results) -> tuple[str, str] | None:
    """Return how the texts of each were written, greedy ones or samples; None where it is alike."""
    sides: tuple[list[str], list[str]] = [], []
    ours, theirs = a.decoding, b.decoding
    if ours is not None and theirs is not None and ours != theirs:
        sides = [ours], [theirs]
    if other_samples(a.facts, b.facts):
        for side, results in zip(sides, (a, b), strict=True):
            side.append(f"samples by {decoding_in_words(results.facts['sampling'])}")
    return (", ".join(sides[0]), ", ".join(sides[1])) if sides[0] else None


def other_samples(a: Facts, b: Facts) -> bool:
    """Return whether the texts behind the expected returns were sampled in two ways."""
    ours, theirs = a.get("sampling"), b.get("sampling")
    return bool(ours and theirs) and ours != theirs


def other_measure(name: str, a: Facts, b: Facts) -> str | None:
    """Return why a score of two evaluations is not the same measure; None where nothing says so.

    Args:
        name: of the score; returns and what goes with them depend on who scored.
        a: of the split, from the `results.json` of one.
        b: of the other.
    """
    if name not in RETURN_OF:
        return None
    ours, theirs = str(a.get("teacher", "")), str(b.get("teacher", ""))
    # A teacher that a stage trained is named by its folder, a loaded one by its SHA-256: of one
    # another these say nothing.
    alike = ours.startswith("teacher-") == theirs.startswith("teacher-")
    if ours and theirs and alike and ours != theirs:
        return f"another teacher scored the texts ({ours[:16]} and {theirs[:16]})"
    centers = [facts.get("return_centering", "none") for facts in (a, b)]
    if name in {*REGRETS, *CUT_RETURNS.values()} and centers[0] != centers[1]:
        return f"the teacher's logits were centered otherwise ({centers[0]} and {centers[1]})"
    return None
