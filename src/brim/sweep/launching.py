"""How a run of a sweep is started, asked to stop, and ended: here, as processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from brim.sweep.grid import Task
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
    """Where runs are made.

    Attributes:
        slots: how many at a time.
    """

    slots: int

    def start(self, task: Task, out: Path) -> Job:
        """Begin or resume a run; what it says is appended to its log."""


@dataclass
class LocalLauncher:
    """Runs as processes of this machine.

    Attributes:
        slots: how many at a time.
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
        threads = threads or int(os.environ.get("OMP_NUM_THREADS") or 1)
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
