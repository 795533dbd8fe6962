"""Whether scores of two evaluations can be compared: by decoding, sampling and teacher.

Only what both results say counts: those of older versions say less. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from brim.metrics.regrets import CUT_RETURNS, REGRETS, RETURN_OF
from brim.runs.directory import Results, decoding_in_words

Facts = Mapping[str, Any]


def different_decodings(a: Results, b: Results) -> tuple[str, str] | None:
    """Return how the texts of each were decoded and sampled; None where nothing differs."""
    sides: tuple[list[str], list[str]] = [], []
    ours, theirs = a.decoding, b.decoding
    if ours is not None and theirs is not None and ours != theirs:
        sides = [ours], [theirs]
    if other_samples(a.facts, b.facts):
        for side, results in zip(sides, (a, b), strict=True):
            side.append(f"samples by {decoding_in_words(results.facts['sampling'])}")
    return (", ".join(sides[0]), ", ".join(sides[1])) if sides[0] else None


def other_samples(a: Facts, b: Facts, name: str = "expected_return") -> bool:
    """Return whether a score is of sampled texts, and the two sampled them differently."""
    ours, theirs = a.get("sampling"), b.get("sampling")
    return RETURN_OF.get(name) == "expected_return" and bool(ours and theirs) and ours != theirs


def other_measure(name: str, a: Facts, b: Facts) -> str | None:
    """Return why a score of two evaluations cannot be compared; None where nothing says so.

    Args:
        name: of the score; returns and regrets depend on the teacher.
        a: facts of the split in the `results.json` of one.
        b: those of the other.
    """
    if name not in RETURN_OF:
        return None
    ours, theirs = str(a.get("teacher", "")), str(b.get("teacher", ""))
    # A teacher that a stage trained has its folder's name, a loaded one its SHA-256: the two may be
    # one teacher.
    alike = ours.startswith("teacher-") == theirs.startswith("teacher-")
    if ours and theirs and alike and ours != theirs:
        return f"another teacher scored the texts ({ours[:16]} and {theirs[:16]})"
    centers = [facts.get("return_centering", "none") for facts in (a, b)]
    if name in {*REGRETS, *CUT_RETURNS.values()} and centers[0] != centers[1]:
        return f"the teacher's logits were centered otherwise ({centers[0]} and {centers[1]})"
    return None
