"""Runs as functions over run directories: train, evaluate, generate.

`train` is the main job: teacher → teacher outputs → pre-distillation → the objective, each stage
resumable and skipped when its inputs are unchanged, then the test split of the best checkpoint.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from brim.checkpoints import latest_state
from brim.config import load_config
from brim.errors import ConfigError, DataError, RunError
from brim.files import read_json
from brim.models import Decoding, load_model, share_vocabulary
from brim.pipeline import Pipeline
from brim.process import make_accelerator
from brim.progress import Reporter
from brim.results import evaluate_model, kept_results, training_facts
from brim.rundir import Resume, begin_run, check_best, open_run
from brim.seeding import derive_seed
from brim.settings import RunConfig
from brim.stages import check_stage
from brim.tasks import Split, describe
from brim.types import Example
from brim.written import check_run, read_manifest, settings_text, stopped_at

logger = logging.getLogger(__name__)

StageName = Literal["teacher", "student", "predistill"]


def train(
    config: RunConfig,
    out: Path,
    *,
    resume: Resume = "auto",
    stages_dir: Path | None = None,
    reporter: Reporter | None = None,
    command: Sequence[str] = (),
    other_processes: bool = False,
) -> dict[str, Any]:
    """Distil, and test the best checkpoint.

    Args:
        config: the run's settings.
        out: the run directory; made, or gone on with.
        resume: `auto` goes on with what is there, `must` refuses to begin, `never` to go on.
        stages_dir: where teacher, teacher outputs and pre-distilled students are kept; runs that
            share it share them. `out/stages` by default.
        reporter: tells the person who watches.
        command: what was typed, for the provenance.
        other_processes: go on with what another number of processes began.

    Returns:
        What `results.json` holds.

    Raises:
        BrimError: settings, data, models or directory cannot be used; nothing was overwritten.
        NonFiniteError: training met too many non-finite steps in a row.
        Interrupted: SIGINT or SIGTERM came; the last complete step is saved.
    """
    accelerator = make_accelerator(config.trainer.precision)
    if reporter is None or not accelerator.is_main_process:
        reporter = Reporter(quiet=True)
    with open_run(out, config, resume, other_processes=other_processes):
        pipeline = Pipeline(config, out, accelerator, reporter, stages_dir or out / "stages")
        pipeline.other_processes = other_processes
        pipeline.check()
        begin_run(out, config, command, pipeline.models)
        before = latest_state(out / "checkpoints")
        pipeline.run()
        training, label = training_facts(out), config.objective.name
        if before is not None and before["step"] == training["steps"]:
            reporter.say(f"{label}: unchanged, kept")
        check_best(out)
        best = pipeline.reload(out / "best", config.student)
        kept = kept_results(best, "test", out, training)
        if kept is not None:
            reporter.say(f"{label} on test: unchanged, kept")
            return kept
        return evaluate_model(best, pipeline, "test", out, label=label, training=training)


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
        reporter: tells the person who watches.

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
        results: dict[str, Any] = read_json(directory / "results.json")[split]
        return results
    pipeline = open_pipeline(run, overrides, reporter)
    own = out is None or out.resolve() == run.resolve()
    if own and (model is not None or overrides):
        raise ConfigError(
            "--out: results of another model or of other settings need a folder of their own; "
            "name one"
        )
    if out is not None and not own and (out / "manifest.json").exists():
        raise RunError(
            f"{out}: holds a run, whose results would be overwritten; name another --out"
        )
    if model is None:
        check_best(run)
    training: dict[str, Any] = {}
    if model is None:
        training = training_facts(run)
        stop = stopped_at(run, training)
        if stop:
            logger.warning(
                "%s: its training has not ended (%s); the results say so, and no sweep or report "
                "counts them",
                run,
                stop,
            )
        student = pipeline.reload(run / "best", pipeline.config.student)
    else:
        student = pipeline.place(load_model(model))
    share_vocabulary(pipeline.teacher, student)
    pipeline.check_rows([split], student, pipeline.teacher)
    if own:
        _check_data(run, pipeline, split)
    return evaluate_model(
        student,
        pipeline,
        split,
        out or run,
        label=model or run.name,
        training=training,
        guest=not own,
    )


def evaluate_stage(
    run: Path, name: StageName, *, split: Split = "test", reporter: Reporter | None = None
) -> Path:
    """Evaluate the teacher, the student as it was loaded, or the pre-distilled one of a run.

    Runs that share the model share its results, which are in a folder of the stages.

    Args:
        run: a run directory that has its stages, whether its own training has ended or not.
        name: which model.
        split: which split.
        reporter: tells the person who watches.

    Returns:
        The stage's folder.

    Raises:
        RunError: `run` is no run directory, has no such model, or the data is not its own.
    """
    pipeline = open_pipeline(run, reporter=reporter)
    config, manifest = pipeline.config, read_manifest(run)
    directory = Path(pipeline.stages_dir, manifest.get("stages", {}).get(name, name))
    is_loaded = name == "student" or (name == "teacher" and config.teacher.train is None)
    if not (directory if is_loaded else directory / "best").exists():
        made = "loaded" if is_loaded else "trained"
        raise RunError(
            f"{run}: has {made} no {name} of its own, or it is gone; evaluate any model by --model "
            "NAME --out FOLDER"
        )
    if not is_loaded:
        check_stage(directory, manifest.get("stages_sha256", {}).get(name))
    match name:
        case "teacher":
            model = pipeline.teacher
        case "student":
            model = pipeline.initial_student
        case "predistill":
            model = pipeline.reload(directory / "best", config.student, verified=True)
    pipeline.check_models()
    share_vocabulary(pipeline.teacher, model)
    pipeline.check_rows([split], model, pipeline.teacher)
    _check_data(run, pipeline, split)
    training = training_facts(directory)
    evaluate_model(model, pipeline, split, directory, label=name, training=training)
    return directory


def _check_data(run: Path, pipeline: Pipeline, split: Split) -> None:
    """Meet a split that is not what the run was begun with: the run's results are of that."""
    known = read_manifest(run).get("data", {}).get(split)
    # As the manifest has it: of validation so much as training decodes.
    examples = pipeline.validation_examples if split == "validation" else pipeline.examples(split)
    if known is not None and known["sha256"] != describe(examples)["sha256"]:
        raise RunError(
            f"{run}: the {split} split is not what this run was begun with (see manifest.json), "
            "and its results would be overwritten; bring the data back, or evaluate by --out FOLDER"
        )


def open_pipeline(
    run: Path, overrides: Sequence[str] = (), reporter: Reporter | None = None
) -> Pipeline:
    """The finished stages of a run.

    Raises:
        RunError: `run` is no run directory, or its trained teacher is missing.
        ConfigError: an override cannot be used.
    """
    check_run(run)
    settings_text(run)  # compared with its hash
    config = load_config(RunConfig, run / "config.yaml", overrides)
    manifest = read_manifest(run)
    stages_dir = Path(os.path.normpath(run / manifest.get("stages_dir", "stages")))
    pipeline = Pipeline(
        config, run, make_accelerator(), reporter or Reporter(quiet=True), stages_dir
    )
    # Another seed is another teacher where that is built.
    pipeline.other_teacher = any(re.match(r"(teacher|seed)\b", change) for change in overrides)
    if config.teacher.train is not None:
        # The teacher that the run had, whatever the overrides would have made of it.
        stage = manifest.get("stages", {}).get("teacher")
        if stage is None:
            raise RunError(
                f"{run}: was stopped before it had its teacher and all other stages; go on with it "
                "by the brim train or brim sweep that began it"
            )
        best = stages_dir / stage / "best"
        if not best.exists():
            raise RunError(f"{best}: the run's teacher is missing; bring back its stages folder")
        check_stage(best.parent, manifest.get("stages_sha256", {}).get("teacher"))
        pipeline.inputs["teacher"] = stage
        pipeline.teacher = pipeline.as_teacher(pipeline.reload(best, config.teacher, verified=True))
    return pipeline


def generate(
    source: Path | str,
    prompts: Sequence[str],
    *,
    decoding: Decoding,
    seed: int = 0,
    block: int = 32,
) -> Iterator[str]:
    """Complete prompts, in order, as batches get done.

    Args:
        source: a run directory, whose best checkpoint writes, or a model's folder or hub name.
        prompts: rendered prompts.
        decoding: how to write.
        seed: of the sampling.
        block: prompts that are completed before the first of them is given out.

    Raises:
        RunError: the run has no best checkpoint, or a damaged one.
    """
    run = Path(source)
    if (run / "config.yaml").exists():
        check_best(run)
    model = load_model(run / "best" if (run / "best").exists() else source)
    model = model.to(make_accelerator().device)
    for start in range(0, len(prompts), block):
        rows = range(start, min(start + block, len(prompts)))
        batch = model.encode(
            [Example(id=str(i), prompt=prompts[i]) for i in rows],
            max_tokens=None,
            seeds=[derive_seed(seed, "generate", i) for i in rows],
        )
        yield from model.decode(model.generate(batch.to(model.device), decoding))


_ESCAPE = re.compile(r"\\([n\\])")


def read_prompts(path: Path | None) -> list[str]:
    r"""Prompts of a text file or of standard input, one a line; `\n` is a line break, `\\` a `\`.

    Raises:
        DataError: the file cannot be read, is not UTF-8, or holds an empty line.
    """
    where = path or "standard input"
    try:
        raw = sys.stdin.buffer.read() if path is None else path.read_bytes()
        text = raw.decode("utf-8-sig").removesuffix("\n")
    except OSError as error:
        raise DataError(f"{where}: {error.strerror}; check the path") from None
    except UnicodeDecodeError:
        raise DataError(f"{where}: is not UTF-8 text; convert it first") from None
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise DataError(f"{where}:{number}: empty prompt; write one prompt a line")
    return [_ESCAPE.sub(lambda match: "\n" if match[1] == "n" else "\\", line) for line in lines]


def escape_line(text: str) -> str:
    r"""A text on one line, as `read_prompts` reads it back."""
    return text.replace("\\", "\\\\").replace("\n", "\\n")
