from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier, BrokenBarrierError

import pytest
from rundirs import write_run

from brim.errors import RunError
from brim.runs.directory import RunDirectory
from brim.runs.evaluate import add_results
from brim.support.files import read_json


@pytest.fixture
def directory(tmp_path):
    return write_run(tmp_path, results={"n": 1}, split="train")


def test_results_of_another_split_are_kept_and_of_the_same_replaced(directory):
    add_results(directory, "train", {"n": 2})
    add_results(directory, "test", {"n": 3})
    assert read_json(directory / "results.json") == {
        "train": {"n": 2},
        "test": {"n": 3},
    }


def test_evaluations_that_end_at_once_lose_nothing(directory, monkeypatch):
    both_have_read = Barrier(2)

    splits_of = RunDirectory.splits

    def read_and_wait(*where):
        found = splits_of(*where)
        with suppress(BrokenBarrierError):
            both_have_read.wait(timeout=0.3)  # without turns both would get here
        return found

    monkeypatch.setattr(RunDirectory, "splits", read_and_wait)
    with ThreadPoolExecutor(2) as pool:
        splits = ("validation", "test")
        list(pool.map(lambda split: add_results(directory, split, {"n": split}), splits))
    assert set(read_json(directory / "results.json")) == {"train", *splits}


def test_a_damaged_file_is_named_and_left_alone(directory):
    (directory / "results.json").write_text("{")
    with pytest.raises(
        RunError, match=r"results.json: cannot be read: .*; remove it, and write it anew"
    ):
        add_results(directory, "test", {})
    assert (directory / "results.json").read_text() == "{"
