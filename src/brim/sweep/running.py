"""Running a sweep: several points at a time, then the tests of stages, each a process.

The end of the file is what `brim sweep` does, option by option.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from brim.errors import ConfigError, RunError
from brim.support.files import disk_errors
from brim.support.progress import Meter, Reporter
from brim.sweep.grid import Point, SweepConfig, Task, keep_sweep, load_sweep, points, run_point
from brim.sweep.launching import Job, Launcher, Resources, local_launcher, sbatch_script
from brim.sweep.states import (
    FAILED,
    MARK,
    State,
    first_scores,
    has_stages,
    last_lines,
    log_of,
    stage_tests,
    state_of,
)

POLL_SECONDS = 0.2
NOTE_SECONDS, NUM_NOTED = 1.0, 8


@dataclass(frozen=True)
class Outcome:
    """How a sweep ended, as names of points and, behind them, of stages that are tested.

    Attributes:
        failed: that have failed, also when they were tried again.
        elsewhere: that another process works on.
        left: that were not run, or not to the end.
    """

    done: tuple[str, ...]
    failed: tuple[str, ...]
    elsewhere: tuple[str, ...]
    left: tuple[str, ...]

    def in_words(self) -> str:
        """How many ended in which way, and which failed."""
        found = {
            "done": self.done,
            "failed": self.failed,
            "run by another process": self.elsewhere,
            "left": self.left,
        }
        lines = []
        for head, stages in (("", False), ("stages: ", True)):
            counts = {
                what: sum(name.startswith("stages/") is stages for name in names)
                for what, names in found.items()
            }
            text = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
            lines += [f"{head}{text}"] if text else []
        return "\n".join([*lines, *(f"failed: {name}" for name in self.failed)])


def run_sweep(
    todo: Sequence[Point],
    out: Path,
    *,
    sweep: SweepConfig | None = None,
    launcher: Launcher | None = None,
    retry: int = 1,
    fail_fast: bool = False,
    reporter: Reporter | None = None,
) -> Outcome:
    """Run the points that are not done; resume those that were stopped.

    Points come in their order, but for one: while a point makes a stage, none that needs the same
    stage is begun. After them, each teacher and each student that they begin with, as loaded and
    pre-distilled, is tested once, as the first run says that has it and `evaluation.stages`.

    Args:
        todo: the points.
        out: the sweep's folder.
        sweep: what the points are of, to be kept beside them as `sweep.yaml`.
        launcher: where they run; this machine by default.
        retry: how often a failed point is tried again, after all others.
        fail_fast: stop the others when a point fails.
        reporter: shows progress.

    Raises:
        RunError: a point's folder holds a run of other settings; nothing was begun.
        KeyboardInterrupt: SIGINT, SIGTERM or SIGHUP came; the runs were asked to save and did. At
            a second one they are killed.
    """
    states = {point.name: state_of(point, out) for point in todo}
    for point in todo:
        if states[point.name] == "foreign":
            from brim.runs.train import changed_settings

            folder = out / point.name
            raise RunError(
                f"{folder}: holds a run of other settings than the sweep's "
                f"({changed_settings(folder, point.config)}); move it away, or choose another --out"
            )
    if sweep is not None:
        keep_sweep(sweep, out)
    with disk_errors(out):
        (out / "logs").mkdir(parents=True, exist_ok=True)
    work = _Work(
        out, launcher or local_launcher(), reporter or Reporter(quiet=True), retry, fail_fast
    )
    for point in todo:
        work.add(point, done=states[point.name] == "done")
    with work.signals():
        work.run("sweep")
        for test in stage_tests(todo, out):
            work.add(test, done=state_of(test, out) == "done")
        work.run("stages")
    return work.outcome()


@dataclass
class _Running:
    task: Task
    job: Job
    began: float


@dataclass
class _Work:
    """The points of a sweep and the tests of stages on their way."""

    out: Path
    launcher: Launcher
    reporter: Reporter
    retry: int
    fail_fast: bool
    waiting: deque[Task] = field(default_factory=deque)
    running: list[_Running] = field(default_factory=list)
    made: set[str] = field(default_factory=set)  # keys of stages that are finished
    states: dict[str, State] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    stopping: bool = False
    interrupts: int = 0

    def add(self, task: Task, *, done: bool) -> None:
        """Take something up."""
        self.states[task.name] = "done" if done else "waiting"
        if has_stages(self.out / task.name):
            self.made.update(task.stage_keys)
        if not done:
            self.waiting.append(task)

    def run(self, name: str) -> None:
        """Until nothing is left, or all has stopped."""
        if self.waiting:
            with self.reporter.meter(name, len(self.waiting)) as meter:
                self._run(meter)

    def _run(self, meter: Meter) -> None:
        noted = 0.0
        try:
            while self.running or (self.waiting and not self.stopping):
                if self.interrupts and not self.stopping:
                    count = len(self.running)
                    runs = "1 run has" if count == 1 else f"{count} runs have"
                    self.reporter.say(f"stopping when {runs} saved; once more ends them at once")
                    self.stop()
                if self.interrupts > 1:
                    break
                self._begin(meter)
                self._collect(meter)
                if time.monotonic() - noted >= NOTE_SECONDS:
                    meter.advance(0, note=self._what_runs())
                    noted = time.monotonic()
                time.sleep(POLL_SECONDS)
            meter.advance(0, note="")
        finally:
            for running in self.running:
                running.job.kill()
            for running in self.running:
                self._note(running.task, "killed")
        if self.interrupts:
            raise KeyboardInterrupt("stopped; the same command goes on")

    def _what_runs(self) -> str:
        """The last line of each of the first few that run, as its log has it."""
        lines = []
        for task in (running.task for running in self.running[:NUM_NOTED]):
            with suppress(OSError):  # what is only shown ends nothing
                lines += [f"{task.name}: {line}" for line in last_lines(log_of(task, self.out), 1)]
        more = len(self.running) - NUM_NOTED
        return "\n".join([*lines, *([f"and {more} more"] if more > 0 else [])])

    def stop(self) -> None:
        """Begin nothing more, and ask what runs to end."""
        self.stopping = True
        for running in self.running:
            running.job.stop()

    def _begin(self, meter: Meter) -> None:
        while not self.stopping and len(self.running) < self.launcher.slots:
            task = self._next()
            if task is None:
                return
            self.waiting.remove(task)
            state = self.states[task.name] = state_of(task, self.out)
            if state in ("done", "running"):  # by another process, meanwhile
                self._leave(task, state, meter)
                continue
            self._note(task, task.command(self.out))
            job = self.launcher.start(task, self.out)
            self.running.append(_Running(task, job, time.monotonic()))

    def _next(self) -> Task | None:
        """The first point that would not wait for a stage that another one makes."""
        making = {key for running in self.running for key in running.task.stage_keys} - self.made
        for task in self.waiting:
            if making.isdisjoint(task.stage_keys):
                return task
        return None

    def _collect(self, meter: Meter) -> None:
        for running in list(self.running):
            task = running.task
            code = running.job.poll()
            if not self.made.issuperset(task.stage_keys) and has_stages(self.out / task.name):
                self.made.update(task.stage_keys)
            if code is not None:
                self.running.remove(running)
                self._end(task, code, time.monotonic() - running.began, meter)

    def _end(self, task: Task, code: int, seconds: float, meter: Meter) -> None:
        state = state_of(task, self.out)
        if code == 0 and state == "done":
            self.states[task.name] = state
            self._note(task, "done")
            meter.advance()
            scores = first_scores(self.out / task.name)
            self.reporter.say(f"{task.name}: {scores} ({seconds:.0f} s)")
            return
        if state in ("done", "running"):
            self.states[task.name] = state
            self._leave(task, state, meter)
            return
        if self.stopping:
            self.states[task.name] = "stopped"
            self._note(task, "stopped")
            return
        self.states[task.name] = "failed"
        self.failures[task.name] += 1
        again = self.failures[task.name] <= self.retry and not self.fail_fast
        log = log_of(task, self.out)
        self.reporter.say(
            f"{task.name}: failed with exit code {code}"
            f"{', will be tried again' if again else ''}; the end of {log}:"
        )
        for line in last_lines(log):
            self.reporter.say(f"  {line}")
        self._note(task, f"{FAILED} {code}")
        if again:
            self.waiting.append(task)
        else:
            meter.advance()
        if self.fail_fast and not self.stopping:
            self.stop()

    def _leave(self, task: Task, state: str, meter: Meter) -> None:
        self.reporter.say(f"{task.name}: {state} by another process, left alone")
        meter.advance()

    def _note(self, task: Task, text: str) -> None:
        """A line of ours in a point's log."""
        log = log_of(task, self.out)
        with disk_errors(log), log.open("a", encoding="utf-8", errors="surrogateescape") as file:
            file.write(f"{MARK}{text}\n")

    def outcome(self) -> Outcome:
        def named(*states: State) -> tuple[str, ...]:
            return tuple(name for name, state in self.states.items() if state in states)

        left = named("waiting", "stopped")
        return Outcome(named("done"), named("failed"), named("running"), left)

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Count requests to stop while the block runs."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def request(number: int, frame: object) -> None:
            self.interrupts += 1

        # Where a shell had us ignore a signal, children would too; a handler they do not inherit.
        kinds = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
            kinds.append(signal.SIGHUP)
        old = {kind: signal.signal(kind, request) for kind in kinds}
        try:
            yield
        finally:
            for kind, handler in old.items():
                signal.signal(kind, handler)


@dataclass(frozen=True)
class Chosen:
    """A sweep, the folder of its runs, and those of its points that were asked for."""

    name: str
    sweep: SweepConfig
    out: Path
    every: list[Point]
    points: list[Point]

    def left(self) -> list[Point]:
        """The points that are not done."""
        return [point for point in self.points if state_of(point, self.out) != "done"]


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
    return Chosen(file.stem, sweep, out or Path("sweeps") / file.stem, every, found)


def dry_run(chosen: Chosen) -> str:
    """Return the commands that would be run, as a shell script."""
    out, todo = chosen.out, chosen.left()
    tests = [t for t in stage_tests(chosen.points, out) if state_of(t, out) != "done"]
    num_done = len(chosen.points) - len(todo)
    lines = [f"# {len(chosen.points)} runs, {num_done} of them done"]
    lines += [point.command(out) for point in todo]
    if tests or any(point.config.evaluation.stages for point in todo):
        lines.append("# then each teacher and each student that runs begin with is tested, once")
    return "\n".join([*lines, *(test.command(out) for test in tests)])


def sbatch(chosen: Chosen, resources: Resources) -> str:
    """Return a SLURM script for what is not done; its tasks read the file kept with the runs."""
    todo = chosen.left()
    if not todo:
        raise ConfigError(f"--sbatch: {chosen.out}: all runs are done")
    kept = keep_sweep(chosen.sweep, chosen.out)
    return sbatch_script(
        todo,
        kept,
        chosen.out,
        name=chosen.name,
        cpus=resources.cpus,
        gpus=resources.gpus,
        jobs=resources.jobs,
    )


def run_one(chosen: Chosen, number: int, reporter: Reporter, command: Sequence[str]) -> str:
    """Run one point in this process, unless it is done."""
    if number > len(chosen.every):
        raise ConfigError(f"--point {number}: the sweep has {len(chosen.every)} points")
    point = chosen.every[number - 1]
    if state_of(point, chosen.out) != "done":
        run_point(point, chosen.out, reporter=reporter, command=command)
    return f"{point.name}: {first_scores(chosen.out / point.name)}"
