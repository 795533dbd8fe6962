"""What quickstart prints: five systems and how much the methods gained, without any training."""

from __future__ import annotations

import re

import pytest
from run_folders import make_folder, results_of
from rundirs import write_run

from brim import quickstart as module
from brim.errors import RunError
from brim.support.progress import Reporter
from brim.sweep import Outcome

RETURNS = {"teacher": 9.0, "predistill": 1.0, "llmr": 2.0, "brim": 3.0, "anchored": 4.0}


def write_outputs(directory, name):
    """Each example's sampled return is the system's own and a bit of noise that all share."""
    scores = {"exact_match": 20.0, "expected_return": RETURNS[name], "length": 7.0}
    results = results_of(scores, num_parameters=12_345, seconds=61.4)
    rows = [
        {
            "id": f"word{i}", "prompt": "p", "references": ["R"], "text": "R", "num_tokens": 3,
            "sampled_text": f"{name} {i}", "sampled_return": RETURNS[name] + i % 3,
        }
        for i in range(6)
    ]  # fmt: skip
    write_run(directory, rows=rows, results=results)


@pytest.fixture
def started(monkeypatch):
    """What quickstart has others do, in order; runs and stages have results and no training."""
    stages = {"teacher": "teacher-1", "predistill": "predistill-1"}
    told = []

    def train(config, run, *, stages_dir, stages_only, **options):
        assert stages_only
        assert stages_dir == run.parent / "stages"
        told.append(f"stages of {run.name}")

    def run_sweep(todo, out, **options):
        told.append("sweep")
        for point in todo:
            assert point.arguments(out)[-4:-1] == ["--out", str(out / point.label), "--stages"]
            objective = point.config.objective.model_dump()
            assert (objective.get("baseline") == "time_mean") == (point.label != "anchored")
            manifest = {"stages_dir": "../stages", "stages": stages}
            make_folder(
                out / point.name, objective, point.seed, None, manifest=manifest, predictions=False
            )
            write_outputs(out / point.name, point.name)
        for name, folder in stages.items():
            write_outputs(out / "stages" / folder, name)
        return Outcome(tuple(point.name for point in todo), (), (), ())

    monkeypatch.setattr(module, "train", train)
    monkeypatch.setattr(module, "run_sweep", run_sweep)
    return told


@pytest.mark.parametrize(
    ("outcome", "text"),
    [
        (Outcome(("llmr",), ("brim",), (), ()), r"failed: brim\n.*logs"),
        (Outcome(("llmr",), (), ("brim",), ()), "another process is working on it; wait"),
    ],
)
def test_a_run_that_did_not_end_ends_it_with_what_to_do(
    outcome, text, tmp_path, started, monkeypatch
):
    monkeypatch.setattr(module, "run_sweep", lambda *args, **options: outcome)
    with pytest.raises(RunError, match=text):
        module.quickstart(tmp_path, seed=0, short=True, reporter=Reporter(quiet=True))


def test_five_systems_and_the_gains_are_printed(tmp_path, started):
    text = module.quickstart(tmp_path, seed=0, short=True, reporter=Reporter(quiet=True))
    assert started == ["stages of llmr", "sweep"]

    headline, table, differences = text.split("report:")[0].strip().split("\n\n")
    assert headline.startswith("With 100% of the teacher's parameters the student keeps 100% of")
    rows = [line.split() for line in table.splitlines()]
    for label, name in (
        ("teacher", "teacher"), ("pre-distilled", "predistill"),
        ("LLMR", "llmr"), ("BRIM", "brim"), ("anchored", "anchored"),
    ):  # fmt: skip
        mine = [row[row.index(label) + 1 :] for row in rows if label in row]
        assert mine[0] == ["20.0", "[19.0,", "21.0]"]
        assert mine[1][0] == f"{RETURNS[name]:.2f}"
        assert mine[3:] == [["12,345"], ["61"]]
    gains = [("LLMR", "pre-distilled", 1), ("BRIM", "pre-distilled", 2)]
    for label, before, gain in [*gains, ("anchored", "pre-distilled", 3), ("anchored", "LLMR", 2)]:
        # All differences are equal: there is no variance to make an interval of.
        line = rf"{label} minus {before} +\+{gain}.000 +[\d.e-]+$"
        assert re.search(line, differences, re.MULTILINE)
    assert f"brim generate {tmp_path / 'anchored'}" in text
    assert max(map(len, f"{table}\n{differences}".splitlines())) <= 80
    assert (tmp_path / "report" / "report.html").exists()
