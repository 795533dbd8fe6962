"""How far quantizing the teacher moved its Q-values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from brim.models import Teacher, q_drift, whole
from brim.runs.directory import RunDirectory
from brim.runs.inputs import RunInputs
from brim.runs.models import bits_of, load_role
from brim.runs.pairs import some_targets
from brim.types import Rollout


def measure_drift(run: RunInputs, teacher: Teacher) -> dict[str, Any]:
    """Measure, and report, how far quantizing the teacher moved its Q-values.

    Returns nothing where the manifest knows it, or it cannot be known.
    """
    settings, decoding = run.config.teacher.quantization, run.config.decoding
    bits = bits_of(teacher)
    if settings is None and bits is not None:
        run.reporter.say(
            f"teacher ({bits}): how far its Q-values moved is not known, for it is stored so"
        )
    if settings is None or settings.drift_examples == 0:
        return {}
    if "quantization" in RunDirectory(run.out).manifest() or not run.accelerator.is_main_process:
        return {}
    examples = some_targets(run.examples("train"), settings.drift_examples)
    if not examples:
        run.reporter.say(
            f"teacher ({settings}): how far its Q-values moved is not known, for the "
            "training examples have no targets"
        )
        return {}
    model, reference = whole(teacher), load_role(run, run.config.teacher)

    def rollouts() -> Iterator[Rollout]:
        batch = model.encode(examples, max_tokens=decoding.max_prompt_tokens)
        rollout = model.encode_targets(batch, max_tokens=decoding.max_tokens)
        for rows in rollout.buckets(model.batch_tokens):
            yield rollout.select(rows)

    drift = q_drift(model, reference, rollouts())
    run.reporter.say(
        f"teacher ({settings}): its Q-values moved by {drift['mean_taken']:.3g} in the "
        f"mean and {drift['max_taken']:.3g} at most (mean regret {drift['mean_regret']:.3g} of "
        f"{drift['reference_regret']:.3g}); same best token in {drift['same_best']:.1%} of "
        f"{drift['num_tokens']} states"
    )
    del reference
    run.accelerator.free_memory()
    return {"num_examples": len(examples), **drift}
