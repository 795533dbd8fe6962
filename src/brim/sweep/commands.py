"""What `brim sweep` does, option by option."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from brim.errors import ConfigError
from brim.support.progress import Reporter
from brim.sweep.cluster import ray_launcher, sbatch_script
from brim.sweep.grid import Point, points, run_point
from brim.sweep.launching import Launcher, local_launcher
from brim.sweep.running import Outcome, run_sweep
from brim.sweep.spec import SweepConfig, keep_sweep, load_sweep
from brim.sweep.states import first_scores, stage_tests, state_of, status_table


@dataclass(frozen=True)
class Chosen:
    """A sweep, its folder, and the points that were asked for.

    Attributes:
        file: what was read.
        sweep: what it says.
        out: the folder of the runs.
        every: all points.
        points: those whose name, or whose system's, fits the pattern.
    """

    file: Path
    sweep: SweepConfig
    out: Path
    every: list[Point]
    points: list[Point]


def choose(file: Path, out: Path | None = None, only: str = "*") -> Chosen:
    """Read a sweep and check every setting of every point.

    Raises:
        ConfigError: the file, a setting, or a pattern that no point fits.
    """
    sweep = load_sweep(file)
    every = points(sweep, str(file))
    found = [p for p in every if fnmatchcase(p.name, only) or fnmatchcase(p.label, only)]
    if not found:
        labels = ", ".join(dict.fromkeys(point.label for point in every))
        raise ConfigError(f"--only {only}: no run of that name; the systems are {labels}")
    return Chosen(file, sweep, out or Path("sweeps") / file.stem, every, found)


def check_together(modes: dict[str, bool]) -> None:
    """Raise a ConfigError where options are given that each say what to do."""
    given = [name for name, chosen in modes.items() if chosen]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} do not go together; choose one")


def status(chosen: Chosen) -> str:
    """A line a point, and a line a stage that is or will be tested."""
    return status_table(chosen.points, chosen.out)


def dry_run(chosen: Chosen) -> str:
    """The commands that would be run, as a shell script."""
    states = [state_of(point, chosen.out) for point in chosen.points]
    todo = [p for p, state in zip(chosen.points, states, strict=True) if state != "done"]
    lines = [f"# {len(chosen.points)} runs, {states.count('done')} of them done"]
    lines += [point.command(chosen.out) for point in todo]
    stages = stage_tests(chosen.points, chosen.out)
    tests = [test for test in stages if state_of(test, chosen.out) != "done"]
    if todo or tests:
        lines.append("# then each teacher and each student that runs begin with is tested, once")
    return "\n".join([*lines, *(test.command(chosen.out) for test in tests)])


def sbatch(chosen: Chosen, *, cpus: int | None, gpus: float | None, jobs: int | None) -> str:
    """A SLURM script for what is not done; its tasks read the file that is kept with the runs."""
    todo = [point for point in chosen.points if state_of(point, chosen.out) != "done"]
    if not todo:
        raise ConfigError(f"--sbatch: {chosen.out}: all runs are done")
    kept = keep_sweep(chosen.sweep, chosen.out)
    name = chosen.file.stem
    return sbatch_script(todo, kept, chosen.out, name=name, cpus=cpus, gpus=gpus, jobs=jobs)


def one(chosen: Chosen, number: int, reporter: Reporter, command: Sequence[str]) -> str:
    """Run one point in this process, unless it is done."""
    if number > len(chosen.every):
        raise ConfigError(f"--point {number}: the sweep has {len(chosen.every)} points")
    point = chosen.every[number - 1]
    if state_of(point, chosen.out) != "done":
        run_point(point, chosen.out, reporter=reporter, command=command)
    return f"{point.name}: {first_scores(chosen.out / point.name)}"


def run(
    chosen: Chosen,
    reporter: Reporter,
    *,
    jobs: int | None,
    threads: int | None,
    retry: int,
    fail_fast: bool,
    ray: str | None,
    cpus: int | None,
    gpus: float | None,
) -> Outcome:
    """Run what is not done, here or on Ray.

    Raises:
        ConfigError: an option that has no meaning beside the others.
    """
    if ray is None and not (cpus is None and gpus is None):
        raise ConfigError(
            "--cpus-per-job and --gpus-per-job are for --ray and --sbatch; "
            "here it is --threads-per-job, and CUDA_VISIBLE_DEVICES"
        )
    if ray is not None and threads is not None:
        raise ConfigError("--threads-per-job: with --ray it is --cpus-per-job; use that")
    launcher: Launcher
    if ray is not None:
        launcher = ray_launcher(ray, slots=jobs or len(chosen.points), cpus=cpus, gpus=gpus)
    else:
        local = launcher = local_launcher(jobs, threads)
        reporter.say(
            f"{len(chosen.points)} runs, {local.slots} at a time with {local.threads} threads"
        )
    return run_sweep(
        chosen.points,
        chosen.out,
        sweep=chosen.sweep,
        launcher=launcher,
        retry=retry,
        fail_fast=fail_fast,
        reporter=reporter,
    )


def in_words(chosen: Chosen, ended: Outcome) -> str:
    """How a sweep ended, and what comes next."""
    found = {
        "done": ended.done,
        "failed": ended.failed,
        "run by another process": ended.elsewhere,
        "left": ended.left,
    }
    lines = []
    for head, stages in (("", False), ("stages: ", True)):
        counts = {
            what: sum(name.startswith("stages/") is stages for name in names)
            for what, names in found.items()
        }
        told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        lines += [f"{head}{told}"] if told else []
    lines += [f"failed: {name}" for name in ended.failed]
    return "\n".join([*lines, f"runs: {chosen.out}"])
