"""The part of `benchmarks/device.py` that measures memory beside `brim plan`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from device_part import GIB, PAIRS, Part, Stepper, build
from random_pairs import Pair

from brim.models import LanguageModel
from brim.models.scratch import build_without_tokenizer
from brim.objectives.divergence_settings import JSConfig
from brim.objectives.method import MethodConfig
from brim.objectives.settings import AnchoredConfig, BRIMConfig, PPOLLMRConfig
from brim.plan.memory import Learner, Room, Sizes, phases
from brim.plan.models import ModelShape, Size
from brim.plan.peaks import CostCounter

MEMORY_CASES: dict[str, tuple[MethodConfig, str, bool]] = {
    "brim": (BRIMConfig(k=4), "float32", False),
    "brim, bfloat16": (BRIMConfig(k=4), "bfloat16", False),
    "brim, bfloat16, checkpointing": (BRIMConfig(k=4), "bfloat16", True),
    "anchored, bfloat16": (AnchoredConfig(), "bfloat16", False),
    "js, bfloat16": (JSConfig(), "bfloat16", False),
    "ppo_llmr, bfloat16": (PPOLLMRConfig(critic="separate"), "bfloat16", False),
}

SHORT_MEMORY = {"t5": ("brim",), "qwen2": ("brim, bfloat16, checkpointing", "anchored, bfloat16")}


def memory(part: Part) -> None:
    """Peaks of a step beside what `brim plan` says of the same shapes."""
    pairs = {
        "t5": PAIRS["t5"],
        "qwen2": replace(PAIRS["qwen2"], teacher=PAIRS["qwen2"].student),
    }
    for family, pair in pairs.items():
        # It takes seconds; on a CPU what is counted must be made while the counter is on.
        sized = part.sized(pair)
        teacher = build(sized, "teacher", part.device) if part.device.type == "cuda" else None
        for label in SHORT_MEMORY[family] if part.short else MEMORY_CASES:
            part.case(f"{label}, {family}", partial(compare_memory, part, sized, label, teacher))


def compare_memory(
    part: Part, pair: Pair, label: str, teacher: LanguageModel | None
) -> Mapping[str, Any]:
    method, precision, checkpointing = MEMORY_CASES[label]
    rows, budget = (8, 64) if part.short else (64, 8192)
    loop = {"micro_batch_tokens": budget, "gradient_checkpointing": checkpointing}
    with measured_bytes(part.device) as measure:
        stepper = Stepper(pair, method, part.device, rows, precision, teacher, loop=loop)
        stepper.step(0)  # from here on there are moments
        measure()
        rollout = stepper.collect(1)
        collect = measure()
        stepper.update(rollout, 1)
        update = measure()
    planned = plan_phases(pair, method, precision, rows, budget, checkpointing)
    written = max(value for name, value in planned.items() if name in ("rollout", "teacher"))
    return {
        "collect_planned_gib": (reading := max(written, planned.get("student", 0))) / GIB,
        "collect_gib": collect / GIB,
        "collect_ratio": reading / collect,
        "update_planned_gib": planned["update"] / GIB,
        "update_gib": update / GIB,
        "update_ratio": planned["update"] / update,
    }


@contextmanager
def measured_bytes(device: torch.device) -> Iterator[Callable[[], int]]:
    """Give a function: the most bytes of tensors at once since it was last called.

    On a CPU they are counted; CUDA's allocator counts itself.
    """
    if device.type == "cuda":

        def peak() -> int:
            torch.cuda.synchronize(device)
            found = torch.cuda.max_memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            return found

        yield peak
        return
    with CostCounter() as counter:

        def counted() -> int:
            found, counter.peak = counter.peak, counter.now
            return found

        yield counted


def shape_of(pair: Pair, role: str, *, bfloat16: bool = False) -> ModelShape:
    sizes = pair.student if role == "student" else pair.teacher
    with torch.device("meta"):
        description = {"family": pair.family, "dropout": 0.0, **sizes}
        model = build_without_tokenizer(description, vocab_size=pair.vocab_size)
    return ModelShape(role, model.to(torch.bfloat16) if bfloat16 else model)


def plan_phases(
    pair: Pair, method: MethodConfig, precision: str, rows: int, budget: int, checkpointing: bool
) -> dict[str, int]:
    """Bytes of each phase, as `brim plan` counts them."""
    row = Size(1, pair.prompt_tokens, pair.max_tokens)
    fitting = replace(row, rows=max(1, budget // (row.num_prompt_tokens + row.num_tokens)))
    scored = replace(row, rows=max(1, 8192 // (row.num_prompt_tokens + row.num_tokens)))
    written = replace(row, rows=max(1, 32768 // (row.num_prompt_tokens + row.num_tokens)))
    passes = method.passes()
    learner = Learner(
        shape_of(pair, "student"),
        passes,
        None,
        fitting.at_most(-(-rows // passes.minibatches)),
        checkpointing=checkpointing,
    )
    autocast = torch.bfloat16 if precision == "bfloat16" else None
    room = Room(learner, shape_of(pair, "teacher"), 0, autocast)
    sizes = Sizes(written=written, scored=scored, reread=fitting, evaluated=row)
    found = phases(room, rows * passes.generations, sizes, returns=False)
    return {name: peak.total for name, peak in found.items()}
