"""Group the runs under some folders: by task and models, then by settings, decoding and seed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from brim.errors import RunError
from brim.metrics.regrets import length_common_to, with_cut_returns
from brim.report.folders import (
    SWEEP_FILE,
    Run,
    Unfinished,
    description_of,
    folders,
    is_run,
    kind_of_student,
    not_trained,
    points_not_begun,
    read_run,
    unfinished,
)
from brim.report.labels import Decoding, distinct, flatten, name_of, other_decoding
from brim.report.stages import begun_with, data_of, evaluated_alone, in_seed_order
from brim.report.systems import Gathered, SystemRuns, TaskRuns
from brim.runs.directory import RunDirectory, decoding_in_words

# What a report is made of besides runs: a judge's verdicts, and variance and bias against K.
EXTRAS = ("judge.json", "variance.json")
_SHARED = ("task", "teacher", "student")
# What two runs of one system may differ in: what is no setting of the method, and, at any depth,
# what says where and when work is done and changes no result but for rounding.
_ABOUT = ("description", "seed", "tracking")
_LOGISTICS = {"batch_tokens", "micro_batch_tokens", "device", "save_every", "keep_checkpoints"}
_LIMITS = ("max_tokens", "max_prompt_tokens")

Settings = Mapping[str, Any]
Identity = dict[str, Any]
Found = list[tuple[SystemRuns, Identity]]
"""Systems, and what makes each of them what it is."""


def gather(directories: Sequence[Path], *, split: str = "test") -> Gathered:
    """Read every run under the folders.

    Runs of the same settings but for the seed are one system; systems of the same task, teacher
    and student are one comparison. So are the teacher and the students that the runs began with,
    loaded and pre-distilled, where they were evaluated, and a model that `brim evaluate --model …
    --out FOLDER` left under the folders, named by its folder (`teacher` and `student` are the
    paper's).

    Args:
        directories: looked through with all that is in them; of a sweep's, with a `sweep.yaml`, the
            runs that have not begun are found too.
        split: whose results are wanted.

    Raises:
        RunError: no such folder, no finished run in any of them, damaged files, or intervals of
            several confidences in one comparison.
    """
    runs: list[Run] = []
    models: list[Run] = []
    open_runs: list[Unfinished] = []
    notes: list[str] = []
    extras: dict[str, list[Path]] = {}
    sweeps: list[Path] = []
    for directory, files in folders(directories):
        for name in files & set(EXTRAS):
            extras.setdefault(name, []).append(directory / name)
        if is_run(directory, files):
            tested = [read_run(directory, name) for name in RunDirectory(directory).tests(split)]
            lacking = [run for run in tested if not run.scores or run.stopped_at]
            runs += [] if lacking else tested
            open_runs += map(unfinished, lacking[:1])
        elif files == {".lock"}:
            open_runs.append(not_trained(directory))
        elif "results.json" in files:
            tested = [read_run(directory, name) for name in RunDirectory(directory).tests(split)]
            if stop := tested[0].stopped_at:
                notes.append(f"{directory}: left out, since its model is of {stop} of a training.")
            else:
                models += [model for model in tested if model.scores]
        if SWEEP_FILE in files:
            sweeps.append(directory)
    if not runs:
        raise RunError(
            f"{', '.join(map(str, directories))}: no finished run, {len(open_runs)} unfinished; a "
            f"run has config.yaml, manifest.json, and results of the {split} split in results.json"
        )
    places = {run.directory.resolve() for run in runs}
    places |= {run.directory.resolve() for run in open_runs}
    for directory in sweeps:
        open_runs += points_not_begun(directory, places, notes)
    tasks = _group(runs, models, notes)
    _check_confidence(tasks)
    notes += _untrained(tasks)
    return Gathered(
        tasks,
        tuple(open_runs),
        tuple(notes),
        {name: tuple(paths) for name, paths in extras.items()},
        _description(runs, sweeps),
    )


def _description(runs: Sequence[Run], sweeps: Sequence[Path]) -> str:
    """That of the sweep that all runs are of, or the one that all runs have; "" without."""
    places = [run.directory.resolve() for run in runs]
    covering = [s for s in sweeps if all(s.resolve() in place.parents for place in places)]
    if text := next(filter(None, map(description_of, covering)), ""):
        return text
    texts = {" ".join(str(run.settings.get("description") or "").split()) for run in runs}
    return texts.pop() if len(texts) == 1 else ""


def _check_confidence(tasks: Sequence[TaskRuns]) -> None:
    for task in tasks:
        known: dict[str, tuple[float, Run]] = {}
        for run in (run for system in task.systems for run in system.runs):
            for metric, score in run.scores.items():
                confidence, first = known.setdefault(metric, (score.confidence, run))
                if score.confidence != confidence:
                    raise RunError(
                        f"{run.directory / 'results.json'}: intervals of another confidence than "
                        f"in {first.directory}; evaluate both with the same evaluation.confidence"
                    )


def _group(runs: Sequence[Run], models: Sequence[Run], notes: list[str]) -> tuple[TaskRuns, ...]:
    kinds = [f"{_task(run)} {run.settings.get('objective', {}).get('name')}" for run in runs]
    settings = _with_defaults([run.settings for run in runs], kinds)
    shared = identities([*map(_shared, runs, settings)], [_task(run) for run in runs])
    own = identities(settings, kinds)
    members: dict[str, list[int]] = {}
    for i, identity in enumerate(shared):
        members.setdefault(_key(identity), []).append(i)
    groups = list(members.values())
    labels = distinct([_label(runs[g[0]]) for g in groups], [shared[g[0]] for g in groups])
    tasks = []
    for label, group in zip(labels, groups, strict=True):
        mine = [runs[i] for i in group]
        found = _systems(mine, [own[i] for i in group], notes)
        found += [(system, {}) for system in begun_with(mine, notes)]
        found += [(system, {}) for system in evaluated_alone(models, mine)]
        found, usual = _part_by_decoding(found)
        names = distinct([system.label for system, _ in found], [own for _, own in found])
        systems = [replace(s, label=name) for (s, _), name in zip(found, names, strict=True)]
        systems.sort(key=lambda system: (system.name.place, system.label))
        systems, cut = _with_cut_returns(systems)
        tasks.append(
            TaskRuns(
                label=label,
                name=_task(mine[0]),
                kind=kind_of_student(mine[0]),
                systems=tuple(systems),
                criterion=_criterion(mine),
                decoding=usual,
                cut=cut,
            )
        )
    return tuple(tasks)


def _criterion(runs: Sequence[Run]) -> str:
    """The score that picked the checkpoints; of runs that do not say it, the one in their logs."""
    first = next(iter(runs[0].scores))
    said = runs[0].settings.get("evaluation", {}).get("metric") or runs[0].manifest.get("criterion")
    if said or any(run.curve(f"eval/{first}") for run in runs):
        return str(said or first)
    return "return" if any(run.curve("eval/return") for run in runs) else first


def _with_cut_returns(systems: Sequence[SystemRuns]) -> tuple[list[SystemRuns], int | None]:
    """The systems with the returns of texts cut at a length common to all, and that length.

    What was decoded otherwise, say to fewer tokens, has no say in it.
    """
    alike = [system.runs for system in systems if not system.decoding]
    length = length_common_to([(run.scores, run.results) for run in runs] for runs in alike)
    cut = [
        tuple(replace(r, scores=with_cut_returns(r.scores, r.results, length)) for r in s.runs)
        for s in systems
    ]
    return [replace(s, runs=runs) for s, runs in zip(systems, cut, strict=True)], length


def _with_defaults(settings: Sequence[Settings], kinds: Sequence[str]) -> Sequence[Settings]:
    """The settings, with the defaults of what only newer runs have, if this version takes them."""

    def fixed(nested: Settings) -> frozenset[str]:
        return frozenset(key for key in _essentials(nested) if ".build." not in key)

    if len({*zip(kinds, map(fixed, settings), strict=True)}) == len({*kinds}):
        return settings
    # With it comes torch: only where versions may be mixed.
    from brim.training.settings import RunConfig

    def complete(nested: Settings) -> Settings:
        try:
            return RunConfig.model_validate(dict(nested)).model_dump(mode="json")
        except ValueError:
            return nested

    return [complete(nested) for nested in settings]


def identities(settings: Sequence[Mapping[str, Any]], kinds: Sequence[str]) -> list[Identity]:
    """Return what makes each of some settings what it is, as a mapping with dotted keys.

    A setting that some of a kind do not have, being older than it, is left out where all that have
    it agree: it is the default then, and what they did before there was a setting.
    """
    flat = [_essentials(nested) for nested in settings]
    groups: dict[str, list[Identity]] = {}
    for kind, identity in zip(kinds, flat, strict=True):
        groups.setdefault(kind, []).append(identity)
    for group in groups.values():
        for key in dict.fromkeys(key for identity in group for key in identity):
            values = {repr(identity[key]) for identity in group if key in identity}
            newer = len(values) == 1 and any(key not in identity for identity in group)
            if newer and ".build." not in key:  # whose keys are free: a missing one says something
                for identity in group:
                    identity.pop(key, None)
    return flat


def _essentials(nested: Mapping[str, Any]) -> Identity:
    settings = {key: value for key, value in nested.items() if key not in _ABOUT}
    flat = flatten(settings)
    kept = {k: v for k, v in flat.items() if k.rpartition(".")[2] not in _LOGISTICS}
    # A group of settings that is there differs from one that is null, whatever is in it.
    prefixes = {k[:i] for k in flat for i, letter in enumerate(k) if letter == "."}
    return kept | dict.fromkeys(sorted(prefixes), "…")


def _key(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)


def _shared(run: Run, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of task and models, and which data was tested on."""
    shared = {key: settings.get(key) for key in _SHARED}
    one_of_several = {"test": run.split} if "." in run.split else {}
    return {**shared, "data": (data_of(run) or "")[:8], **one_of_several}


def _label(run: Run) -> str:
    """The task, with the name of one of several test sets."""
    _, _, test_set = run.split.partition(".")
    return f"{_task(run)}, {test_set}" if test_set else _task(run)


def _task(run: Run) -> str:
    return str(run.settings["task"].get("name"))


def _systems(runs: Sequence[Run], identities: Sequence[Identity], notes: list[str]) -> Found:
    groups: dict[str, tuple[Identity, dict[int | None, Run]]] = {}
    for run, identity in zip(runs, identities, strict=True):
        _, by_seed = groups.setdefault(_key(identity), (identity, {}))
        first = by_seed.setdefault(run.seed, run)
        if first is not run:
            notes.append(
                f"{run.directory}: left out, since {first.directory} has the same settings and "
                "seed."
            )
    found = []
    for identity, by_seed in groups.values():
        ordered = tuple(in_seed_order(by_seed.values()))
        name = name_of(ordered[0].settings.get("objective", {}))
        found.append((SystemRuns(name.label, name, ordered), identity))
    return found


def _part_by_decoding(found: Found) -> tuple[Found, str]:
    """Make systems of one decoding each; all but the most common one is in the label.

    Returns:
        The systems, and the most common decoding in words.
    """
    limits = _known_limits([run for system, _ in found for run in system.runs])
    parts: list[tuple[SystemRuns, Identity, str]] = []
    known: dict[str, Decoding] = {}
    for system, identity in found:
        groups: dict[str, list[Run]] = {}
        for run in system.runs:
            decoding = _decoding(run, limits)
            key = _key(decoding)
            known[key] = decoding
            groups.setdefault(key, []).append(run)
        parts += [(replace(system, runs=tuple(r)), identity, key) for key, r in groups.items()]
    counts = Counter(key for _, _, key in parts)
    usual = max(counts, key=lambda key: (counts[key], known[key]["strategy"] == "greedy"))
    marks = {key: other_decoding(decoding, known[usual]) for key, decoding in known.items()}
    marked = [
        (replace(s, label=f"{s.label} [{marks[key]}]" if marks[key] else s.label,
                 decoding=marks[key]), identity)
        for s, identity, key in parts
    ]  # fmt: skip
    return marked, decoding_in_words(known[usual])


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


def _untrained(tasks: Sequence[TaskRuns]) -> list[str]:
    """Who was trained, and is best before it: what was tested is what it began with."""
    notes = []
    for task in tasks:
        for system in task.systems:
            runs = [run for run in system.runs if run.results.get("steps")]
            zero = sum(run.results.get("best_step") == 0 for run in runs)
            if zero:
                notes.append(
                    f"{task.label}: {system.label}: the best checkpoint of {zero} of {len(runs)} "
                    f"run{'s' if len(runs) > 1 else ''} is of step 0: no training is in what was "
                    "tested there."
                )
    return notes
