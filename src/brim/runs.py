"""Runs as functions over run directories: train, evaluate, generate.

`train` is the main job: teacher → teacher outputs → pre-distillation → the objective, each stage
resumable and skipped when its inputs are unchanged, then the test split of the best checkpoint.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator, PartialState

from brim.checkpoints import latest_state
from brim.config import load_config
from brim.errors import ConfigError, DataError, RunError
from brim.files import atomic_write_json, atomic_write_jsonl, read_json, read_jsonl
from brim.models import Decoding, LanguageModel, check_same_tokenizer, load_model
from brim.pipeline import Pipeline
from brim.progress import Reporter
from brim.rundir import Resume, begin_run, open_run, read_manifest
from brim.seeding import derive_seed
from brim.settings import RunConfig
from brim.tasks import Split, describe
from brim.types import Example


def train(
    config: RunConfig,
    out: Path,
    *,
    resume: Resume = "auto",
    stages_dir: Path | None = None,
    reporter: Reporter | None = None,
    command: Sequence[str] = (),
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

    Returns:
        What `results.json` holds.

    Raises:
        BrimError: settings, data, models or directory cannot be used; nothing was overwritten.
        NonFiniteError: training met too many non-finite steps in a row.
        Interrupted: SIGINT or SIGTERM came; the last complete step is saved.
    """
    precision = "bf16" if config.trainer.precision == "bfloat16" else "no"
    accelerator = Accelerator(mixed_precision=precision)
    if reporter is None or not accelerator.is_main_process:
        reporter = Reporter(quiet=True)
    with open_run(out, config, resume):
        pipeline = Pipeline(config, out, stages_dir or out / "stages", accelerator, reporter)
        pipeline.check()
        begin_run(out, config, command)
        pipeline.run()
        best = pipeline.place(load_model(out / "best"))
        return evaluate_model(best, pipeline, "test", out)


def evaluate_model(
    model: LanguageModel, pipeline: Pipeline, split: Split, directory: Path
) -> dict[str, Any]:
    """Decode a split greedily, score it, and write predictions and results into `directory`.

    Returns:
        What `results.json` holds for the split.
    """
    examples = pipeline.task.load(split)
    label = directory.name.split("-")[0]
    with pipeline.reporter.meter(f"{label} on {split}", len(examples)) as meter:
        evaluation = pipeline.evaluate(model, pipeline.teacher, examples, advance=meter.advance)
    results = {
        "split": split,
        "scores": {name: score.as_dict() for name, score in evaluation.scores.items()},
        "data": describe(examples),
        "num_examples": len(examples),
        "num_truncated_prompts": evaluation.num_truncated_prompts,
        "num_truncated_completions": sum(p.truncated for p in evaluation.predictions),
        "num_parameters": model.num_parameters,
        **training_facts(directory),
    }
    if PartialState().is_main_process:
        (directory / "predictions").mkdir(exist_ok=True)
        rows = (prediction.as_dict() for prediction in evaluation.predictions)
        atomic_write_jsonl(directory / "predictions" / f"{split}.jsonl", rows)
        path = directory / "results.json"
        known = read_json(path) if path.exists() else {}
        atomic_write_json(path, {**known, split: results})
    return results


def training_facts(directory: Path) -> dict[str, Any]:
    """How long a training directory was trained, and which step its best checkpoint is of."""
    state = latest_state(directory / "checkpoints")
    if state is None:
        return {}
    steps = read_jsonl(directory / "timings.jsonl")
    return {
        "steps": state["step"],
        "best_step": state["best_step"],
        "seconds": sum(row.get("time/step", 0.0) for row in steps),
    }


def evaluate_run(
    run: Path,
    *,
    split: Split = "test",
    model: str | None = None,
    out: Path | None = None,
    overrides: Sequence[str] = (),
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Evaluate a run's best checkpoint again, or another model on the run's task.

    Args:
        run: a run directory.
        split: which split.
        model: a folder or hub name to evaluate in place of the run's best checkpoint.
        out: where predictions and results go; the run directory, if the model is its own.
        overrides: settings to change, such as `evaluation.batch_size=8`.
        reporter: tells the person who watches.

    Raises:
        RunError: `run` is no run directory, or its training or teacher is missing.
        ConfigError: an override cannot be used, or another model is given without `out`.
    """
    pipeline = open_pipeline(run, overrides, reporter)
    if model is not None and out is None:
        raise ConfigError("--out: another model's results need a folder of their own; name one")
    if model is None and not (run / "best").exists():
        raise RunError(f"{run}: has no best checkpoint yet; finish it by brim train --resume must")
    student = pipeline.place(load_model(model or run / "best"))
    check_same_tokenizer(pipeline.teacher, student)
    out = out or run
    out.mkdir(parents=True, exist_ok=True)
    return evaluate_model(student, pipeline, split, out)


def evaluate_stage(run: Path, name: str, *, reporter: Reporter | None = None) -> Path:
    """Evaluate what a stage of a run made on the test split, in the stage's own folder.

    Args:
        run: a finished run directory.
        name: `teacher` or `predistill`.
        reporter: tells the person who watches.

    Returns:
        The stage's folder.
    """
    pipeline = open_pipeline(run, reporter=reporter)
    stage: str = read_manifest(run)["stages"][name]
    directory = pipeline.stages_dir / stage
    model = pipeline.place(load_model(directory / "best"))
    evaluate_model(model, pipeline, "test", directory)
    return directory


def open_pipeline(
    run: Path, overrides: Sequence[str] = (), reporter: Reporter | None = None
) -> Pipeline:
    """The finished stages of a run.

    Raises:
        RunError: `run` is no run directory.
        ConfigError: an override cannot be used.
    """
    if not (run / "config.yaml").exists():
        raise RunError(f"{run}: no run directory (it has no config.yaml); check the path")
    config = load_config(RunConfig, run / "config.yaml", overrides)
    manifest = read_manifest(run)
    stages_dir = Path(os.path.normpath(run / manifest.get("stages_dir", "stages")))
    pipeline = Pipeline(config, run, stages_dir, Accelerator(), reporter or Reporter(quiet=True))
    if config.teacher.train is not None:
        # The teacher that the run had, whatever the overrides would have made of it.
        best = stages_dir / manifest.get("stages", {}).get("teacher", "teacher") / "best"
        if not best.exists():
            raise RunError(f"{best}: the run's teacher is missing; bring back its stages folder")
        pipeline.teacher = pipeline.place(load_model(best)).requires_grad_(False)
    return pipeline


def generate(
    source: Path | str,
    prompts: Sequence[str],
    *,
    decoding: Decoding,
    max_prompt_tokens: int | None = None,
    seed: int = 0,
) -> Iterator[str]:
    """Complete prompts, in order, as batches get done.

    Args:
        source: a run directory, whose best checkpoint writes, or a model's folder or hub name.
        prompts: rendered prompts.
        decoding: how to write.
        max_prompt_tokens: longer prompts are cut.
        seed: of the sampling.
    """
    best = Path(source) / "best"
    model = load_model(best if best.exists() else source)
    model = model.to(Accelerator().device)
    for start in range(0, len(prompts), decoding.batch_size):
        rows = range(start, min(start + decoding.batch_size, len(prompts)))
        batch = model.encode(
            [Example(id=str(i), prompt=prompts[i]) for i in rows],
            max_tokens=max_prompt_tokens,
            seeds=[derive_seed(seed, "generate", i) for i in rows],
        )
        yield from model.decode(model.generate(batch.to(model.device), decoding))


def read_prompts(path: Path | None) -> list[str]:
    r"""Prompts of a text file or of standard input: one a line, `\n` for a line break in it.

    Raises:
        DataError: the file cannot be read, is not UTF-8, or holds an empty line.
    """
    where = path or "standard input"
    try:
        raw = sys.stdin.buffer.read() if path is None else path.read_bytes()
        lines = raw.decode("utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"{where}: {error.strerror}; check the path") from None
    except UnicodeDecodeError:
        raise DataError(f"{where}: is not UTF-8 text; convert it first") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise DataError(f"{where}:{number}: empty prompt; remove the line")
    return [line.replace("\\n", "\n") for line in lines]
