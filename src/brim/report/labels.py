"""What a system is called: by its settings, by its decoding; and the order of systems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Family = Literal["teacher", "student", "divergence", "llmr", "brim", "anchored", "ppo", "other"]

# The order of the paper's Table 1; what the paper does not have comes after its relatives.
ORDER = (
    "Teacher",
    "Student",
    "Pre-distilled student",
    "SeqKD",
    "KL",
    "RKL",
    "JS",
    "TVD",
    "LLMR",
    "LLMR + Mean baseline",
    "LLMR + Min-Var baseline",
    "LLMR + time-mean baseline",
    "LLMR + leave-one-out baseline",
    "BRIM",
    "Anchored",
    "PPO with LLMR",
    "PPO, anchored critic",
    "PPO with BRIM",
)
_BASELINES = {
    "none": "",
    "mean": " + Mean baseline",
    "min_variance": " + Min-Var baseline",
    "time_mean": " + time-mean baseline",
    "leave_one_out": " + leave-one-out baseline",
}
# What makes `brim` the BRIM of the paper; runs of 0.2.0 can have another phase.
PAPERS = {"phase": "aligned", "immediate": "sampled", "tail": "one_step"}
_DIVERGENCES = {"seqkd": "SeqKD", "kl": "KL", "rkl": "RKL", "js": "JS", "tvd": "TVD"}


@dataclass(frozen=True, slots=True)
class Name:
    """The name of a method.

    Attributes:
        label: as it is printed.
        family: which methods it is one of.
        stem: its place in `ORDER`.
        k: steps of a block of BRIM; None for `auto`, and where there is no K.
    """

    label: str
    family: Family
    stem: str
    k: int | None = None

    @property
    def place(self) -> tuple[int, float, str]:
        """The key that sorts systems as the paper does; K ascending, then `auto`."""
        position = ORDER.index(self.stem) if self.stem in ORDER else len(ORDER)
        return position, self.k or float("inf"), self.label


def name_of(objective: Mapping[str, Any]) -> Name:
    """Return the name of what `objective`, of a run's settings, describes."""
    kind = str(objective.get("name"))
    if kind in _DIVERGENCES:
        return Name(_DIVERGENCES[kind], "divergence", _DIVERGENCES[kind])
    baseline = str(objective.get("baseline", "none"))
    suffix = _BASELINES.get(baseline, f" + {baseline} baseline")
    if kind == "llmr":
        return Name(f"LLMR{suffix}", "llmr", f"LLMR{suffix}")
    if kind == "ppo_llmr":
        anchored = objective.get("critic") == "anchored"
        label = "PPO, anchored critic" if anchored else "PPO with LLMR"
        return Name(label, "ppo", label)
    if kind == "anchored":
        critics = {"none": ", no critic", "learned": ", learned critic"}
        critic = critics.get(str(objective.get("remaining_regret")), "")
        per_token = ", per token" if objective.get("per_token") else ""
        label = f"Anchored (λ = {objective.get('lambda')}{critic}{per_token})"
        return Name(label, "anchored", "Anchored")
    k = objective.get("k")
    number = k if isinstance(k, int) else None
    if kind == "ppo_brim":
        return Name("PPO with BRIM", "ppo", "PPO with BRIM", number)
    if kind != "brim":
        return Name(kind, "other", kind)
    shown = "auto" if number is None else f"K = {number}"
    # With another estimator it is not the BRIM of the paper, among whose K the best is sought.
    set_to = {key: objective.get(key, value) for key, value in PAPERS.items()}
    changes = [f"{key} = {value}" for key, value in set_to.items() if value != PAPERS[key]]
    family: Family = "other" if changes or suffix else "brim"
    extra = f" [{', '.join(changes)}]" if changes else ""
    return Name(f"BRIM ({shown}){suffix}{extra}", family, "BRIM", number)


def distinct(labels: Sequence[str], settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the labels; equal ones with the settings in brackets in which they differ.

    Args:
        labels: one a thing.
        settings: of each, nested as in YAML.
    """
    flat = [flatten(nested) for nested in settings]
    groups: dict[str, list[int]] = {}
    for i, label in enumerate(labels):
        groups.setdefault(label, []).append(i)
    unique = list(labels)
    for members in groups.values():
        if len(members) == 1:
            continue
        keys = dict.fromkeys(key for i in members for key in flat[i] if flat[i][key] != "…")
        keys = {key: None for key in keys if len({repr(flat[i].get(key)) for i in members}) > 1}
        names = _short_names(list(keys))
        for number, i in enumerate(members, start=1):
            parts = [
                f"{names[key]} = {_shown(flat[i][key])}"
                for key in keys
                if flat[i].get(key, "…") != "…"
            ]
            unique[i] = f"{labels[i]} [{', '.join(parts) or number}]"
    return unique


def joined(labels: Sequence[str]) -> str:
    """Return `A, B and C`."""
    *most, last = labels
    return f"{', '.join(most)} and {last}" if most else last


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one mapping with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """The end of each dotted key, as much of it as no other key ends in."""
    names = {}
    for key in keys:
        parts = key.split(".")
        for start in range(len(parts) - 1, -1, -1):
            name = ".".join(parts[start:])
            if sum(f".{other}".endswith(f".{name}") for other in keys) == 1 or start == 0:
                names[key] = name
                break
    return names


Decoding = Mapping[str, Any]


def other_decoding(decoding: Decoding, usual: Decoding) -> str:
    """Return what of a decoding is not as usual, in words; "" where nothing is."""
    other = {key: value for key, value in decoding.items() if value != usual.get(key)}
    strategy = other.pop("strategy", None)
    if strategy is not None:  # then with all that is its own, for nothing of it is the usual one's
        other = {key: value for key, value in other.items() if value is not None or key in usual}
    parts = [f"{key} = {_shown(value)}" for key, value in other.items()]
    return ", ".join(parts if strategy is None else [str(strategy), *parts])


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
