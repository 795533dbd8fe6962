"""How the seconds of a step grow, and how much work two processes do.

    python benchmarks/scaling.py [--docs]       # growth with rows, length, vocabulary, student
    python benchmarks/scaling.py --weak           # one process of one thread beside two

Growth: one size of the decoder-only pair of `benchmarks/random_pairs.py` is doubled over and over;
the exponent is the slope of log seconds over log size by least squares, beside the slope of the
operations of the same steps. Nothing should grow faster than its operations; what grows slower has
costs that do not depend on the size (a rollout's steps one after another). Each point is the best
of several steps.

Weak scaling: every process has 32 rows of its own and one thread, gloo between them. The work of
two is twice the tokens; the figure is how many times the tokens a second of one process they make.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

ROWS = 16
STEPS = 4
TURNS = 3  # of one process and two, weak scaling
PICTURE = Path(__file__).parents[1] / "docs" / "scaling.png"


def seconds_of_a_step(pair: object, rows: int, steps: int = STEPS) -> dict[str, float]:
    """The best of some steps after a first one, by phase."""
    from accelerate import Accelerator
    from random_pairs import collect, make_updater

    from brim.models import Decoding
    from brim.objectives import make_objective
    from brim.objectives.settings import BRIMConfig
    from brim.support.timing import phases, timed

    student, teacher = pair.build("student"), pair.build("teacher")
    objective = make_objective(BRIMConfig(k=4), Decoding(max_tokens=pair.max_tokens))
    accelerator = Accelerator(cpu=True)
    everyone = rows * accelerator.num_processes
    updater = make_updater(objective, student, teacher, accelerator, batch=everyone)
    found: list[dict[str, float]] = []
    for step in range(steps + 1):
        with phases() as seconds, timed("step"):
            updater.begin_step(step, 1e-5)
            rollout = collect(updater, pair.examples(rows, seed=step), step)
            with timed("update"):
                updater.update(rollout, step, finite=True)
        found.append(dict(seconds))
    return {name: min(one[name] for one in found[1:]) for name in found[0]}


def slope(sizes: list[float], values: list[float]) -> float:
    """Of log values over log sizes, by least squares."""
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return above / sum((a - mean_x) ** 2 for a in x)


def growth(docs: bool) -> None:
    from matplotlib.figure import Figure
    from random_pairs import PAIRS, step_operations
    from step import PHASES, fill_docs

    base = PAIRS["qwen2"]

    def wider(size: int) -> tuple[object, int]:
        return replace(base, student={**base.student, "d_model": size, "d_ff": 3 * size}), ROWS

    def longer(size: int) -> tuple[object, int]:
        return replace(base, max_tokens=size), ROWS

    def more_words(size: int) -> tuple[object, int]:
        return replace(base, vocab_size=size), ROWS

    axes: dict[str, tuple[list[int], Callable[[int], tuple[object, int]]]] = {
        "rows": ([8, 16, 32, 64], lambda size: (base, size)),
        "completion tokens": ([32, 64, 128, 256], longer),
        "vocabulary": ([8_000, 16_000, 32_000, 64_000], more_words),
        "student width": ([128, 256, 512, 1024], wider),
    }
    figure = Figure(figsize=(10, 2.8), layout="constrained")
    lines = [
        "| | from | to | rollout | teacher | update | step | operations of the step |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for number, (name, (sizes, make)) in enumerate(axes.items(), start=1):
        steps, operations = [], []
        for size in sizes:
            pair, rows = make(size)
            steps.append(seconds_of_a_step(pair, rows))
            operations.append(step_operations(pair, rows).step)
        slopes = [slope(sizes, [step[phase] for step in steps]) for phase in PHASES]
        slopes.append(slope(sizes, operations))
        cells = " | ".join(f"{value:.2f}" for value in slopes)
        lines.append(f"| {name} | {sizes[0]:,} | {sizes[-1]:,} | {cells} |")
        print(lines[-1], flush=True)
        panel = figure.add_subplot(1, len(axes), number)
        for phase in PHASES:
            panel.loglog(sizes, [step[phase] for step in steps], marker="o", ms=3, label=phase)
        whole = [steps[-1]["step"] * value / operations[-1] for value in operations]
        panel.loglog(sizes, whole, "k:", label="operations")
        panel.set_xlabel(name)
        panel.set_xticks(sizes, [f"{size:,}" for size in sizes], fontsize=7)
        panel.minorticks_off()
    figure.axes[0].set_ylabel("seconds")
    figure.axes[0].legend(fontsize=7)
    if docs:
        figure.savefig(PICTURE, dpi=120)
        fill_docs("growth", "\n".join(lines))


def weak() -> None:
    found: dict[int, list[float]] = {1: [], 2: []}
    for processes in (1, 2) * TURNS:
        launch = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
        command = [sys.executable, *(launch if processes > 1 else ()), __file__, "--process"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        output = subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment
        )
        found[processes].append(float(output.stdout.rsplit("RESULT ", 1)[1].split()[0]))
    rates = {count: statistics.median(values) for count, values in found.items()}
    ratios = [two / one for one, two in zip(found[1], found[2], strict=True)]
    shares = {1: 1.0, 2: statistics.median(ratios)}
    lines = [
        "| processes | rows | tokens/s | of one |",
        "| ---: | ---: | ---: | ---: |",
        *(
            f"| {count} | {32 * count} | {rate:,.0f} | {shares[count]:.2f} |"
            for count, rate in rates.items()
        ),
    ]
    print("\n".join(lines))


def one_process() -> None:
    from accelerate import PartialState
    from random_pairs import PAIRS

    pair = PAIRS["qwen2"]
    seconds = seconds_of_a_step(pair, 32, steps=5)["step"]
    state = PartialState()
    if state.is_main_process:
        rows = 32 * state.num_processes
        print(f"RESULT {rows * pair.max_tokens / seconds}", flush=True)
    if state.num_processes > 1:
        state.wait_for_everyone()
        time.sleep(0.2)  # see brim.cli.process.leave_processes
        state.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weak", action="store_true", help="one process beside two")
    parser.add_argument("--docs", action="store_true", help="fill the tables of the docs")
    parser.add_argument("--process", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    from brim.cli.process import flush_denormals, prepare_process

    prepare_process()
    flush_denormals(True)
    if args.process:
        one_process()
    elif args.weak:
        weak()
    else:
        growth(args.docs)


if __name__ == "__main__":
    main()
