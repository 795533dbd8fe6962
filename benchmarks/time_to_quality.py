"""Seconds until a student is good, by TRL's on-policy distillation and by ours, from one start.

    python benchmarks/time_to_quality.py                  # 35 runs of 40 s; finished ones are kept
    python benchmarks/time_to_quality.py --methods trl    # so it can be made in pieces
    python benchmarks/time_to_quality.py --methods llmr+objective.baseline=time_mean anchored

Letters to phonemes (cmudict) by Llama-type models from scratch. One teacher and one pre-distilled
student are made first; every run starts from the same weights and lasts as many seconds.

- The clock is the CPU time of this process, which has one thread: other work on the machine does
  not count. It stops while the student is evaluated. Wall-clock time is kept beside it.
- Every step has the same prompts in the same order for all, as many completions, at the same
  temperature and length limit. Learning rates are constant after ten steps of linear warm-up;
  AdamW without weight decay; gradients are clipped at 1; float32. Denormal numbers are zero.
- Each method has its own learning rate: of RATES the one with the highest exact match, on
  average over the clock, in runs of another seed than those that are shown. (Not the expected
  return: at high rates texts of two tokens have a high one.)
- Evaluations come at the same seconds of the clock, at distances that grow: the recipe's validation
  split by the same function, greedy text for exact match, sampled text for the expected return. A
  mark is reached where the line between two evaluations first meets it.
- trl: `DistillationTrainer`, its own loop, generation and loss: on-policy, beta = 1 (reverse KL),
  its temperature dividing the logits of the loss as those of the sampling. Gradient checkpointing,
  which costs time and saves memory, is off; so is logging. Needs the extra `bench`.
- rkl: the same loss by our trainer, at the same temperature.
- llmr, brim, anchored: the bundled recipes' objectives, by our trainer with all its checks.
- A first run of one step, which is thrown away, warms each method up.

Marks are parts of the way from the start to the teacher's own score, which is measured in the same
way; half of the way to the best that any of the methods reached is added.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils.logging import disable_progress_bar

from brim.cli.process import flush_denormals, prepare_process
from brim.config.loading import load_config
from brim.recipes import find_recipe
from brim.support.figures import INK, draw_mean, handles, render, styles
from brim.support.files import atomic_write_bytes, atomic_write_json, atomic_write_text, read_json
from brim.support.tables import as_markdown, plain_table
from brim.training.settings import RunConfig

METHODS = ("trl", "rkl", "llmr", "brim", "anchored")
RATES = (1e-4, 3e-4, 1e-3, 3e-3)
WARMUP_STEPS = 10  # without, every method first falls below its start
TUNING_SEED = 1000
SCORES = {"expected_return": "expected return", "exact_match": "exact match"}
MARKS = (0.25, 0.5, 0.75)
GROWTH = 1.35  # from one evaluation's second to the next one's

PAIR = (
    "task.max_train_examples=20000",
    "teacher.build={family: llama, d_model: 64, d_ff: 256, layers: 2, heads: 4, dropout: 0.0}",
    "student.build={family: llama, d_model: 48, d_ff: 192, layers: 1, heads: 4, dropout: 0.0}",
    "student.predistill.trainer.max_steps=700",  # near enough to its teacher for returns to tell
    "trainer.max_steps=1",  # what is wanted of this run are its stages
)
SHORT = (
    "task.max_train_examples=256",
    "task.max_validation_examples=16",
    "task.max_test_examples=16",
    "teacher.train.trainer={max_steps: 2, rollout_batch_size: 16}",
    "student.predistill.trainer={max_steps: 1, rollout_batch_size: 16}",
    "trainer.rollout_batch_size=8",
)

Point = Mapping[str, float]  # of a curve: seconds, wall, steps, tokens and scores
Curve = Sequence[Point]
Results = Mapping[str, tuple[float, Sequence[Curve]]]  # by method: learning rate, a curve a seed


class Meter:
    """The clock of a run, which stops for the evaluations; they are the points of its `curve`."""

    def __init__(self, start: Point, due: Sequence[float], score: Callable[[], Point]) -> None:
        self.due, self.score = list(due), score
        self.counts = dict.fromkeys(("seconds", "wall", "steps", "tokens"), 0.0)
        self.curve = [{**self.counts, **start}]

    def start(self) -> None:
        self.started = time.process_time(), time.perf_counter()

    def step(self, tokens: float) -> bool:
        """Count a step that wrote so many tokens; whether there is time for another."""
        now = time.process_time(), time.perf_counter()
        spent = (now[0] - self.started[0], now[1] - self.started[1], 1, tokens)
        for name, amount in zip(self.counts, spent, strict=True):
            self.counts[name] += amount
        if self.counts["seconds"] >= self.due[0]:
            self.due = [second for second in self.due if second > self.counts["seconds"]]
            self.curve.append({**self.counts, **self.score()})
        self.start()
        return bool(self.due)


def seconds_of_evaluations(limit: float) -> list[float]:
    """From a fiftieth of the limit up to it, at equal factors."""
    times = [limit]
    while times[-1] > limit / 50:
        times.append(times[-1] / GROWTH)
    return times[::-1]


class Bench:
    """Teacher, start and data, which all share."""

    def __init__(self, args: argparse.Namespace) -> None:
        from brim.runs.inputs import reopen
        from brim.runs.stages import find_teacher
        from brim.runs.train import train

        self.args, pair = args, args.out / "pair"
        train(self.config("rkl", *PAIR, *(SHORT if args.short else ())), pair)
        self.run = reopen(pair, [f"decoding.temperature={args.temperature}"])
        self.teacher = find_teacher(self.run).model
        self.goal = points_of(self.evaluate(self.teacher))
        self.start = self.evaluate(self.student())
        self.warm: set[str] = set()

    def config(self, method: str, *overrides: str) -> RunConfig:
        name, *changes = method.split("+")
        recipe = find_recipe(f"cmudict/{name}")
        return load_config(RunConfig, recipe, [*overrides, *changes], search=find_recipe)

    def student(self) -> Any:
        from brim.runs.stages import find_trained

        return find_trained(self.run, "predistill").model

    def evaluate(self, model: Any) -> Any:
        import torch

        from brim.runs.fit import evaluation_settings
        from brim.training.evaluation import evaluate

        settings = replace(evaluation_settings(self.run), metrics=("exact_match",))
        split = self.run.used("validation")
        with torch.no_grad():
            return evaluate(model, split, settings, teacher=self.teacher, num_resamples=100)

    def curve(self, method: str, lr: float, seed: int) -> Curve:
        """The curve of a run, which is read where it is finished."""
        args = self.args
        path = args.out / "runs" / f"{method},lr={lr:g},seed={seed}.json"
        asked = {name: getattr(args, name) for name in ("seconds", "rows", "temperature")}
        if path.exists() and (kept := read_json(path))["asked"] == asked:
            return kept["curve"]
        if method not in self.warm:
            self.measure(method, lr, seed, [0.0])
            self.warm.add(method)
        made = self.measure(method, lr, seed, seconds_of_evaluations(args.seconds))
        path.parent.mkdir(exist_ok=True)
        atomic_write_json(path, {"asked": asked, "curve": made})
        print(f"{path.stem}: {made[-1]}", file=sys.stderr, flush=True)
        return made

    def measure(self, method: str, lr: float, seed: int, due: Sequence[float]) -> Curve:
        student = self.student()
        meter = Meter(points_of(self.start), due, lambda: points_of(self.evaluate(student)))
        train = train_by_trl if method == "trl" else train_by_brim
        with tempfile.TemporaryDirectory() as directory:
            train(self, method, student, meter, lr, seed, Path(directory))
        return meter.curve


def points_of(evaluation: Any) -> Point:
    return {name: evaluation.scores[name].value for name in (*SCORES, "return", "length")}


# -- contestants -----------------------------------------------------------------------------------


def train_by_brim(
    bench: Bench, method: str, student: Any, meter: Meter, lr: float, seed: int, directory: Path
) -> None:
    from brim.objectives import make_objective
    from brim.training.accelerator import make_accelerator
    from brim.training.callbacks import Callback, Callbacks, CallbackState
    from brim.training.loop_settings import LoopConfig, OptimConfig
    from brim.training.tracking import Tracker
    from brim.training.trainer import Interrupted, Trainer

    decoding, rows, never = bench.run.config.decoding, bench.args.rows, 10**9
    same_loss = (f"objective.temperature={decoding.temperature}",) if method == "rkl" else ()
    objective = make_objective(bench.config(method, *same_loss).objective, decoding)

    class Metering(Callback):
        def on_step(self, state: CallbackState) -> None:
            trainer.stop_requested = not meter.step(rows * state.metrics["rollout/length"])

        def on_evaluate(self, state: CallbackState) -> None:
            meter.start()

    with Tracker(directory) as tracker:
        trainer = Trainer(
            student=student, teacher=bench.teacher, objective=objective,
            examples=bench.run.examples("train"), metric="expected_return",
            evaluate=lambda model: bench.start, num_samples=0,
            optim=OptimConfig(lr=lr, warmup_steps=WARMUP_STEPS),
            settings=LoopConfig(
                max_steps=never, rollout_batch_size=rows, evaluate_every=never, save_every=never
            ),
            directory=directory, accelerator=make_accelerator("float32"), tracker=tracker,
            max_prompt_tokens=decoding.max_prompt_tokens, seed=seed,
            callbacks=Callbacks(Metering()),
        )  # fmt: skip
        with contextlib.suppress(Interrupted):
            trainer.train()


def train_by_trl(
    bench: Bench, method: str, student: Any, meter: Meter, lr: float, seed: int, directory: Path
) -> None:
    from datasets import Dataset
    from torch.optim.lr_scheduler import LambdaLR
    from transformers import PrinterCallback, TrainerCallback
    from trl.trainer.distillation_config import DistillationConfig
    from trl.trainer.distillation_trainer import DistillationTrainer

    from brim.seeding import example_index

    class Trainer(DistillationTrainer):  # type: ignore[misc]
        def _generate_and_score_completions(self, *inputs: Any, **named: Any) -> Any:
            scored = super()._generate_and_score_completions(*inputs, **named)
            self.num_written = int(scored["completion_mask"].sum())
            return scored

        def create_scheduler(self, *inputs: Any, **named: Any) -> Any:
            """Ours: transformers' own warm-up has a rate of 0 in its first step."""
            self.lr_scheduler = LambdaLR(
                self.optimizer, lambda step: min(1.0, (step + 1) / WARMUP_STEPS)
            )
            return self.lr_scheduler

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, own: Any, state: Any, control: Any, **named: Any) -> None:
            meter.start()

        def on_step_end(self, own: Any, state: Any, control: Any, **named: Any) -> None:
            control.should_training_stop = not meter.step(trainer.num_written)

    decoding, rows = bench.run.config.decoding, bench.args.rows
    config = DistillationConfig(
        str(directory), use_cpu=True, bf16=False, report_to="none", save_strategy="no",
        logging_strategy="no", disable_tqdm=True, gradient_checkpointing=False, seed=seed,
        per_device_train_batch_size=rows, gradient_accumulation_steps=1, max_steps=10**6,
        max_completion_length=decoding.max_tokens, temperature=decoding.temperature,
        learning_rate=lr, max_grad_norm=1.0, weight_decay=0.0, shuffle_dataset=False,
    )  # fmt: skip
    examples = bench.run.examples("train")
    order = (example_index(i, len(examples), seed) for i in range(bench.args.num_prompts))
    tokenizer = student.tokenizer
    tokenizer.padding_side = "left"
    trainer = Trainer(
        model=student.model, teacher_model=bench.teacher.model, args=config,
        train_dataset=Dataset.from_dict({"prompt": [examples[i].prompt for i in order]}),
        processing_class=tokenizer, callbacks=[Clock()],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train()


# -- runs ------------------------------------------------------------------------------------------


def measure_all(bench: Bench) -> Results:
    results = {}
    for method in bench.args.methods:
        means = {
            lr: mean_over_clock(bench.curve(method, lr, TUNING_SEED)) for lr in bench.args.rates
        }
        lr = max(means, key=means.__getitem__)
        results[method] = lr, [bench.curve(method, lr, seed) for seed in bench.args.seeds]
    return results


def mean_over_clock(curve: Curve) -> float:
    """Exact match on average over the seconds; returns are won by shortening too."""
    seconds, values = ([point[name] for point in curve] for name in ("seconds", "exact_match"))
    return float(np.trapezoid(values, seconds) / seconds[-1])


def when_reached(curve: Curve, score: str, mark: float, count: str = "seconds") -> float:
    """When the line between the points first meets the mark; infinite where it never does."""
    for before, after in itertools.pairwise(curve):
        if before[score] >= mark:
            return before[count]
        if after[score] >= mark:
            part = (mark - before[score]) / (after[score] - before[score])
            return before[count] + part * (after[count] - before[count])
    return math.inf


# -- report ----------------------------------------------------------------------------------------


def marks_of(bench: Bench, results: Results, score: str) -> dict[str, float]:
    """What each mark is worth, by its name."""
    start, goal = points_of(bench.start)[score], bench.goal[score]
    points = (point for _, curves in results.values() for curve in curves for point in curve)
    best = max(point[score] for point in points)
    parts = {f"{100 * part:g} % of the way": start + part * (goal - start) for part in MARKS}
    return {**parts, "half-way to the best": (start + best) / 2}


def report(bench: Bench, results: Results) -> str:
    """A Markdown table a score: seconds to each mark, the median over the seeds."""
    args, tables = bench.args, []
    for score, name in SCORES.items():
        marks = marks_of(bench, results, score)
        middle = list(marks)[len(MARKS) // 2]
        ends = f"start {points_of(bench.start)[score]:.2f}, teacher {bench.goal[score]:.2f}"
        head = [f"{name}: {ends}", "learning rate", *(f"{m} ({v:.2f})" for m, v in marks.items())]
        rows = [[*head, f"thousand tokens to {marks[middle]:.2f}", f"after {args.seconds:g} s"]]
        for method, (lr, curves) in results.items():
            reached = [[when_reached(c, score, mark) for c in curves] for mark in marks.values()]
            tokens = [when_reached(c, score, marks[middle], "tokens") / 1000 for c in curves]
            last = statistics.fmean(curve[-1][score] for curve in curves)
            cells = [*(median_text(times) for times in reached), median_text(tokens)]
            rows.append([method, f"{lr:g}", *cells, f"{last:.2f}"])
        tables.append(as_markdown(plain_table(rows)))
    speeds = []
    for method, (_, curves) in results.items():
        last = [curve[-1] for curve in curves]
        seconds, steps, tokens = (sum(p[n] for p in last) for n in ("seconds", "steps", "tokens"))
        speeds.append(f"{method} {steps / seconds:.1f} ({tokens / seconds:,.0f})")
    return "\n".join([*tables, f"Steps a second (tokens a second): {', '.join(speeds)}."])


def median_text(values: Sequence[float]) -> str:
    """The median with the least and the largest of several."""
    texts = ["never" if math.isinf(value) else f"{value:.1f}" for value in sorted(values)]
    middle = statistics.median_low(sorted(values))
    text = "never" if math.isinf(middle) else f"{middle:.1f}"
    return f"{text} ({texts[0]} to {texts[-1]})" if len(set(texts)) > 1 else text


def draw(bench: Bench, results: Results) -> bytes:
    """Both scores against the clock, mean and standard deviation over the seeds."""
    chosen = styles(["llmr", *(method for method in results if method != "llmr")])
    chosen = {method: chosen[method] for method in results}
    times = seconds_of_evaluations(bench.args.seconds)

    def paint(canvas: Any) -> None:
        for ax, (score, name) in zip(canvas.subplots(1, len(SCORES)), SCORES.items(), strict=True):
            for method, (_, curves) in results.items():
                lines = [resample(curve, times, score) for curve in curves]
                draw_mean(ax, lines, chosen[method])
            for value in (*list(marks_of(bench, results, score).values())[:-1], bench.goal[score]):
                ax.axhline(value, color=INK, linewidth=0.7, linestyle=":")
            ax.set(xscale="log", title=name, xlabel="seconds of CPU, one thread")
            ax.xaxis.set_major_formatter("{x:g}")
        canvas.legend(handles=handles(chosen), loc="outside lower center", ncols=len(chosen))

    return render((9.0, 4.0), paint).png


def resample(curve: Curve, times: Sequence[float], score: str) -> list[tuple[float, float]]:
    seconds, values = ([point[name] for point in curve] for name in ("seconds", score))
    return [*zip(times, np.interp(times, seconds, values), strict=True)]


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=[*METHODS], metavar="METHOD[+KEY=VALUE]")
    parser.add_argument("--rates", nargs="+", type=float, default=[*RATES])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=40.0, help="of a run")
    parser.add_argument("--rows", type=int, default=128, help="of a step")
    parser.add_argument("--temperature", type=float, default=0.5)
    parser.add_argument("--out", type=Path, default=Path("runs/time_to_quality"))
    parser.add_argument("--short", action="store_true", help="tiny pair, short runs: does it run?")
    parser.add_argument("--docs", action="store_true", help="fill docs/performance.md")
    args = parser.parse_args(argv)
    if args.short:
        args.rates, args.seeds, args.seconds, args.rows = args.rates[:1], args.seeds[:1], 0.2, 8
    args.num_prompts = math.ceil(100 * args.seconds) * args.rows  # no step takes less than 10 ms
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    disable_progress_bar()
    bench = Bench(args)
    results = measure_all(bench)
    text, image = report(bench, results), draw(bench, results)
    atomic_write_text(args.out / "results.md", text)
    atomic_write_bytes(args.out / "time_to_quality.png", image)
    print(text)
    if args.docs:
        from step import DOCS, fill_docs

        figure = "![Both scores against seconds of CPU](time_to_quality.png)"
        fill_docs("time to quality", f"{text}\n\n{figure}")
        atomic_write_bytes(DOCS.with_name("time_to_quality.png"), image)


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    prepare_process()
    flush_denormals(True)
    main()
