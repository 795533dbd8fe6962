"""A tiny run of every stage, made by the command line in forked processes.

Importing torch takes seconds: it is imported once, and each process is a fork.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import importlib
import json
import os
import random
import re
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import brim.runs.train  # noqa: F401 - or every fork would import it
from brim.cli import main

# Not decided by a seed: clocks, the command that was typed, and hashes of what holds them.
_CLOCKS = {"timings.jsonl", "logs.json"}
_CLOCK_KEYS = {"started", "command", "seconds", "num_processes", *_CLOCKS}
_OF_CLOCKS = {"manifest.json", "results.json"}

RECIPE = """\
task: {{name: files, train: {data}/train.jsonl, validation: {data}/validation.jsonl,
       test: {data}/test.jsonl, prompt: "turn {{word}} around", target_column: turned,
       metrics: [exact_match]}}
teacher:
  tokenizer: {{kind: bpe, vocab_size: 280}}
  build: &tiny {{family: t5, d_model: 16, d_ff: 16, layers: 1, heads: 1, dropout: 0.1}}
  train:
    optim: {{lr: 1e-2}}
    trainer: {{max_steps: 2, rollout_batch_size: 8, evaluate_every: 1, save_every: 1}}
student:
  build: *tiny
  predistill:
    optim: {{lr: 1e-2}}
    trainer: {{max_steps: 2, rollout_batch_size: 8, evaluate_every: 2, save_every: 1}}
objective: {{name: brim, k: 2, baseline: mean}}
decoding: {{max_prompt_tokens: 24, max_tokens: 6}}
optim: {{lr: 1e-3}}
trainer: {{max_steps: 4, rollout_batch_size: 8, evaluate_every: 2, save_every: 1}}
evaluation: {{num_resamples: 100, num_samples: 2}}
"""


@dataclass(frozen=True)
class End:
    """How a process ended: its exit code, less than 0 for a signal, None if it hung; its output."""

    code: int | None
    output: str

    @property
    def traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.output

    @property
    def errors(self) -> list[str]:
        """The lines in which the command line says what is wrong."""
        progress = r"brim: \d+/\d+ "  # of the method
        lines = self.output.splitlines()
        return [line for line in lines if line[:6] == "brim: " and not re.match(progress, line)]


@functools.cache
def lab_in(directory: Path) -> Lab:
    """The one below a directory, made once."""
    return Lab(directory / "lab")


class Lab:
    """A folder with data, a recipe, and an undisturbed run to compare with."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.recipe = directory / "recipe.yaml"
        self.whole = directory / "whole"
        data = directory / "data"
        data.mkdir(parents=True)
        generator = random.Random(0)
        for split, count in {"train": 24, "validation": 6, "test": 6}.items():
            words = ["".join(generator.choices("abcdef", k=4)) for _ in range(count)]
            rows = [json.dumps({"word": word, "turned": word[::-1]}) + "\n" for word in words]
            (data / f"{split}.jsonl").write_text("".join(rows))
        self.recipe.write_text(RECIPE.format(data=data))
        end = wait(start([*self.train(self.whole), "--quiet"], self.log, _tell_imports))
        if end.code != 0:
            raise RuntimeError(f"an undisturbed run failed: {end.output}")
        _import(end.output.splitlines())
        self.expected = contents(self.whole)

    @functools.cached_property
    def seconds(self) -> float:
        """How long a run takes, now that all is imported: later moments would all be too late."""
        started = time.monotonic()
        wait(start(self.train(self.fresh("timed")), self.log))
        return time.monotonic() - started

    @property
    def log(self) -> Path:
        """Where the next process writes what it says."""
        return self.directory / f"log-{os.getpid()}-{time.monotonic_ns()}.txt"

    def train(self, out: Path, *overrides: str) -> list[str]:
        """The arguments of a run."""
        return ["train", str(self.recipe), *overrides, "--out", str(out)]

    def fresh(self, name: str, *, stages: bool = False) -> Path:
        """A run directory that is not there, or one that has its stages already."""
        out = self.directory / name
        shutil.rmtree(out, ignore_errors=True)
        if stages:
            shutil.copytree(self.whole, out)
            shutil.rmtree(out / "checkpoints")
            shutil.rmtree(out / "best")
            for path in (out / "results.json", *out.glob("*.jsonl"), *out.glob("predictions/*")):
                path.unlink()
        return out

    def finish(self, out: Path) -> str | None:
        """Go on with a run to its end; what is wrong with it, or None."""
        end = wait(start(self.train(out), self.log))
        if end.code != 0 or end.traceback:
            return f"does not go on: {' '.join(end.output.split())[-400:]}"
        return self.difference(out)

    def difference(self, out: Path) -> str | None:
        """What a finished run has in another way than the undisturbed one."""
        found = contents(out)
        names = found.keys() | self.expected.keys()
        wrong = sorted(name for name in names if found.get(name) != self.expected.get(name))
        return f"differs in {', '.join(wrong)}" if wrong else None


def _tell_imports() -> None:
    """Have this process print the names of all modules when it ends."""
    end = os._exit

    def exit_and_tell(code: int) -> None:
        print(*sys.modules, sep="\n", flush=True)
        end(code)

    os._exit = exit_and_tell


def _import(names: Sequence[str]) -> None:
    """Import the modules that a process needed, so that later forks have them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    gc.collect()
    gc.freeze()  # or each fork would look through all of it again


def start(
    arguments: Sequence[str], log: Path, prepare: Callable[[], None] | None = None
) -> Process:
    """Fork a process that is `brim` with these arguments; `prepare` is called in it before."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return Process(process, log)
    code = 1
    try:
        with log.open("wb") as file, open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0)
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if prepare is not None:
            prepare()
        sys.argv = ["brim", *arguments]
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


@dataclass
class Process:
    """A forked process, what it says, and its exit code once it has ended."""

    number: int
    log: Path
    code: int | None = None

    def ends_within(self, seconds: float) -> bool:
        """Whether it ended, after at most so long."""
        until = time.monotonic() + seconds
        while self.code is None and time.monotonic() < until:
            ended, status = os.waitpid(self.number, os.WNOHANG)
            if ended:
                self.code = os.waitstatus_to_exitcode(status)
            else:
                time.sleep(0.002)
        return self.code is not None

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it still runs."""
        if self.code is None:
            os.kill(self.number, number)


def wait(process: Process, seconds: float = 300.0) -> End:
    """Wait until a process ends; kill it if it hangs."""
    if not process.ends_within(seconds):
        process.send(signal.SIGKILL)
        process.ends_within(60.0)
        process.code = None
    # One that was killed at once may not have begun its log.
    output = process.log.read_text(errors="replace") if process.log.exists() else ""
    process.log.unlink(missing_ok=True)
    return End(process.code, output)


def contents(out: Path) -> dict[str, str]:
    """Name -> hash of everything below a run directory that a seed decides."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.is_dir() or path.name.endswith(".lock") or path.name in _CLOCKS:
            continue
        data = path.read_bytes()
        if path.name in _OF_CLOCKS:
            values = _without_clocks(json.loads(data))
            values.pop("sha256", None)  # of the file itself
            data = json.dumps(values, sort_keys=True).encode()
        found[name] = hashlib.sha256(data).hexdigest()
    return found


def _without_clocks(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_clocks(v) for k, v in value.items() if k not in _CLOCK_KEYS}
    return value
