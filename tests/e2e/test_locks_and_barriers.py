"""The order in which a run of two processes takes locks and waits: another could wait for ever."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
from pairs import GPT2
from two_processes import by_two, run_script

from brim.config.loading import load_config
from brim.training.settings import RunConfig

# Training itself waits as often as it evaluates and saves.
OURS = ("brim.runs", "brim.training.partial", "brim.training.completions", "brim.training.acc")
SHORT = (
    "trainer.max_steps=1", "task.max_train_examples=20", "task.max_validation_examples=4",
    "task.max_test_examples=4", "evaluation.num_resamples=100",
)  # fmt: skip


def watch(path: Path) -> None:
    """Write down the locks that this process takes and frees, and where runs wait for others."""
    from accelerate import PartialState
    from filelock import FileLock

    def note(event: str) -> None:
        with path.open("a") as file:
            file.write(json.dumps(event) + "\n")

    wait, take, free = PartialState.wait_for_everyone, FileLock.acquire, FileLock.release

    def waiting(self):
        if sys._getframe(1).f_globals["__name__"].startswith(OURS):
            note("wait")
        wait(self)

    def name(lock: FileLock) -> str:
        place = Path(lock.lock_file)
        return re.sub(r"-[0-9a-f]{12}", "", f"{place.parent.name}/{place.name}")

    def taking(self, *args, **options):
        found = take(self, *args, **options)
        note(f"take {name(self)}")
        return found

    def freeing(self, force=False):
        if self.is_locked:
            note(f"free {name(self)}")
        free(self, force)

    PartialState.wait_for_everyone = waiting
    FileLock.acquire, FileLock.release = taking, freeing


def note_timeout(path: Path) -> None:
    """Write down how many seconds processes wait for each other."""
    import torch

    init = torch.distributed.init_process_group

    def noted(*args, timeout=None, **options):
        path.write_text(json.dumps(timeout and timeout.total_seconds()))
        init(*args, timeout=timeout, **options)

    torch.distributed.init_process_group = noted


def work(folder: Path) -> None:
    from brim.runs.evaluate import evaluate_run, evaluate_stage
    from brim.runs.train import train

    rank = os.environ["RANK"]
    config = load_config(RunConfig, folder / "numerals.yaml", SHORT)
    note_timeout(folder / f"timeout-{rank}.json")
    watch(folder / f"train-{rank}.jsonl")
    train(config, folder / "run")
    (folder / f"train-{rank}.jsonl").rename(folder / f"trained-{rank}.jsonl")
    train(config, folder / "run")
    (folder / f"train-{rank}.jsonl").rename(folder / f"again-{rank}.jsonl")
    evaluate_run(folder / "run", split="validation")
    evaluate_stage(folder / "run", "predistill")
    (folder / f"train-{rank}.jsonl").rename(folder / f"evaluated-{rank}.jsonl")


STAGE = ["wait", "take NAME/.lock", "wait"]  # its folder is made, then held
UNFINISHED = ["wait", "free NAME/.lock"]
WHOLE = ["wait", "wait", "free NAME/.lock"]  # all have looked before one may begin it again
EVALUATION = [
    "take predictions/.SPLIT.partial.lock", "wait", "take predictions/.results.lock",
    "free predictions/.results.lock", "wait", "free predictions/.SPLIT.partial.lock",
]  # fmt: skip


def stage(name: str, *events: list[str]) -> list[str]:
    return [event.replace("NAME", name) for part in (STAGE, *events) for event in part]


def evaluation_of(split: str) -> list[str]:
    return [event.replace("SPLIT", split) for event in EVALUATION]


OUTPUTS = ["wait", "wait"]  # for the file to be cut, and for its last line
EXPECTED = {
    "trained": [
        "take run/.lock", "wait",
        *stage("teacher", UNFINISHED),
        *stage("teacher_outputs", OUTPUTS, UNFINISHED),
        *stage("predistill", UNFINISHED),
        *evaluation_of("test"), "free run/.lock",
    ],
    "again": [
        "take run/.lock", "wait",
        *stage("teacher", WHOLE), *stage("teacher_outputs", WHOLE), *stage("predistill", WHOLE),
        "wait",  # for what a stopped test left to be removed
        "free run/.lock",
    ],
    "evaluated": [*evaluation_of("validation"), *evaluation_of("test")],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(write_recipe, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("watched")
    (folder / "numerals.yaml").write_text(write_recipe(GPT2).read_text())
    run_script(__file__, folder)
    return folder


@pytest.mark.parametrize("part", EXPECTED)
def test_locks_and_barriers_come_in_their_order(folder, part):
    first, second = (
        [json.loads(line) for line in (folder / f"{part}-{rank}.jsonl").open()] for rank in (0, 1)
    )
    assert first == EXPECTED[part]
    assert second == [event for event in first if event == "wait"]


def test_processes_wait_for_days_for_one_that_waits_for_another_launch(folder):
    for rank in (0, 1):
        assert json.loads((folder / f"timeout-{rank}.json").read_text()) > 24 * 3600


if __name__ == "__main__":
    by_two(lambda: work(Path(sys.argv[1])))
