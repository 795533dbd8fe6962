"""A model tested on a split: predictions and results, in files that a stop does not spoil."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState

from brim._version import __version__
from brim.errors import ConfigError, RunError
from brim.examples import Example
from brim.models import LanguageModel, Teacher, load_model, whole
from brim.models.loading import fingerprint_model
from brim.runs.directory import RunDirectory
from brim.runs.fit import evaluation_settings
from brim.runs.inputs import Made, RunInputs, reopen
from brim.runs.models import check_known, load_student
from brim.runs.pairs import match, scorer
from brim.runs.stages import find_teacher, find_trained, untrained_student
from brim.runs.tested import StageName, results_folder
from brim.support.files import disk_errors, hold, read_json, write_sealed_json
from brim.support.progress import Reporter
from brim.support.seals import MANIFEST, is_sealed, record_of
from brim.tasks import Split, describe
from brim.training.checkpoints import latest_state
from brim.training.evaluation import REGRET_DECIMALS, evaluate
from brim.training.partial import PartialResults
from brim.training.predictions import EvaluationSettings

logger = logging.getLogger(__name__)

_COUNTED = ("num_truncated_prompts", "num_truncated_completions", "mean_regrets")
# What results of all splits in one folder share.
_OF_A_FOLDER = ("model", "decoding", "seed")
_OF_SAMPLES = {"strategy", "temperature", "top_k", "top_p"}


def evaluate_model(
    model: Teacher,
    run: RunInputs,
    teacher: Made[Teacher],
    split: Split,
    directory: Path,
    *,
    label: str,
    training: Mapping[str, Any],
    foreign: bool = False,
) -> dict[str, Any]:
    """Decode a split, score it, and write predictions and results into `directory`.

    Finished blocks are kept in a hidden file beside the predictions until both are written: the
    same evaluation, stopped and begun again, resumes from them and ends in the same files.

    Args:
        model: the writer.
        run: whose task and settings these are.
        teacher: scores the texts.
        split: which split.
        directory: where the files go.
        label: of the model, for progress.
        training: the model's `training_facts`, taken before it was read: it may be trained on.
        foreign: the folder is not the model's own; what it holds of others is not overwritten.

    Raises:
        RunError: `results.json` is damaged, or of another model or other settings.
    """
    examples, settings, config = run.examples(split), evaluation_settings(run), run.config
    inputs = _inputs(run, model, teacher, examples, settings)
    facts = {
        "data": describe(examples),
        **(_returns_of(teacher) if config.evaluation.returns else {}),
        "model": inputs["model"],
        "seed": config.seed,
        **_decodings(run, settings),
    }
    known = RunDirectory(directory).splits(split)
    if foreign:
        _check_foreign(directory, known, split, facts)
    partial = PartialResults(_partial(directory, split), inputs)
    with partial.opened():
        with run.reporter.meter(f"{label} on {split}", len(examples)) as meter:
            evaluation = evaluate(
                model,
                examples,
                settings,
                teacher=_scorer(run, model, teacher),
                num_resamples=config.evaluation.num_resamples,
                confidence=config.evaluation.confidence,
                partial=partial,
                advance=meter.advance,
            )
        results = {
            "split": split,
            "scores": {name: score.as_dict() for name, score in evaluation.scores.items()},
            **facts,
            "num_examples": len(examples),
            **{name: getattr(evaluation, name) for name in _COUNTED},
            **({} if model.num_parameters is None else {"num_parameters": model.num_parameters}),
            **training,
        }
        if PartialState().is_main_process:
            path = RunDirectory(directory).predictions_path(split)
            partial.publish(path)
            results["predictions"] = record_of(path)
            add_results(directory, split, results)
        partial.remove()
    return results


def _scorer(run: RunInputs, model: Teacher, teacher: Made[Teacher]) -> Teacher | None:
    """What scores the model's texts; a teacher reads its own as the tokens that it wrote."""
    if not run.config.evaluation.returns:
        return None
    if model is teacher.model:
        return teacher.model
    return scorer(run.config, run.examples("train"), teacher.model, whole(model))


def add_results(directory: Path, split: Split, results: Mapping[str, Any]) -> None:
    """Put the results of a split into `results.json`, beside those of the other splits.

    Other processes that do so for another split wait their turn.

    Raises:
        RunError: the file is damaged or cannot be written.
    """
    path = directory / "results.json"
    # Not the directory's own lock: whoever trains in it holds that while stages are tested.
    with disk_errors(path), hold(directory / "predictions" / ".results.lock"):
        write_sealed_json(path, {**RunDirectory(directory).splits(split), split: results})


def _decodings(run: RunInputs, settings: EvaluationSettings) -> dict[str, Any]:
    """How texts are written, for the results: those that are scored, and those that are sampled."""
    decoding, sampling = run.config.decoding, settings.sampling
    limits = {name: getattr(decoding, name) for name in ("max_tokens", "max_prompt_tokens")}
    return {
        "decoding": {**run.config.evaluation.decoding.describe(), **limits},
        "sampling": sampling and sampling.model_dump(include=_OF_SAMPLES),
    }


def _inputs(
    run: RunInputs,
    model: Teacher,
    teacher: Made[Teacher],
    examples: Sequence[Example],
    settings: EvaluationSettings,
) -> dict[str, Any]:
    """All that the predictions depend on: partial results of anything else are of no use."""
    own, scores = run.config.teacher, run.config.evaluation.returns
    return {
        "version": __version__,
        "data": describe(examples)["sha256"],
        "model": teacher.fingerprint if model is teacher.model else fingerprint_model(whole(model)),
        **(_returns_of(teacher) if scores else {}),
        "passes": [own.device, own.batch_tokens] if scores else None,
        **asdict(settings),
        "decoding": settings.decoding.describe(),
        "sampling": settings.sampling and settings.sampling.describe(),
        "block": settings.block,
        "regret_decimals": REGRET_DECIMALS,
        "device": run.accelerator.device.type,
        "num_processes": run.accelerator.num_processes,
    }


def _returns_of(teacher: Made[Teacher]) -> dict[str, str]:
    """Who scores, for the results, and of what where it is not plain logits."""
    centering = teacher.model.returns_centering
    centered = {} if centering == "none" else {"return_centering": centering}
    return {"teacher": teacher.fingerprint, **centered}


def kept_results(
    model: LanguageModel, split: Split, directory: Path, training: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The results of a run's split if they are of this model, at this point of its training."""
    found = RunDirectory(directory)
    known: dict[str, Any] = found.splits(split).get(split, {})
    same = all(known.get(key) == value for key, value in training.items())
    if not same or not found.predictions_path(split).exists():
        return None
    try:
        found.check_predictions(split, known)
    except RunError as error:
        logger.warning("%s; doing so", error)
        return None
    if known.get("model") != fingerprint_model(model):
        return None
    PartialResults(_partial(directory, split), {}).remove()  # a kill may have come just before that
    return known


def _partial(directory: Path, split: Split) -> Path:
    """Where blocks are kept until predictions and results are written."""
    return directory / "predictions" / f".{split}.partial.jsonl"


def _check_foreign(
    directory: Path, known: Mapping[str, Any], split: Split, facts: Mapping[str, Any]
) -> None:
    """Results of one folder are of one model, decoded in one way, and a split's of one data."""
    for name, results in known.items():
        same = {key: results.get(key, facts[key]) == facts[key] for key in _OF_A_FOLDER}
        same["data"] = name != split or results.get("data", {}).get("sha256") in (
            None, facts["data"]["sha256"],
        )  # fmt: skip
        other = [key for key, equal in same.items() if not equal]
        if other:
            raise RunError(
                f"{directory}: holds {name} results of another {' and '.join(other)}, which these "
                "would replace or stand beside; name another --out"
            )


def training_facts(directory: Path) -> dict[str, Any]:
    """How long a training directory was trained, and which step its best checkpoint is of.

    Of a run also how many steps are planned; where it has no checkpoint (yet, or any more), `steps`
    is the last one that was evaluated. `best_step` is what `best/` says: after a kill it may be
    ahead of the newest checkpoint.
    """
    state, best, best_step = latest_state(directory / "checkpoints"), directory / "best", None
    planned = RunDirectory(directory).planned_steps()
    plan = {} if planned is None else {"planned_steps": planned}
    if state is None:
        if not plan:
            return {}
        state = {"step": _last_evaluated(directory), "best_step": None}
    with suppress(RunError):  # of a damaged one, which is refused where it is read
        best_step = read_json(best / MANIFEST).get("step") if is_sealed(best) else None
    steps = RunDirectory(directory).log("timings.jsonl")
    return {
        **plan,
        "steps": state["step"],
        "best_step": state["best_step"] if best_step is None else best_step,
        **({"stopped": state["stopped"]} if state.get("stopped") else {}),
        "seconds": sum(row.get("time/step", 0.0) for row in steps),
    }


def _last_evaluated(directory: Path) -> int:
    step = 0
    with suppress(RunError):  # a line that is being written
        for row in RunDirectory(directory).log("metrics.jsonl"):
            if any(key.startswith("eval/") for key in row):
                step = row["step"]
    return step


def evaluate_run(
    run: Path,
    *,
    split: Split = "test",
    model: str | None = None,
    stage: StageName | None = None,
    out: Path | None = None,
    overrides: Sequence[str] = (),
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Evaluate a run's best checkpoint again, a model that it began with, or another model.

    Args:
        run: a run directory.
        split: which split.
        stage: evaluate this model of the run, in the stage's own folder; see `evaluate_stage`.
        model: a folder or hub name to evaluate in place of the run's best checkpoint.
        out: where predictions and results go; the run directory, if the model is its own.
        overrides: settings to change, such as `evaluation.decoding.strategy=beam`.
        reporter: shows progress.

    Raises:
        RunError: `run` is no run directory, its training or teacher is missing, or files would be
            overwritten that are of other data, another model or other settings.
        ConfigError: an override cannot be used, another model is given without `out`, or a stage
            with any of these.
    """
    if stage is not None:
        if model is not None or out is not None or overrides:
            raise ConfigError(
                "--stage: is evaluated as the run says, in the stage's folder; leave out --model, "
                "--out and settings, or give the stage's best/ as --model"
            )
        directory = evaluate_stage(run, stage, split=split, reporter=reporter)
        results: dict[str, Any] = RunDirectory(directory).splits(split)[split]
        return results
    opened = reopen(run, overrides, reporter, best=True)
    own = out is None or out.resolve() == run.resolve()
    if own and (model is not None or opened.other_settings):
        raise ConfigError(
            "--out: results of another model or of other settings need a folder of their own; "
            "name one"
        )
    if out is not None and not own and (out / "manifest.json").exists():
        raise RunError(
            f"{out}: holds a run, whose results would be overwritten; name another --out"
        )
    teacher = find_teacher(opened)
    if model is None:
        training = _facts_of_best(run)
        student = opened.reload(run / "best", opened.config.student)
    else:
        training, student = {}, opened.place(load_model(model))
    _check_fits(opened, student, teacher, split, own=own)
    label, directory = model or run.name, out or run
    return evaluate_model(
        student, opened, teacher, split, directory, label=label, training=training, foreign=not own
    )


def evaluate_stage(
    run: Path,
    name: StageName,
    *,
    split: Split = "test",
    out: Path | None = None,
    reporter: Reporter | None = None,
) -> Path:
    """Evaluate the teacher, the student as it was loaded, or the pre-distilled one of a run.

    Runs that share the model share its results, which are in a folder of the stages.

    Args:
        run: a run directory that has its stages, whether its own training has ended or not.
        name: which model.
        split: which split.
        out: where results go; by default the stage's own folder, or one beside it where that holds
            results of other data or decoding than the run's own.
        reporter: shows progress.

    Returns:
        That folder.

    Raises:
        RunError: `run` is no run directory, has no such model, or the data is not its own.
    """
    opened = reopen(run, reporter=reporter)
    config = opened.config
    folder = RunDirectory(run).manifest().get("stages", {}).get(name, name)
    directory = Path(opened.stages_dir, folder)
    is_loaded = name == "student" or (name == "teacher" and config.teacher.train is None)
    teacher = find_teacher(opened)
    if not (directory if is_loaded else directory / "best").exists():
        made = "loaded" if is_loaded else "trained"
        raise RunError(
            f"{run}: has {made} no {name} of its own, or it is gone; evaluate any model by --model "
            "NAME --out FOLDER"
        )
    match name:
        case "teacher":
            model: Teacher = teacher.model
        case "student":
            loaded = load_student(opened, teacher.model)
            if loaded is not None:
                check_known(opened, "student", loaded)
            model = untrained_student(opened, loaded, teacher.model).model
        case "predistill":
            model = find_trained(opened, name).model
    _check_fits(opened, model, teacher, split, own=True)
    training = training_facts(directory)
    out = out or results_folder(directory, RunDirectory(run).find_results(split), split)
    evaluate_model(model, opened, teacher, split, out, label=name, training=training)
    return out


def _facts_of_best(run: Path) -> dict[str, Any]:
    """`training_facts` of a run's best checkpoint, with a warning where training had not ended."""
    RunDirectory(run).check_best()
    training = training_facts(run)
    stop = RunDirectory(run).stopped_at(training)
    if stop:
        logger.warning(
            "%s: its training has not ended (%s); the results say so, and no sweep or report "
            "counts them",
            *(run, stop),
        )
    return training


def _check_fits(
    run: RunInputs, model: Teacher, teacher: Made[Teacher], split: Split, *, own: bool
) -> None:
    """Check a model and a split before hours of work; of results of its own also the data."""
    match(run.config, teacher.model, model)
    run.check_rows([split], model, teacher.model)
    known = RunDirectory(run.out).manifest().get("data", {}).get(split)
    if own and known is not None and known["sha256"] != describe(run.used(split))["sha256"]:
        raise RunError(
            f"{run.out}: the {split} split is not what this run was begun with (see "
            "manifest.json), and its results would be overwritten; bring the data back, or "
            "evaluate by --out FOLDER"
        )
