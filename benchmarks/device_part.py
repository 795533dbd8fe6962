"""What the parts of `benchmarks/device.py` share: where results go, models, one step of ours."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from random_pairs import Pair, tiny

from brim.errors import first_line
from brim.examples import Example
from brim.models import Decoding, LanguageModel
from brim.objectives import make_objective
from brim.objectives.method import MethodConfig
from brim.support.files import atomic_write_json
from brim.support.timing import phases, timed
from brim.training.loop_settings import LoopConfig, OptimConfig
from brim.training.updates import Updater
from brim.types import Rollout

GIB = 2**30

# Published shapes; the vocabularies are those of the files, unused rows included.
PAIRS = {
    "qwen2": Pair(  # Qwen2-0.5B and Qwen1.5-4B
        "qwen2",
        {"d_model": 896, "layers": 24, "heads": 14, "kv_heads": 2, "d_ff": 4864, "tied": True},
        {"d_model": 2560, "layers": 40, "heads": 20, "d_ff": 6912, "tied": False},
        vocab_size=151_936,
        prompt_tokens=256,
        max_tokens=128,
    ),
    "t5": Pair(  # T5-base and FLAN-T5-large
        "t5",
        {"d_model": 768, "layers": 12, "heads": 12, "d_ff": 3072, "tied": True},
        {"d_model": 1024, "layers": 24, "heads": 16, "d_ff": 2816, "feed_forward": "gated-gelu"},
        vocab_size=32_128,
        prompt_tokens=512,
        max_tokens=64,
    ),
}


class SkippedError(Exception):
    """A case has no meaning here, or lacks a package."""


@dataclass
class Part:
    """One part of the run, in a process of its own; each case is written as soon as it is done.

    Attributes:
        file: takes the results.
        device: a type and, of a process of several, its number.
        short: whether models are tiny.
        deadline: by `time.monotonic`; no case begins after it.
        facts: what the first part found, its `peaks` among them.
    """

    name: str
    file: Path
    device: torch.device
    short: bool
    deadline: float
    facts: Mapping[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def case(self, label: str, function: Callable[[], Mapping[str, Any]]) -> None:
        """Add a row of what the function returns, or of why there is nothing."""
        start = time.monotonic()
        try:
            if start > self.deadline:
                raise SkippedError("no time was left")
            row = dict(function())
        except (SkippedError, ImportError) as reason:
            row = {"skipped": first_line(reason)}
        except Exception as error:  # one case must not keep the others from running
            row = {"error": f"{type(error).__name__}: {first_line(error)}"}
        row = {"case": label, **row, "seconds": time.monotonic() - start}
        self.rows.append(row)
        atomic_write_json(self.file, {"rows": self.rows})
        say(f"{self.name}: {json.dumps(row, default=str)}")
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def sized(self, pair: Pair) -> Pair:
        """Return the pair, or a tiny one of its family."""
        return tiny(pair) if self.short else pair

    def peak(self, kind: str) -> float | None:
        """Return a rate of the first part's by its name, in units a second."""
        found = self.facts.get("peaks", {}).get(kind)
        return None if found is None else float(found)


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def build(pair: Pair, role: str, device: torch.device, *, bfloat16: bool = False) -> LanguageModel:
    """Return a model whose weights are drawn where they stay: 4B take a minute on a CPU."""
    with torch.device(device):
        model = pair.build(role, seed=int(role == "teacher"))
    if role == "teacher":
        model.requires_grad_(False)
    return model.to(torch.bfloat16) if bfloat16 else model


def make_accelerator(device: torch.device, precision: str) -> Accelerator:
    """Return a new view of this process; accelerate by itself allows one precision a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    mixed = {"float32": "no", "bfloat16": "bf16"}[precision]
    return Accelerator(cpu=device.type == "cpu", mixed_precision=mixed)


def examples(pair: Pair, count: int) -> list[Example]:
    """Return prompts of random words, each with a target of another length."""
    prompts, targets = pair.examples(count), pair.examples(count, seed=1)
    words = [example.prompt.split()[: pair.max_tokens - 1] for example in targets]
    return [
        replace(prompt, references=(" ".join(text[: 1 + i % len(text)]),))
        for i, (prompt, text) in enumerate(zip(prompts, words, strict=True))
    ]


@dataclass
class Stepper:
    """The trainer's updater, a method and prompts: what it takes to make steps.

    Attributes:
        rows: prompts of a step, over all processes.
        start: the student's weights; by default random ones.
        losses: of the steps so far, a token.
    """

    pair: Pair
    method: MethodConfig
    device: torch.device
    rows: int
    precision: str = "float32"
    teacher: LanguageModel | None = None
    start: Mapping[str, torch.Tensor] | None = None
    optim: OptimConfig = field(default_factory=OptimConfig)
    loop: Mapping[str, Any] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        student = build(self.pair, "student", self.device)
        if self.start is not None:
            student.load_state_dict(self.start)
        if self.teacher is None:
            self.teacher = build(self.pair, "teacher", self.device)
        decoding = Decoding(max_tokens=self.pair.max_tokens)
        settings = LoopConfig(max_steps=1, rollout_batch_size=self.rows, **self.loop)
        accelerator = make_accelerator(self.device, self.precision)
        self.updater = Updater(
            student,
            self.teacher,
            make_objective(self.method, decoding),
            self.optim,
            settings,
            accelerator,
            seed=0,
        )
        share = slice(accelerator.process_index, None, accelerator.num_processes)
        self.examples = examples(self.pair, self.rows)[share]
        self.seeds = list(range(self.rows))[share]

    def collect(self, step: int = 0) -> Rollout:
        """Return the rollout of a step: each has the same prompts, and seeds of its own."""
        self.updater.begin_step(step, self.optim.lr)
        seeds = [step * self.rows + seed for seed in self.seeds]
        batch = self.updater.student.encode(self.examples, max_tokens=None, seeds=seeds)
        return self.updater.collect(batch)[0]

    def update(self, rollout: Rollout, step: int = 0) -> None:
        """Learn from a rollout."""
        done = self.updater.update(rollout, step, finite=True)
        if not done.finite:
            raise ArithmeticError("loss or gradient is not finite")
        self.losses.append(done.sums["loss"] / max(done.num_tokens, 1.0))

    def step(self, step: int = 0) -> tuple[Rollout, dict[str, float]]:
        """Make a whole step; return its rollout and the seconds of its phases."""
        with phases() as seconds, timed("step"):
            rollout = self.collect(step)
            with timed("update"):
                self.update(rollout, step)
        return rollout, seconds

    def weights(self) -> dict[str, torch.Tensor]:
        """Return what is trained, on the CPU."""
        named = self.updater.module.named_parameters()
        return {name: weight.detach().cpu().clone() for name, weight in named}


def largest_difference(
    left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]
) -> float:
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def share_equal(left: Rollout, right: Rollout) -> float:
    """Return the share of rows with the same text."""
    texts = [
        [row[mask].tolist() for row, mask in zip(r.completion_ids.cpu(), r.mask.cpu(), strict=True)]
        for r in (left, right)
    ]
    return sum(a == b for a, b in zip(*texts, strict=True)) / len(texts[0])


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device: torch.device) -> float | None:
    """Return the most bytes of tensors since `reset_peak`; None on a CPU, which does not count."""
    return torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else None


def seconds_of(function: Callable[[], Any], repeat: int = 3) -> float:
    """Return the least seconds of a call, after one that is not counted."""
    found = []
    for _ in range(repeat + 1):
        with phases() as seconds, timed("call"):
            function()
        found.append(seconds["call"])
    return min(found[1:])
