"""Where runs of a sweep are made: here, through Ray on other machines, or by a script for SLURM.

The latter two want what a run wants on one machine: the same Python environment and the same paths
on all of them, the sweep's folder on a file system that they share.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from brim.errors import ConfigError, RunError
from brim.support.progress import Reporter
from brim.sweep.grid import Point, Task
from brim.sweep.states import log_of


class Job(Protocol):
    """A run under way, wherever it is."""

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""

    def stop(self) -> None:
        """Ask it to save and end."""

    def kill(self) -> None:
        """End it at once."""


class Launcher(Protocol):
    """Where runs are made, `slots` at a time."""

    slots: int

    def start(self, task: Task, out: Path) -> Job:
        """Begin or resume a run; what it says is appended to its log."""


@dataclass
class LocalLauncher:
    """Runs as processes of this machine.

    Attributes:
        threads: `OMP_NUM_THREADS` of each.
        devices: `CUDA_VISIBLE_DEVICES` of the processes in turn; none where there is no GPU.
        command: the process of a task; for tests.
    """

    slots: int = 1
    threads: int = 1
    devices: Sequence[str] = ()
    command: Callable[[Task, Path], list[str]] = lambda task, out: [
        sys.executable, "-m", "brim", *task.arguments(out),
    ]  # fmt: skip
    _busy: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, task: Task, out: Path) -> Job:
        """Begin a process in a session of its own, so that Ctrl-C reaches it through us only."""
        self._busy = {slot: p for slot, p in self._busy.items() if p.poll() is None}
        slot = next(slot for slot in range(self.slots) if slot not in self._busy)
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        if self.devices:
            environment["CUDA_VISIBLE_DEVICES"] = self.devices[slot % len(self.devices)]
        with log_of(task, out).open("ab") as log:
            process = subprocess.Popen(
                self.command(task, out),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._busy[slot] = process
        return _Process(process)


@dataclass(frozen=True)
class _Process:
    process: subprocess.Popen[bytes]

    def poll(self) -> int | None:
        return self.process.poll()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def local_launcher(jobs: int | None = None, threads: int | None = None) -> LocalLauncher:
    """A launcher that shares this machine out.

    With GPUs there is a job for each of them (`CUDA_VISIBLE_DEVICES`, or all), and the cores are
    shared by the jobs. Without, a job has `threads` (`OMP_NUM_THREADS`, or 1), and there are as
    many jobs as the cores allow; given `jobs` only, they share the cores.
    """
    cores, devices = _cores(), _visible_devices()
    if devices:
        jobs = jobs or len(devices)
    elif jobs is None:
        outer, _, _ = os.environ.get("OMP_NUM_THREADS", "").partition(",")  # of nested ones
        threads = threads or (int(outer) if outer.strip().isdecimal() else 1) or 1
        jobs = max(cores // threads, 1)
    return LocalLauncher(jobs, threads or max(cores // jobs, 1), devices)


def _cores() -> int:
    """What this process may use; macOS does not say."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _visible_devices() -> list[str]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


@dataclass(frozen=True)
class Resources:
    """What runs get of a machine or of a cluster; None for what its launcher takes by default.

    Attributes:
        jobs: runs at a time.
        threads: `OMP_NUM_THREADS` of each, on this machine.
        ray: the address of a Ray cluster; None to run here.
        cpus, gpus: of each, on a cluster.
    """

    jobs: int | None = None
    threads: int | None = None
    ray: str | None = None
    cpus: int | None = None
    gpus: float | None = None


@dataclass
class RayLauncher:
    """Runs as tasks of a Ray cluster, which finds a place for each and sets `CUDA_VISIBLE_DEVICES`.

    `slots` are handed to Ray at a time; what has no place yet waits there.
    """

    slots: int
    cpus: int = 1
    gpus: float = 0

    def start(self, task: Task, out: Path) -> Job:
        """Submit a task that starts a process and waits for it."""
        import ray

        arguments = ["-m", "brim", *task.arguments(out.resolve())]
        options = {"num_cpus": self.cpus, "num_gpus": self.gpus, "max_retries": 0}
        remote = ray.remote(_task()).options(**options, name=task.name)
        log = str(log_of(task, out).resolve())
        return _RayJob(remote.remote(arguments, os.getcwd(), log, self.cpus))


def ray_launcher(
    address: str, *, slots: int = 1000, cpus: int | None = None, gpus: float | None = None
) -> RayLauncher:
    """Connect to Ray.

    Args:
        address: `local` for a Ray of this machine that ends with this process, `auto` for the
            cluster that this machine belongs to, or `host:port`.
        slots: how many runs are handed to Ray at a time.
        cpus: cores of a run.
        gpus: GPUs of a run, also a part of one; by default 1 where the cluster has any.

    Raises:
        ConfigError: Ray is not installed.
        RunError: there is no Ray at the address, or nothing in it that is large enough.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers
    try:
        import ray
    except ImportError:
        raise ConfigError("--ray: needs Ray; pip install 'brim-distill[ray]'") from None
    _check_reachable(address)
    try:
        ray.init(address, log_to_driver=False, configure_logging=False, include_dashboard=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RunError(f"--ray {address}: cannot be reached: {reason}") from None
    have = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if gpus is None:
        gpus = 1 if any(node.get("GPU", 0) >= 1 for node in have) else 0
    cpus = cpus or 1
    if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in have):
        raise RunError(
            f"--ray {address}: no machine in it has {cpus} cores and {gpus:g} GPUs; "
            "lower --cpus-per-job or --gpus-per-job"
        )
    return RayLauncher(slots, cpus, gpus)


def _check_reachable(address: str) -> None:
    """Whether anything listens at `host:port`; Ray itself would try for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise RunError(
            f"--ray {address}: nothing listens there ({error}); check the address"
        ) from None


def _task() -> Callable[[list[str], str, str, int], int]:
    """The function that a worker runs; a local one is sent as code, so that it imports no torch."""

    def run(arguments: list[str], folder: str, log: str, threads: int) -> int:
        import os
        import signal
        import subprocess
        import sys
        import time

        def hear() -> None:
            # What a worker ignores or blocks, its child would too.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        with open(log, "ab") as file:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                preexec_fn=hear,
            )
        try:
            # A cancellation is an exception between two instructions: it ends no system call.
            while process.poll() is None:
                time.sleep(0.2)
        except BaseException:
            process.send_signal(signal.SIGINT)
        return process.wait()

    return run


@dataclass(frozen=True)
class _RayJob:
    task: Any

    def poll(self) -> int | None:
        import ray

        ended, _ = ray.wait([self.task], timeout=0)
        if not ended:
            return None
        try:
            return int(ray.get(self.task))
        except ray.exceptions.TaskCancelledError:
            return 130
        except ray.exceptions.RayError:  # a worker or a machine that is gone
            return 1

    def stop(self) -> None:
        import ray

        ray.cancel(self.task)

    def kill(self) -> None:
        import ray

        ray.cancel(self.task, force=True)


def launcher_of(resources: Resources, num_runs: int, reporter: Reporter) -> Launcher:
    """Return what starts the runs, here or on Ray.

    Raises:
        ConfigError: an option that has no meaning beside the others.
    """
    if resources.ray is None and not (resources.cpus is None and resources.gpus is None):
        raise ConfigError(
            "--cpus-per-job and --gpus-per-job are for --ray and --sbatch; "
            "here it is --threads-per-job, and CUDA_VISIBLE_DEVICES"
        )
    if resources.ray is not None and resources.threads is not None:
        raise ConfigError("--threads-per-job: with --ray it is --cpus-per-job; use that")
    if resources.ray is not None:
        return ray_launcher(
            resources.ray,
            slots=resources.jobs or num_runs,
            cpus=resources.cpus,
            gpus=resources.gpus,
        )
    local = local_launcher(resources.jobs, resources.threads)
    reporter.say(f"{num_runs} runs, {local.slots} at a time with {local.threads} threads")
    return local


def sbatch_script(
    points: Sequence[Point],
    file: Path,
    out: Path,
    *,
    name: str,
    cpus: int | None = None,
    gpus: float | None = None,
    jobs: int | None = None,
) -> str:
    """A SLURM array script with a task for each point, by default on one core, without a GPU.

    `file` is the sweep's, as the tasks read it; `jobs` the tasks at a time, by default all.

    Raises:
        ConfigError: a part of a GPU, which SLURM does not give out.
    """
    if gpus is not None and gpus != int(gpus):
        raise ConfigError(f"--gpus-per-job: {gpus:g}: SLURM gives out whole GPUs")
    numbers = _ranges([point.number for point in points])
    at_once = f"%{jobs}" if jobs else ""
    command = [
        sys.executable, "-m", "brim", "sweep", str(file.resolve()), "--out", str(out.resolve()),
    ]  # fmt: skip
    first = points[0].number if points else 1
    lines = [
        "#!/bin/bash",
        f"#SBATCH --job-name={re.sub('[^A-Za-z0-9]+', '-', name).strip('-') or 'sweep'}",
        f"#SBATCH --array={numbers}{at_once}",
        f"#SBATCH --cpus-per-task={cpus or 1}",
        *([f"#SBATCH --gpus-per-task={int(gpus)}", "#SBATCH --ntasks=1"] if gpus else []),
        "# Five minutes before its time is over a run saves what it has and ends; submit the same",
        "# script again to go on.",
        "#SBATCH --signal=B:INT@300",
        "# Add what your cluster wants: --time, --mem, --partition, --account.",
        "#",
        "# Runs that share a teacher wait for the one that makes it. To keep no nodes waiting, let",
        f"# the first one run alone: sbatch --array={first} THIS, and then the others by",
        "# sbatch --dependency=afterok:ITS_ID THIS",
        f"cd {shlex.quote(os.getcwd())} || exit 1",
        "export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK",
        f'exec {shlex.join(command)} --point "$SLURM_ARRAY_TASK_ID"',
    ]
    return "\n".join(lines)


def _ranges(numbers: Sequence[int]) -> str:
    """`1-3,7` for 1, 2, 3, 7."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
