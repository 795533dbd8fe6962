"""How texts were decoded: what was decoded otherwise than the rest is marked, and never tested."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from brim.report.systems import Run, SystemRuns
from brim.runs.directory import decoding_in_words

_LIMITS = ("max_tokens", "max_prompt_tokens")

Decoding = dict[str, Any]


def part_by_decoding(systems: Sequence[SystemRuns]) -> tuple[list[list[SystemRuns]], str]:
    """Make systems of one decoding each; all but the most common one stands in the label.

    Args:
        systems: of one task.

    Returns:
        The parts of each system, and the most common decoding in words.
    """
    limits = _known_limits([run for system in systems for run in system.runs])
    parted: list[dict[str, list[Run]]] = []
    known: dict[str, Decoding] = {}
    for system in systems:
        parts: dict[str, list[Run]] = {}
        for run in system.runs:
            decoding = _decoding(run, limits)
            key = json.dumps(decoding, sort_keys=True)
            known[key] = decoding
            parts.setdefault(key, []).append(run)
        parted.append(parts)
    counts = Counter(key for parts in parted for key in parts)
    usual = max(counts, key=lambda key: (counts[key], known[key]["strategy"] == "greedy"))
    marks = {key: _difference(decoding, known[usual]) for key, decoding in known.items()}
    return [
        [
            replace(
                system,
                label=f"{system.label} [{marks[key]}]" if marks[key] else system.label,
                runs=tuple(runs),
                decoding=marks[key],
            )
            for key, runs in parts.items()
        ]
        for system, parts in zip(systems, parted, strict=True)
    ], decoding_in_words(known[usual])


def _known_limits(runs: Sequence[Run]) -> Decoding:
    """Of the first run that knows them: those of a stage or model from before they were kept."""
    for run in runs:
        for place in (run.results.get("decoding"), run.settings.get("decoding")):
            if isinstance(place, Mapping):
                return {name: place.get(name) for name in _LIMITS}
    return dict.fromkeys(_LIMITS)


def _decoding(run: Run, limits: Decoding) -> Decoding:
    kept = run.results.get("decoding")
    if isinstance(kept, Mapping):
        return {**limits, "strategy": "greedy", **kept}
    # Results that do not say it are from the time when there was greedy text only.
    own = run.settings.get("decoding") or {}
    return {"strategy": "greedy", **{name: own.get(name, limits[name]) for name in _LIMITS}}


def _difference(decoding: Decoding, usual: Decoding) -> str:
    """What of it is not as usual; "" where nothing is."""
    other = {key: value for key, value in decoding.items() if value != usual.get(key)}
    strategy = other.pop("strategy", None)
    if strategy is not None:  # then with all that is its own, for nothing of it is the usual one's
        other = {key: value for key, value in other.items() if value is not None or key in usual}
    parts = [f"{key} = {_shown(value)}" for key, value in other.items()]
    return ", ".join(parts if strategy is None else [str(strategy), *parts])


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
