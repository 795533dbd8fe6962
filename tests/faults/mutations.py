"""Random damage to whole run directories: no command may then say other things without a word.

Two runs, one finished and one that was stopped, are damaged a file (or two) at a time. Every
command that reads a run is then asked, and at last training itself. Each must say what it says of
the sound run, or log a warning, or raise a `BrimError`. To say other things is *silent*, to raise
anything else a *traceback*.
"""

from __future__ import annotations

import json
import logging
import random
import shutil
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from transformers.utils.logging import disable_progress_bar

from brim.compare import compare
from brim.config.loading import load_config
from brim.errors import BrimError
from brim.judge.pairs import pairs_of, read_systems
from brim.models import Decoding
from brim.report.gather import gather
from brim.report.outputs import choose_outputs
from brim.report.records import results_of
from brim.report.seed_tests import all_tests
from brim.runs.directory import RunDirectory
from brim.runs.evaluate import evaluate_run
from brim.runs.generate import generate
from brim.runs.train import train
from brim.training.settings import RunConfig
from brim.training.trainer import Interrupted, Trainer

from .rows import Row

RECIPE = """\
task: {{name: files, train: {data}/train.jsonl, validation: {data}/validation.jsonl,
       test: {data}/test.jsonl, metrics: [exact_match, chrf]}}
teacher:
  tokenizer: {{kind: word}}
  build: {{family: t5, d_model: 16, d_ff: 16, layers: 1, heads: 2}}
  train: {{optim: {{lr: 1e-2}},
          trainer: {{max_steps: 4, rollout_batch_size: 8, evaluate_every: 2, save_every: 2}}}}
student:
  build: {{family: t5, d_model: 16, d_ff: 16, layers: 1, heads: 2}}
  predistill: {{optim: {{lr: 1e-2}},
               trainer: {{max_steps: 2, rollout_batch_size: 8, evaluate_every: 2}}}}
objective: {{name: brim, k: 2}}
decoding: {{max_prompt_tokens: 8, max_tokens: 4}}
optim: {{lr: 1e-2}}
trainer: {{max_steps: 4, rollout_batch_size: 4, evaluate_every: 2, save_every: 1}}
evaluation: {{num_samples: 2, num_resamples: 100}}
"""
_STOPPED_AT = 3


def run(seed: int, count: int, directory: Path) -> list[Row]:
    """Damage the runs `count` times.

    Args:
        seed: of the damage.
        count: how many times, one after the other.
        directory: to work in.

    Returns:
        A row a kind of damage.
    """
    disable_progress_bar()
    place = Place.make(directory / "mutations")
    expected = {name: place.observe(name) for name in ("finished", "stopped")}
    for answers in expected.values():
        failed = {name: answer for name, answer in answers.items() if answer.failed}
        assert not failed, f"the sound run fails: {failed}"
    rows = {kind: Row(f"damage: {kind}") for kind in KINDS}
    for number in range(count):
        draw = random.Random(f"{seed}/{number}")
        name, kind = draw.choice(list(expected)), list(KINDS)[number % len(KINDS)]
        place.bring_back(name)
        what = KINDS[kind](draw, place.runs / name)
        found = place.observe(name)
        faults = {
            command: fault
            for command, answer in found.items()
            if (fault := answer.fault(expected[name][command]))
        }
        told = [f"{fault} of {command} {found[command].failed or ''}"
                for command, fault in faults.items()]  # fmt: skip
        rows[kind].count(
            f"{seed}/{number}: {name}, {what}: {'; '.join(told)}" if faults else None,
            silent="silent" in faults.values(),
            traceback="traceback" in faults.values(),
        )
    return [row for row in rows.values() if row.tried]


class Answer(NamedTuple):
    """What a command made of a run.

    Attributes:
        value: what it said, as JSON.
        words: warnings, and the text of a `BrimError`.
        failed: a traceback.
    """

    value: str | None
    words: tuple[str, ...]
    failed: str | None

    def fault(self, expected: Answer) -> str | None:
        """What is wrong with it, compared with that of the sound run."""
        if self.failed:
            return "traceback"
        said = set(self.words) - set(expected.words)
        return None if self.value == expected.value or said else "silent"


class Place(NamedTuple):
    """Where the runs are, and sound copies of them.

    Attributes:
        runs: holds the folders `finished`, `stopped` and, never damaged, `other`.
        sound: holds copies of the first two.
        out: for what is written aside.
        config: of these runs.
    """

    runs: Path
    sound: Path
    out: Path
    config: RunConfig

    @classmethod
    def make(cls, directory: Path) -> Place:
        """Train the runs."""
        data = directory / "data"
        data.mkdir(parents=True)
        words = ["red", "green", "blue", "white", "black", "grey"]
        rows = [(f"{a} {b}", f"{b} {a}") for a in words for b in words]
        random.Random(0).shuffle(rows)
        for split, part in {
            "train": rows[:24], "validation": rows[24:30], "test": rows[30:],
        }.items():  # fmt: skip
            lines = [json.dumps({"prompt": prompt, "target": target}) for prompt, target in part]
            (data / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
        recipe = directory / "recipe.yaml"
        recipe.write_text(RECIPE.format(data=data))
        config = load_config(RunConfig, recipe)
        place = cls(directory / "runs", directory / "sound", directory / "out", config)
        train(load_config(RunConfig, recipe, ["seed=1"]), place.runs / "other")
        train(config, place.runs / "finished")
        with _stopping(_STOPPED_AT), suppress(Interrupted):
            train(config, place.runs / "stopped")
        for name in ("finished", "stopped"):
            shutil.copytree(place.runs / name, place.sound / name)
        return place

    def bring_back(self, name: str) -> None:
        """Put the sound run in its place."""
        shutil.rmtree(self.runs / name)
        shutil.copytree(self.sound / name, self.runs / name)

    def observe(self, name: str) -> dict[str, Answer]:
        """Ask every command of a run, training itself at last."""
        run, other = self.runs / name, self.runs / "other"
        shutil.rmtree(self.out, ignore_errors=True)
        commands: dict[str, Callable[[], Any]] = {
            "report": lambda: _report([run, other], self.out),
            "generate": lambda: list(
                generate(run, ["red blue", "grey green"], decoding=Decoding(max_tokens=4))
            ),
            "evaluate": lambda: _without_seconds(evaluate_run(run, out=self.out / "evaluation")),
        }
        if name == "finished":
            commands["compare"] = lambda: compare(run, other, num_resamples=20).as_dict()
            commands["judge"] = lambda: [
                repr(pair)
                for pair in pairs_of(*read_systems(run, other, "test"), max_examples=None, seed=0)
            ]
        answers = {command: ask(function) for command, function in commands.items()}
        answers["train"] = ask(lambda: self._train(run))
        return answers

    def _train(self, run: Path) -> Any:
        results = _without_seconds(train(self.config, run))
        files = [run / name for name in ("metrics.jsonl", "samples.jsonl", "config.yaml")]
        files += sorted((run / "best").iterdir())
        files.append(run / "predictions" / "test.jsonl")
        return results, {path.name: path.read_bytes().hex() for path in files if path.is_file()}


def ask(function: Callable[[], Any]) -> Answer:
    """Run a command and take down what it says."""
    words: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: words.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("brim")
    logger.addHandler(handler)
    try:
        return Answer(json.dumps(function()), tuple(words), None)
    except BrimError as error:
        newline = "\n" in str(error)
        return Answer(None, (*words, str(error)), f"two lines: {error}" if newline else None)
    except Exception:
        return Answer(None, tuple(words), traceback.format_exc())
    finally:
        logger.removeHandler(handler)


def _without_seconds(results: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in results.items() if key != "seconds"}


def _report(directories: list[Path], out: Path) -> Any:
    """All numbers and texts of a report; notes are what it says of damage."""
    found = gather(directories)
    notes: list[str] = []
    outputs, _ = choose_outputs(found, 100, notes)
    tests = {task.label: all_tests(task) for task in found.tasks}
    numbers = results_of(found, tests, out, "test", "LLMR", 0.05)
    for note in [*notes, *numbers.pop("notes"), *map(str, numbers.pop("unfinished"))]:
        logging.getLogger("brim").warning("%s", note)
    runs = [run for task in found.tasks for system in task.systems for run in system.runs]
    curves = [RunDirectory(run.directory).log("metrics.jsonl") for run in runs]
    return numbers, [repr(output) for output in outputs], curves, [run.text for run in runs]


@contextmanager
def _stopping(step: int) -> Iterator[None]:
    """Trainings of the objective stop after a step, as by Ctrl-C."""
    original = Trainer._count_step

    def count(self: Trainer, *args: Any) -> None:
        original(self, *args)
        self.stop_requested = self.state.step == step and self.directory.name == "stopped"

    Trainer._count_step = count  # type: ignore[method-assign]
    try:
        yield
    finally:
        Trainer._count_step = original  # type: ignore[method-assign]


# -- damage -----------------------------------------------------------------------------------


def _files(run: Path) -> list[Path]:
    return [path for path in sorted(run.rglob("*")) if path.is_file() and path.stat().st_size]


def _choose(draw: random.Random, run: Path) -> Path:
    """A file; as often one of the small ones of the run itself as one of all."""
    files = _files(run)
    near = [path for path in files if len(path.relative_to(run).parts) <= 2]
    return draw.choice(draw.choice([files, near]))


def flip(draw: random.Random, run: Path) -> str:
    """Turn over one bit of a file, or several."""
    path = _choose(draw, run)
    data = bytearray(path.read_bytes())
    for place in {draw.randrange(len(data)) for _ in range(draw.choice([1, 1, 1, 8]))}:
        data[place] ^= 1 << draw.randrange(8)
    path.write_bytes(data)
    return str(path.relative_to(run))


def truncate(draw: random.Random, run: Path) -> str:
    """Cut off the end of a file."""
    path = _choose(draw, run)
    data = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(data[:-1]) if byte == 10]  # of whole lines
    size = draw.choice(ends) if ends and draw.random() < 0.5 else draw.randrange(len(data))
    path.write_bytes(data[:size])
    return f"{path.relative_to(run)} to {size}"


def zero(draw: random.Random, run: Path) -> str:
    """Put zeros in place of a part of a file."""
    path = _choose(draw, run)
    data = bytearray(path.read_bytes())
    start = draw.randrange(len(data))
    end = min(len(data), start + draw.choice([1, 16, 512, 4096]))
    data[start:end] = bytes(end - start)
    path.write_bytes(data)
    return f"{path.relative_to(run)} [{start}:{end}]"


def delete(draw: random.Random, run: Path) -> str:
    """Delete a file."""
    path = _choose(draw, run)
    path.unlink()
    return str(path.relative_to(run))


def delete_folder(draw: random.Random, run: Path) -> str:
    """Delete a folder with all that is in it."""
    path = draw.choice([path for path in sorted(run.rglob("*")) if path.is_dir()])
    shutil.rmtree(path)
    return str(path.relative_to(run))


def swap_files(draw: random.Random, run: Path) -> str:
    """Exchange two files; half of the time two of one name, if there are."""
    first = _choose(draw, run)
    alike = [path for path in _files(run) if path != first and path.suffix == first.suffix]
    same = [path for path in alike if path.name == first.name]
    second = draw.choice(draw.choice([same or alike, alike]) or [first])
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)
    return f"{first.relative_to(run)} and {second.relative_to(run)}"


def swap_folders(draw: random.Random, run: Path) -> str:
    """Exchange two folders; half of the time two of one name, if there are."""
    folders = [path for path in sorted(run.rglob("*")) if path.is_dir()]
    first = draw.choice(folders)
    apart = [p for p in folders if p != first and first not in p.parents and p not in first.parents]
    same = [path for path in apart if path.name == first.name]
    second = draw.choice(draw.choice([same or apart, apart]))
    aside = run.parent / "aside"
    first.rename(aside)
    second.rename(first)
    aside.rename(second)
    return f"{first.relative_to(run)} and {second.relative_to(run)}"


def swap_ranges(draw: random.Random, run: Path) -> str:
    """Exchange two parts of one file, or of two."""
    first = _choose(draw, run)
    second = draw.choice([first, _choose(draw, run)])
    size = min(draw.choice([1, 8, 64, 1024]), first.stat().st_size // 2, second.stat().st_size // 2)
    a, b = bytearray(first.read_bytes()), bytearray(second.read_bytes())
    start, other = draw.randrange(len(a) - size + 1), draw.randrange(len(b) - size + 1)
    if first == second:
        start, other = (
            draw.randrange(len(a) // 2 - size + 1),
            len(a) // 2 + draw.randrange(len(a) - len(a) // 2 - size + 1),
        )
        b = a
    a[start : start + size], b[other : other + size] = (
        b[other : other + size], a[start : start + size],
    )  # fmt: skip
    first.write_bytes(a)
    second.write_bytes(b)
    return f"{first.relative_to(run)}[{start}] and {second.relative_to(run)}[{other}], {size} bytes"


KINDS: dict[str, Callable[[random.Random, Path], str]] = {
    "bits flipped": flip,
    "truncated": truncate,
    "zeros": zero,
    "file deleted": delete,
    "folder deleted": delete_folder,
    "files swapped": swap_files,
    "folders swapped": swap_folders,
    "ranges swapped": swap_ranges,
}
