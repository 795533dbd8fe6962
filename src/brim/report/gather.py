"""Group the runs under some folders: by task and models, then by settings, then by seed."""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from brim.config.loading import config_hash
from brim.errors import BrimError, RunError
from brim.report.decodings import part_by_decoding
from brim.report.labels import Name, flatten, name_of, tell_apart
from brim.report.systems import (
    Gathered,
    Run,
    SystemRuns,
    TaskRuns,
    Unfinished,
    failure,
    folders,
    in_seed_order,
    is_run,
    not_begun,
    read_run,
    unfinished,
)
from brim.runs.directory import RunDirectory
from brim.support.files import read_json
from brim.support.seals import find_damage, is_sealed

# What a report is made of besides runs: a judge's verdicts, and variance and bias against K.
EXTRAS = ("judge.json", "variance.json")
_SHARED = ("task", "teacher", "student")
# What two runs of one system may differ in: what is no setting of the method, and, at any depth,
# what says where and when work is done and changes no result but for rounding.
_ABOUT = ("description", "seed", "tracking")
_LOGISTICS = {"batch_tokens", "micro_batch_tokens", "device", "save_every", "keep_checkpoints"}
_STAGES = {
    "teacher": Name("Teacher", "teacher", "Teacher"),
    "student": Name("Student", "student", "Student"),
    "predistill": Name("Pre-distilled student", "student", "Pre-distilled student"),
}

Identity = dict[str, Any]


def gather(directories: Sequence[Path], *, split: str = "test") -> Gathered:
    """Read every run under the folders.

    Runs of the same settings but for the seed are one system; systems of the same task, teacher
    and student stand side by side. So do the teacher and the students that the runs began with,
    loaded and pre-distilled, where they were evaluated, and a model that `brim evaluate --model …
    --out FOLDER` left under the folders, named by its folder (`teacher` and `student` are the
    paper's).

    Args:
        directories: looked through with all that is in them; of a sweep's, with a `sweep.yaml`, the
            runs that have not begun are found too.
        split: whose results are wanted.

    Raises:
        RunError: no such folder, no finished run in any of them, or damaged files.
    """
    runs: list[Run] = []
    models: list[Run] = []
    open_runs: list[Unfinished] = []
    notes: list[str] = []
    extras: dict[str, list[Path]] = {name: [] for name in EXTRAS}
    sweeps: list[Path] = []
    for directory, files in folders(directories):
        for name in files & set(EXTRAS):
            extras[name].append(directory / name)
        if is_run(directory, files):
            run = read_run(directory, split)
            if run.scores and not RunDirectory(directory).stopped_at(run.results):
                runs.append(run)
            else:
                open_runs.append(unfinished(run))
        elif files == {".lock"}:
            open_runs.append(not_begun(directory))
        elif "results.json" in files:
            model = read_run(directory, split)
            stop = RunDirectory(directory).stopped_at(model.results)
            if stop:
                notes.append(f"{directory}: left out, since its model is of {stop} of a training.")
            elif model.scores:
                models.append(model)
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
    notes += _untrained(tasks)
    found = {name: tuple(paths) for name, paths in extras.items() if paths}
    return Gathered(tasks, tuple(open_runs), tuple(notes), found)


def _group(runs: Sequence[Run], models: Sequence[Run], notes: list[str]) -> tuple[TaskRuns, ...]:
    shared = identities([_shared(run) for run in runs], [_task(run) for run in runs])
    kinds = [f"{_task(run)} {run.settings.get('objective', {}).get('name')}" for run in runs]
    own = identities([run.settings for run in runs], kinds)
    members: dict[str, list[int]] = {}
    for i, identity in enumerate(shared):
        members.setdefault(config_hash(identity), []).append(i)
    groups = list(members.values())
    labels = tell_apart([_task(runs[g[0]]) for g in groups], [shared[g[0]] for g in groups])
    tasks = []
    for label, group in zip(labels, groups, strict=True):
        mine = [runs[i] for i in group]
        systems, settings = _systems(mine, [own[i] for i in group], notes)
        added = _stages(mine, notes)
        added += [_model(model) for model in models if _data(model) == _data(mine[0]) is not None]
        parted, usual = part_by_decoding(systems + added)
        settings = [
            identity
            for parts, identity in zip(parted, settings + [{}] * len(added), strict=True)
            for _ in parts
        ]
        systems = [system for parts in parted for system in parts]
        told = tell_apart([system.label for system in systems], settings)
        systems = [replace(s, label=text) for s, text in zip(systems, told, strict=True)]
        systems.sort(key=lambda system: (system.name.place, system.label))
        criterion = mine[0].settings.get("evaluation", {}).get("metric")
        tasks.append(
            TaskRuns(
                label=label,
                name=_task(mine[0]),
                kind=_kind(mine[0]),
                settings=_shared(mine[0]),
                systems=tuple(systems),
                criterion=criterion or next(iter(mine[0].scores)),
                decoding=usual,
            )
        )
    return tuple(tasks)


def identities(settings: Sequence[Mapping[str, Any]], kinds: Sequence[str]) -> list[Identity]:
    """What makes each of some settings what it is, as a mapping with dotted keys.

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


def _shared(run: Run) -> dict[str, Any]:
    """Settings of task and models, and which data was tested on."""
    settings = {key: run.settings.get(key) for key in _SHARED}
    return {**settings, "data": (_data(run) or "")[:8]}


def _task(run: Run) -> str:
    return str(run.settings["task"].get("name"))


def _data(run: Run) -> str | None:
    """The hash of the examples of the split."""
    data = run.results.get("data", {})
    return data.get("sha256") if isinstance(data, dict) else None


def _systems(
    runs: Sequence[Run], identities: Sequence[Identity], notes: list[str]
) -> tuple[list[SystemRuns], list[Identity]]:
    """The systems, and what makes each of them what it is."""
    groups: dict[str, dict[int | None, Run]] = {}
    settings: dict[str, Identity] = {}
    for run, identity in zip(runs, identities, strict=True):
        key = config_hash(identity)
        settings[key] = identity
        first = groups.setdefault(key, {}).setdefault(run.seed, run)
        if first is not run:
            notes.append(
                f"{run.directory}: left out, since {first.directory} has the same settings and "
                "seed."
            )
    systems = []
    for by_seed in groups.values():
        ordered = tuple(in_seed_order(by_seed.values()))
        name = name_of(ordered[0].settings.get("objective", {}))
        systems.append(SystemRuns(name.label, name, ordered))
    return systems, [settings[key] for key in groups]


def _stages(runs: Sequence[Run], notes: list[str]) -> list[SystemRuns]:
    """The teacher, and the students as loaded and as pre-distilled, that the runs began with."""
    systems = []
    for stage, name in _STAGES.items():
        found: dict[Path, Run] = {}
        for run in in_seed_order(runs):
            directory = _stage_directory(run, stage)
            if directory is None or directory in found:
                continue
            tested = replace(read_run(directory, run.split), seed=_seed_of(run, stage))
            if any(_same_test(tested, other) for other in found.values()):
                continue  # made with another budget of memory
            found[directory] = tested
            if not tested.scores:
                notes.append(_how_to_evaluate(run, stage, directory, name, tested.seed))
        with_scores = tuple(run for run in found.values() if run.scores)
        if with_scores:
            systems.append(SystemRuns(name.label, name, with_scores))
    return systems


def _seed_of(run: Run, stage: str) -> int | None:
    """The seed that a model before the run's own training depends on; None for any seed's."""
    teacher = run.settings["teacher"]
    one_teacher = teacher.get("train") is None or teacher.get("seed") is not None
    return None if one_teacher and stage != "predistill" else run.seed


def _same_test(a: Run, b: Run) -> bool:
    return a.seed == b.seed and a.results.get("decoding") == b.results.get("decoding")


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


def _stage_directory(run: Run, stage: str) -> Path | None:
    folder = run.manifest.get("stages", {}).get(stage)
    if folder is None:
        return None
    place = Path(run.directory, run.manifest.get("stages_dir", "stages"), folder)
    return Path(os.path.normpath(place))


def _how_to_evaluate(run: Run, stage: str, directory: Path, name: Name, seed: int | None) -> str:
    which = name.label if seed is None else f"{name.label} of seed {seed}"
    if not directory.is_dir():
        return f"{which}: not in the tables, for its folder {directory} is missing."
    command = ["brim", "evaluate", str(run.directory), "--stage", stage, "--split", run.split]
    return f"{which}: not evaluated, so not in the tables; evaluate by `{shlex.join(command)}`."


def _model(run: Run) -> SystemRuns:
    """A model that was evaluated into a folder of its own."""
    folder = run.directory.name
    name = _STAGES.get(folder, Name(folder, "other", folder))
    return SystemRuns(name.label, name, (run,))


def _kind(run: Run) -> str:
    """Whether the student is an encoder-decoder, as its saved configuration says."""
    best = run.directory / "best"
    if (best / "config.json").exists():
        damage = find_damage(best, lambda name: name == "config.json") if is_sealed(best) else None
        if damage is not None:
            raise RunError(
                f"{best}: damaged: {damage}; start again the brim train that wrote it, which makes "
                "it again where it can"
            )
        encoder_decoder = bool(read_json(best / "config.json").get("is_encoder_decoder"))
    else:
        student, teacher = (run.settings.get(role) or {} for role in ("student", "teacher"))
        family = (student.get("build") or {}).get("family")
        named = str(family or student.get("path") or teacher.get("path"))
        encoder_decoder = any(part in named.lower() for part in ("t5", "bart"))
    return "encoder-decoder" if encoder_decoder else "decoder-only"


SWEEP_FILE = "sweep.yaml"  # as `brim sweep` keeps it in its folder
NOT_BEGUN = "not begun"


def points_not_begun(
    directory: Path, found: Collection[Path], notes: list[str]
) -> list[Unfinished]:
    """The points of the sweep in this folder of which there is no run.

    Args:
        directory: has a `sweep.yaml`.
        found: the run directories that there are, resolved.
        notes: takes a sentence where the file cannot be used, say because a recipe is elsewhere.
    """
    # With the settings comes torch: only where there is a sweep to expand.
    from brim.sweep.grid import points
    from brim.sweep.spec import load_sweep

    path = directory / SWEEP_FILE
    begun = any((directory / name).is_dir() for name in ("logs", "stages"))
    try:
        planned = points(load_sweep(path), str(path))
    except BrimError as error:
        if begun:
            notes.append(f"{path}: which of its runs have not begun is not known: {error}.")
        return []
    if not begun and not any((directory / point.name).is_dir() for point in planned):
        return []  # a file of a sweep that is elsewhere
    missing = []
    for point in planned:
        place = directory / point.name
        if place.resolve() not in found:
            label = name_of(point.config.objective.model_dump()).label
            state = failure(place) or NOT_BEGUN
            missing.append(Unfinished(place, label, point.seed, state))
    return missing
