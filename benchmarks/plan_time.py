"""The time that `brim plan --measure` and a training foresee, beside what the run takes.

    OMP_NUM_THREADS=1 python benchmarks/plan_time.py [NAME ...]          # CPU seconds
    OMP_NUM_THREADS=1 python benchmarks/plan_time.py --wall [NAME ...]   # by the clock

Two families and three methods on cmudict, with a teacher and a student that were trained for a
while before: what an untrained model writes says nothing of a run. Each case is planned with ten
measured steps, then run whole, tests of teacher and student included; ten steps into the training
its own estimate is noted too. CPU seconds of one thread do not depend on what else a machine does,
as far as its caches let them.

Prints the two estimates and what it took, and exits with 1 where one is more than 20 % away.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from brim.config.loading import load_config
from brim.plan import measure, plan
from brim.recipes import find_recipe
from brim.runs.directory import RunDirectory
from brim.runs.stage_results import evaluate_stages
from brim.runs.train import train
from brim.support import timing
from brim.support.progress import Meter, Reporter
from brim.training.settings import RunConfig

TOLERANCE = 0.20
STEPS = 10

FAMILIES = {
    "t5": "{family: t5, d_model: 48, layers: 2, heads: 4, d_ff: 96}",
    "qwen2": "{family: qwen2, d_model: 48, layers: 2, heads: 4, kv_heads: 2, d_ff: 96}",
}
METHODS = ("seqkd", "brim", "kl")
CASES = [f"{family}/{method}" for family in FAMILIES for method in METHODS]
LOOP = "{max_steps: 60, rollout_batch_size: 32, evaluate_every: 20, save_every: 30}"
SMALL = (
    "task.max_train_examples=2048", "task.max_validation_examples=128",
    "task.max_test_examples=128",
    "decoding.max_tokens=24", "student.predistill=null", "evaluation={metric: null}",
    "optim.lr=1e-3", f"trainer={LOOP}",
)  # fmt: skip


class Watch(Reporter):
    """A quiet reporter that notes what a training says is left after ten steps."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.left: float | None = None

    @contextmanager
    def meter(self, name: str, total: int) -> Iterator[Meter]:
        """See `Reporter.meter`."""

        def show(meter: Meter) -> None:
            if meter.done == STEPS and meter.known_left is not None:
                self.left = meter.known_left

        yield Meter(name, total, show=show)


def configure(method: str, *overrides: str) -> RunConfig:
    """A recipe of cmudict, small."""
    path = find_recipe(f"cmudict/{method}")
    return load_config(RunConfig, path, (*SMALL, *overrides), search=find_recipe)


def begin(family: str, out: Path) -> tuple[str, ...]:
    """Train a teacher and a student of a family; settings that load them."""
    shape = FAMILIES[family]
    config = configure(
        "seqkd",
        f"teacher.build={shape}",
        f"student.build={shape}",
        f"teacher.train.trainer={LOOP}",
        "teacher.train.trainer.max_steps=200",
        "trainer.max_steps=200",
    )
    train(config, out)
    (teacher,) = (out / "stages").glob("teacher-*/best")
    return (
        f"teacher={{path: {teacher}, build: null, tokenizer: null, train: null}}",
        f"student={{path: {out / 'best'}, build: null}}",
    )


def left_after(out: Path, step: int) -> float:
    """What a training took behind a step."""
    return sum(
        value
        for row in RunDirectory(out).log("timings.jsonl")
        for key, value in row.items()
        if row["step"] > step and key in ("time/step", "time/evaluation", "time/save")
    )


def compare(method: str, loaded: Sequence[str], folder: Path) -> tuple[float, float, float, float]:
    """Seconds planned and taken; of the training behind ten steps, estimated and taken."""
    config, watch = configure(method, *loaded), Watch()
    found = measure(plan(config), config, steps=STEPS).measured
    assert found is not None
    with timing.phases() as seconds, timing.timed("run"):
        train(config, folder, reporter=watch)
        evaluate_stages(folder)
    assert watch.left is not None
    return 3600 * found.hours, seconds["run"], watch.left, left_after(folder, STEPS)


def main() -> int:
    """Compare each case, and say whether all estimates are near."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--wall", action="store_true", help="by the clock, not by CPU seconds")
    options = parser.parse_args()
    if unknown := {*options.names} - {*CASES}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    if not options.wall:
        timing._now = time.process_time
    worst = 0.0
    print(
        f"{'case':14} {'plan':>8} {'took':>8} {'ratio':>6}   {'at ten':>8} {'took':>8} {'ratio':>6}"
    )
    with tempfile.TemporaryDirectory() as folder:
        loaded: dict[str, tuple[str, ...]] = {}
        for name in options.names or CASES:
            family, method = name.split("/")
            if family not in loaded:
                loaded[family] = begin(family, Path(folder, family))
            numbers = compare(method, loaded[family], Path(folder, family + "-" + method))
            planned, took, estimated, followed = numbers
            ratios = planned / took, estimated / followed
            worst = max(worst, *(abs(ratio - 1) for ratio in ratios))
            print(
                f"{name:14} {planned:8.1f} {took:8.1f} {ratios[0]:6.2f}   "
                f"{estimated:8.1f} {followed:8.1f} {ratios[1]:6.2f}",
                flush=True,
            )
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
