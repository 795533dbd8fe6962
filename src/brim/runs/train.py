"""A run's life, from top to bottom: teacher, its outputs, the student, the objective, the test.

Each stage is resumable, and skipped when its inputs are unchanged. Below `train` is what writes.
"""

from __future__ import annotations

import logging
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from accelerate import PartialState

from brim._version import __version__
from brim.config.loading import (
    config_hash,
    describe_changes,
    dump_config,
    load_config,
    without_incidental,
)
from brim.config.yaml import parse
from brim.errors import ConfigError, RunError
from brim.models import LanguageModel, ServerTeacher, Teacher
from brim.objectives.base import Objective
from brim.objectives.reward import check_reward
from brim.runs.card import write_card
from brim.runs.directory import RunDirectory
from brim.runs.drift import measure_drift
from brim.runs.evaluate import evaluate_model, kept_results, training_facts
from brim.runs.fit import fit, measure_reference
from brim.runs.inputs import Made, RunInputs
from brim.runs.models import load_checked
from brim.runs.pairs import match, scorer
from brim.runs.stages import (
    Stage,
    TeacherOutputs,
    make_student,
    make_teacher,
    untrained_models,
    untrained_student,
    write_teacher_outputs,
)
from brim.support.files import acquire, atomic_write_text, write_sealed_json
from brim.support.progress import Reporter
from brim.training.accelerator import make_accelerator
from brim.training.checkpoints import check_processes, latest_state
from brim.training.monitors import Monitors
from brim.training.settings import RunConfig

logger = logging.getLogger(__name__)

Resume = Literal["auto", "must", "never"]

PACKAGES = (
    "torch", "transformers", "tokenizers", "accelerate", "datasets", "sacrebleu", "rouge-score",
)  # fmt: skip

# What a stop before the run had begun leaves: what it was given, data read, half a manifest, and
# stages, which keep what is known of a server, and are used again only where all inputs are equal.
_BEFORE_THE_RUN = re.compile(r"\.lock|inputs|data|stages|\.manifest\.json\..*\.tmp")


def train(
    config: RunConfig,
    out: Path,
    *,
    resume: Resume = "auto",
    stages_dir: Path | None = None,
    reporter: Reporter | None = None,
    command: Sequence[str] = (),
    other_processes: bool = False,
    callbacks: Sequence[Any] = (),
    stages_only: bool = False,
) -> dict[str, Any]:
    """Distill, and test the best checkpoint.

    Args:
        config: the run's settings.
        out: the run directory; made, or resumed.
        resume: `auto` resumes what is there, `must` refuses to begin, `never` to resume.
        stages_dir: where teacher, teacher outputs and pre-distilled students are kept; runs that
            share it share them. `out/stages` by default.
        reporter: shows progress.
        command: what was typed, for the provenance.
        other_processes: resume what another number of processes began.
        callbacks: of the objective's stage, behind those that `config` names; see `Callbacks`.
        stages_only: end, with nothing to return, when all that runs may share is made.

    Returns:
        What `results.json` holds of the test; of several test sets by split.

    Raises:
        BrimError: settings, data, models or directory cannot be used; nothing was overwritten.
        AwayError: the teacher's server gives no answer; the same command resumes.
        NonFiniteError: training met too many non-finite steps in a row.
        Interrupted: SIGINT or SIGTERM came; the last complete step is saved.
    """
    accelerator = make_accelerator(config.trainer.precision)
    if reporter is None or not accelerator.is_main_process:
        reporter = Reporter(quiet=True)
    stages_dir = stages_dir or out / "stages"
    with open_run(out, config, resume, other_processes=other_processes), ExitStack() as stack:
        run = RunInputs(config, out, accelerator, stages_dir, reporter, other_processes)
        run.callbacks.add(*config.trainer.callbacks, *callbacks)
        objective = run.make_objective()  # warns before hours of work, not after
        check_reward(config.objective, run.examples("train"))
        teacher, loaded, spelling = load_checked(run)
        if isinstance(teacher.model, ServerTeacher):
            stack.callback(teacher.model.close)
        known = {"student": dict(loaded.facts)} if loaded is not None else {}
        begin_run(out, config, command, {"teacher": dict(teacher.facts), **known})
        before = latest_state(out / "checkpoints")
        if drift := measure_drift(run, teacher.model):
            update_manifest(out, {"quantization": drift})

        teacher = make_teacher(run, teacher)
        if loaded is not None:
            match(config, teacher.model, loaded.model)
        student = untrained_student(run, loaded, teacher.model)
        untrained = untrained_models(config, teacher, student)
        by_teacher = config.objective.needed_targets == "teacher"
        learns_outputs = by_teacher or config.student.predistill is not None
        outputs = write_teacher_outputs(run, teacher, student) if learns_outputs else None
        del loaded  # or it would stay in memory beside what is trained of it
        student = make_student(run, student, teacher.model, outputs)
        record_stages(run, teacher, outputs, student, untrained, spelling)
        if stages_only:
            return {}

        train_objective(run, objective, teacher.model, student.model, outputs)
        return _test_best(run, teacher, before)


def _test_best(
    run: RunInputs, teacher: Made[Teacher], before: dict[str, Any] | None
) -> dict[str, Any]:
    """The results of the test; `before` is the state that training went on from."""
    RunDirectory(run.out).check_best()
    label, found, training = run.config.objective.name, {}, training_facts(run.out)
    if before is not None and before["step"] == training["steps"]:
        run.reporter.say(f"{label}: unchanged, kept")
    best = run.reload(run.out / "best", run.config.student)
    for split in run.task.splits()[2:]:
        kept = kept_results(best, split, run.out, training)
        if kept is not None:
            run.reporter.say(f"{label} on {split}: unchanged, kept")
        found[split] = kept or evaluate_model(
            best, run, teacher, split, run.out, label=label, training=training
        )
    if run.accelerator.is_main_process:
        write_card(run.out)
    return found.get("test", found)


def train_objective(
    run: RunInputs,
    objective: Objective,
    teacher: Teacher,
    student: LanguageModel,
    outputs: TeacherOutputs | None,
) -> None:
    """Train the student by the recipe's method; its best checkpoint is in `out/best`."""
    config = run.config
    if config.trainer.compile:
        student.compile_layers()
        if isinstance(teacher, LanguageModel):
            teacher.compile_layers()
    # The text that the objective learns from, beside what the student writes.
    by_teacher = config.objective.needed_targets == "teacher"
    reference = measure_reference(run, student, outputs.examples if outputs else None)
    fit(
        run,
        "objective",
        run.out,
        student=student,
        teacher=scorer(config, run.examples("train"), teacher, student),
        objective=objective,
        examples=outputs.examples if outputs and by_teacher else run.examples("train"),
        optim=config.optim,
        loop=config.trainer,
        monitors=Monitors(config.trainer.monitors, reference),
    )


def record_stages(
    run: RunInputs,
    teacher: Made[Teacher],
    outputs: TeacherOutputs | None,
    student: Made[LanguageModel],
    untrained: Mapping[str, str],
    spelling: Mapping[str, Any],
) -> None:
    """Write the stages into the manifest, once they are what a resumed run began with.

    Raises:
        RunError: a stage was made again, to something else, since the run began.
    """
    made = {"teacher": teacher, "teacher_outputs": outputs, "predistill": student}
    done = {name: it for name, it in made.items() if it is not None and it.digest is not None}
    manifest = RunDirectory(run.out).manifest()
    names, known = manifest.get("stages", {}), manifest.get("stages_sha256", {})
    for name, it in done.items():
        if names.get(name) == it.fingerprint and known.get(name, it.digest) != it.digest:
            raise RunError(
                f"{run.stages_dir / it.fingerprint}: was made again since {run.out} began, to "
                "other weights or texts; bring back the stages folder that it was begun with, or "
                "choose another --out"
            )
    folders_of_done = {name: it.fingerprint for name, it in done.items()}
    decoding, data = run.config.decoding, run.data()
    inputs = {
        "teacher": teacher.fingerprint,  # whose returns are measured
        "data": {split: data[split]["sha256"] for split in run.task.splits()[1:]},
        "max_prompt_tokens": decoding.max_prompt_tokens,
        "max_tokens": decoding.max_tokens,
    }
    folders = {
        role: Stage.open(run.stages_dir, role, {"model": model, **inputs}).fingerprint
        for role, model in untrained.items()
    }
    update_manifest(
        run.out,
        {
            "stages_dir": os.path.relpath(run.stages_dir, run.out),
            "stages": {"teacher": teacher.fingerprint, **folders_of_done, **folders},
            "stages_sha256": {name: it.digest for name, it in done.items()},
            "data": data,
            "criterion": run.metric(),
            "spelling": dict(spelling),
        },
    )


@contextmanager
def open_run(
    out: Path, config: RunConfig, resume: Resume, *, other_processes: bool = False
) -> Iterator[None]:
    """Hold `out` for a run of `config` while the block runs.

    Settings that cannot change results (description, trackers, a server's URL) may differ from the
    ones that the directory was begun with. Where the block fails before anything of worth was
    written, a directory that was made here is removed again.

    Args:
        out: the run directory.
        config: the run's settings.
        resume: whether to resume a run, or to begin one.
        other_processes: resume a run that another number of processes began.

    Raises:
        RunError: `out` holds another run or something else, is in use, or does not suit `resume`.
    """
    if not PartialState().is_main_process:
        PartialState().wait_for_everyone()
        yield
        return
    begun = out.exists()
    _check(out, config, resume, other_processes)
    try:
        lock = acquire(
            out / ".lock", f"{out}: another process is working on this run; wait or stop it"
        )
    except OSError as error:
        raise RunError(
            f"{out}: cannot be written: {error.strerror}; choose another --out"
        ) from None
    try:
        PartialState().wait_for_everyone()
        yield
    except BaseException:
        if not begun and not (out / "config.yaml").exists():
            lock.release()
            shutil.rmtree(out, ignore_errors=True)
        raise
    finally:
        lock.release()


def begin_run(
    out: Path, config: RunConfig, command: Sequence[str], models: Mapping[str, Any]
) -> None:
    """Write the resolved settings and the provenance; from here on `out` is this run's.

    Args:
        out: the run directory.
        config: the run's settings.
        command: what was typed.
        models: what is known of teacher and student as they were loaded.
    """
    if not PartialState().is_main_process:
        return
    run, path, text = RunDirectory(out), out / "config.yaml", dump_config(config)
    damage = run.settings_damage()
    if damage is not None and path.exists():
        logger.warning("%s: %s; written again", path, damage)
    manifest = run.manifest() or {
        "command": list(command),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": config.seed,
        "versions": {
            "brim": __version__,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in PACKAGES},
        },
        "platform": f"{sys.platform} {platform.machine()}",
        "sealed": True,  # all that is written from here on has its hash
    }
    # Of a resumed run what cannot change results may differ: a teacher's server may have moved.
    facts = {
        "config_hash": _identity(config),
        "config_sha256": sha256(text.encode()).hexdigest(),
        "num_processes": PartialState().num_processes,
        "models": dict(models),
    }
    # First: a resume after a kill in between finds its own settings, and writes them again.
    write_sealed_json(out / "manifest.json", {**manifest, **facts})
    atomic_write_text(path, text)


def update_manifest(out: Path, facts: Mapping[str, Any]) -> None:
    """Add facts to the provenance of a run."""
    if PartialState().is_main_process:
        write_sealed_json(out / "manifest.json", {**RunDirectory(out).manifest(), **facts})


def _check(out: Path, config: RunConfig, resume: Resume, other_processes: bool) -> None:
    if out.exists() and not out.is_dir():
        raise RunError(f"{out}: is a file; choose another --out")
    run = RunDirectory(out)
    manifest = run.manifest()
    if not manifest:
        if resume == "must":
            raise RunError(f"{out}: no run to resume; check --out, or use --resume auto")
        names = sorted(path.name for path in out.iterdir()) if out.exists() else []
        if "config.yaml" in names or "checkpoints" in names:
            raise RunError(
                f"{out}: the run's manifest.json is missing; bring it back, or choose another --out"
            )
        unknown_files = [name for name in names if not _BEFORE_THE_RUN.fullmatch(name)]
        if unknown_files:
            raise RunError(
                f"{out}: is not empty and no run directory (it holds {unknown_files[0]}); "
                "choose another --out"
            )
        return
    if resume == "never":
        raise RunError(f"{out}: holds a run already; choose another --out, or --resume auto")
    if manifest["config_hash"] != _identity(config):
        changes = changed_settings(out, config)
        if config_hash(without_incidental(RunConfig, run.settings())) != manifest["config_hash"]:
            changes = changes or "its config.yaml was edited"
        if changes is not None:
            raise RunError(
                f"{out}: holds a run with other settings ({changes}); choose another --out, or "
                "resume with the settings that it was begun with"
            )
    if not other_processes:
        check_processes(out, manifest.get("num_processes"), PartialState().num_processes)


def changed_settings(run: Path, config: RunConfig) -> str | None:
    """Say in which settings a run differs, the first few as `objective.k: 2 → 4`; None in none.

    Settings that cannot change results are left out. New ones that a run of an older version does
    not have are at their defaults.
    """
    path = run / "config.yaml"
    if not path.exists():
        return "its config.yaml is missing"
    stored: Any = None
    try:
        stored = load_config(RunConfig, path).model_dump(mode="json")
    except ConfigError:  # another version's, or edited
        with suppress(ConfigError):
            stored = parse(path.read_text(encoding="utf-8"), lambda line: f"{path}:{line}").data
    if not isinstance(stored, dict):
        return "its config.yaml was edited"
    asked = config.model_dump(mode="json")
    changes = describe_changes(
        without_incidental(RunConfig, stored), without_incidental(RunConfig, asked)
    )
    changes.sort(key=lambda change: ": not set → " in change)  # mostly new since
    shown, others = changes[:5], len(changes) - 5
    return ", ".join([*shown, f"{others} more"] if others > 0 else shown) or None


def _identity(config: RunConfig) -> str:
    return config_hash(without_incidental(RunConfig, config.model_dump(mode="json")))
