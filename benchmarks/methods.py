"""Every method on a bundled task, from the same pre-distilled student, in one table.

    python benchmarks/methods.py cmudict
    python benchmarks/methods.py cmudict --methods llmr,brim --seeds 0,1,2 --set optim.lr=1e-4
    python benchmarks/methods.py cmudict --methods brim,brim+objective.k=4,brim+optim.lr=1e-3

Each method's recipe is trained into OUT/{method}-{seed}; runs of a seed share the stages before.
Finished runs are kept and stopped ones are resumed. The table is printed and written to
OUT/results.md.
"""

import argparse
import os
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # several of these share a machine

from transformers.utils.logging import disable_progress_bar

from brim.config.loading import load_config
from brim.errors import BrimError
from brim.recipes import find_recipe
from brim.report.folders import Run, read_run
from brim.runs.directory import RunDirectory
from brim.runs.evaluate import evaluate_stage
from brim.runs.train import train
from brim.support.files import atomic_write_text, read_json
from brim.support.json_lines import JsonLines
from brim.support.progress import Reporter
from brim.support.tables import (
    ABSENT,
    DIGITS,
    as_markdown,
    interval_text,
    percent,
    plain_table,
)
from brim.training.settings import RunConfig

TASKS = ("cmudict", "synopsis", "wordproblems")
METHODS = (
    *("seqkd", "kl", "rkl", "js", "tvd"),
    *("llmr", "llmr_mean", "llmr_min_var", "brim", "anchored"),
    *("ppo_llmr", "ppo_anchored", "ppo_brim"),
)
STAGES = {"teacher": "teacher", "pre-distilled student": "predistill"}

Rows = Mapping[str, Sequence[Run]]  # label -> a run a seed


def measure(args: argparse.Namespace, reporter: Reporter) -> Rows:
    """Train and test what is not there yet; then read all of it."""
    stages_dir = args.out / "stages"
    directories: dict[str, list[Path]] = {label: [] for label in (*STAGES, *args.methods)}
    for seed in args.seeds:
        for method in args.methods:
            reporter.say(f"== {method}, seed {seed} ==")
            name, *changes = method.split("+")
            recipe = find_recipe(f"{args.task}/{name}")
            overrides = [*changes, *args.set, f"seed={seed}"]
            config = load_config(RunConfig, recipe, overrides, search=find_recipe)
            run = args.out / f"{method}-{seed}"
            if not is_finished(run, config):
                train(config, run, stages_dir=stages_dir, reporter=reporter, command=sys.argv)
            directories[method].append(run)
        run = directories[args.methods[0]][-1]
        for label, name in STAGES.items():
            stage = stages_dir / RunDirectory(run).manifest()["stages"][name]
            if not (stage / "results.json").exists():
                evaluate_stage(run, name, reporter=reporter)
            directories[label].append(stage)
    return {label: [read_run(run, "test") for run in runs] for label, runs in directories.items()}


def is_finished(run: Path, config: RunConfig) -> bool:
    """Whether test results of these settings are there."""
    if not (run / "results.json").exists() or "test" not in read_json(run / "results.json"):
        return False
    about = {"description", "tracking"}
    known = load_config(RunConfig, run / "config.yaml")
    return known.model_dump(exclude=about) == config.model_dump(exclude=about)


def results_page(args: argparse.Namespace, rows: Rows) -> str:
    """The command, the table, and what its numbers are."""
    command = ["python", "benchmarks/methods.py", args.task]
    command += ["--methods", ",".join(args.methods)] if args.methods != list(METHODS) else []
    command += ["--seeds", ",".join(map(str, args.seeds))] if args.seeds != [0] else []
    command += ["--set", *args.set] if args.set else []
    first = next(iter(rows.values()))[0]
    names = [*(name for name in first.scores if name != "length"), "length"]
    head = ["method", *(first.scores[name].name for name in names)]
    lines = [[*head, "var return", "var weight", "s/step", "best step"]]
    for label, seeds in rows.items():
        scores = (score_cell(seeds, name) for name in names)
        training = [ABSENT] * 4 if label in STAGES else training_cells(seeds)
        lines.append([label, *scores, *training])
    spread = f"{percent(first.scores['length'].confidence)} bootstrap intervals over examples"
    if len(args.seeds) > 1:
        spread = f"mean ± standard deviation over {len(args.seeds)} seeds of everything"
    caption = (
        f"Test split, {first.results['num_examples']:,} examples; {spread}. Variances over tokens, "
        "means over the training steps: of the K-step return, and of the weight that is made of it "
        "by clip and baseline. Median seconds a step, on the machine of this run. Best step 0 is "
        "the pre-distilled student.\n"
    )
    return f"```bash\n{shlex.join(command)}\n```\n\n{as_markdown(plain_table(lines))}\n{caption}"


def score_cell(seeds: Sequence[Run], name: str) -> str:
    """A score with its interval, or the mean and standard deviation of several seeds'."""
    scores, digits = [seed.scores[name] for seed in seeds], DIGITS.get(name, 1)
    if len(scores) == 1 and name != "length":
        score = scores[0]
        return interval_text(score.value, score.low, score.high, spec=f"z.{digits}f")
    return number_cell([score.value for score in scores], digits)


def training_cells(seeds: Sequence[Run]) -> list[str]:
    """Variances of return and weight, seconds a step, best step."""
    cells = []
    for key in ("rollout/var_return_k", "rollout/var_advantage"):
        curves = [[value for _, value in seed.curve(key)] for seed in seeds]
        cells.append(number_cell([statistics.fmean(curve) for curve in curves if curve], 2))
    timings = [JsonLines(seed.directory / "timings.jsonl").rows() for seed in seeds]
    steps = [[line["time/step"] for line in lines if "time/step" in line] for lines in timings]
    seconds = [statistics.median(taken) for taken in steps]
    best = ", ".join(str(seed.results["best_step"]) for seed in seeds)
    return [*cells, number_cell(seconds, 2), best]


def number_cell(values: Sequence[float], digits: int) -> str:
    """A number, or the mean and standard deviation of several."""
    if not values:
        return ABSENT
    spread = f" ± {statistics.stdev(values):,.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):z,.{digits}f}{spread}"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--methods", type=lambda text: text.split(","), default=list(METHODS))
    parser.add_argument("--seeds", type=lambda text: [int(n) for n in text.split(",")], default=[0])
    parser.add_argument("--out", type=Path, help="default: runs/methods/TASK")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE")
    parser.add_argument("--quiet", action="store_true", help="only the table")
    args = parser.parse_args()
    args.out = args.out or Path("runs") / "methods" / args.task
    return args


def main() -> None:
    args = parse_arguments()
    disable_progress_bar()
    try:
        rows = measure(args, Reporter(quiet=args.quiet))
        table = results_page(args, rows)
        atomic_write_text(args.out / "results.md", table)
        print(table, end="")
    except BrimError as error:
        sys.exit(f"methods.py: {error}")
    except KeyboardInterrupt as stop:
        print(f"methods.py: {str(stop) or 'stopped'}", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
