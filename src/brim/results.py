"""A model tested on a split: predictions and results, in files that a stop does not spoil."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState
from filelock import FileLock

from brim._version import __version__
from brim.checkpoints import latest_state
from brim.files import atomic_write_json, disk_errors, read_json, read_jsonl
from brim.journal import Journal
from brim.models import LanguageModel
from brim.pipeline import Pipeline
from brim.stages import fingerprint_model
from brim.tasks import Split, describe
from brim.types import Example


def evaluate_model(
    model: LanguageModel, pipeline: Pipeline, split: Split, directory: Path, *, label: str
) -> dict[str, Any]:
    """Decode a split, score it, and write predictions and results into `directory`.

    Finished blocks are kept in a hidden file beside the predictions until both are written: the
    same evaluation, stopped and begun again, goes on from them and ends in the same files.

    Returns:
        What `results.json` holds for the split.
    """
    examples = pipeline.task.load(split)
    folder = directory / "predictions"
    path = folder / f".{split}.partial.jsonl"
    journal = Journal(path, _inputs(pipeline, model, examples))
    with (
        journal.opened(),
        _a_word_on_stops(),
        pipeline.reporter.meter(f"{label} on {split}", len(examples)) as meter,
    ):
        evaluation = pipeline.evaluate(
            model, pipeline.teacher, examples, journal=journal, advance=meter.advance
        )
        limits = pipeline.config.decoding
        results = {
            "split": split,
            "scores": {name: score.as_dict() for name, score in evaluation.scores.items()},
            "data": describe(examples),
            "decoding": {
                **pipeline.config.evaluation.decoding.describe(),
                "max_tokens": limits.max_tokens,
                "max_prompt_tokens": limits.max_prompt_tokens,
            },
            "num_examples": len(examples),
            "num_truncated_prompts": evaluation.num_truncated_prompts,
            "num_truncated_completions": evaluation.num_truncated_completions,
            "num_parameters": model.num_parameters,
            **training_facts(directory),
        }
        if PartialState().is_main_process:
            journal.publish(folder / f"{split}.jsonl")
            add_results(directory, split, results)
        journal.remove()
    return results


def add_results(directory: Path, split: Split, results: Mapping[str, Any]) -> None:
    """Put the results of a split into `results.json`, beside those of the other splits.

    Other processes that do so for another split wait their turn.

    Raises:
        RunError: the file is damaged or cannot be written.
    """
    path = directory / "results.json"
    # Not the directory's own lock: whoever trains in it holds that while stages are tested.
    with disk_errors(path), FileLock(directory / "predictions" / ".results.lock"):
        known = read_json(path) if path.exists() else {}
        atomic_write_json(path, {**known, split: results})


def _inputs(
    pipeline: Pipeline, model: LanguageModel, examples: Sequence[Example]
) -> dict[str, Any]:
    """All that the predictions depend on: a journal of anything else is of no use."""
    config, procedure = pipeline.config, pipeline.procedure
    teacher = pipeline.teacher  # which enters itself among the inputs
    return {
        "version": __version__,
        "data": describe(examples)["sha256"],
        "model": pipeline.inputs["teacher"] if model is teacher else fingerprint_model(model),
        "teacher": [pipeline.inputs["teacher"], config.teacher.device, config.teacher.batch_tokens]
        if config.evaluation.returns
        else None,
        **asdict(procedure),
        "block": procedure.block,
        "device": pipeline.accelerator.device.type,
        "num_processes": pipeline.accelerator.num_processes,
    }


@contextmanager
def _a_word_on_stops() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "stopped; what was finished is kept, and the same command goes on"
        ) from None


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
