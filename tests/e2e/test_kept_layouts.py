"""Run directories of version 0.2.0, as they were written then, still open everywhere.

The archive holds five runs on pairs of color words, with the stages that they share: BRIM and LLMR
with two seeds each, and `stopped`, which ended by a signal after step 3 of 4.
"""

import json
import subprocess
import sys
import tarfile
from hashlib import sha256
from pathlib import Path

import pytest

from brim.compare import compare
from brim.config.loading import load_config
from brim.errors import RunError
from brim.judge.pairs import pairs_of, read_systems
from brim.report.gather import gather
from brim.runs.directory import RunDirectory
from brim.runs.evaluate import evaluate_run
from brim.runs.train import train, update_manifest
from brim.training.settings import RunConfig

ARCHIVE = Path(__file__).parents[1] / "data" / "runs-0.2.0.tar.gz"
RUNS = ["brim-seed=0", "brim-seed=1", "llmr-seed=0", "llmr-seed=1"]


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        # Python before 3.11.4 has no filters.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)  # their data is named from there
    return tmp_path


def results(run: str) -> dict:
    return json.loads(Path(run, "results.json").read_text())["test"]


def test_evaluate_and_resume_go_on_from_them(runs, caplog):
    old = results(RUNS[0])
    new = evaluate_run(Path(RUNS[0]), out=Path("again"))
    assert {key: new[key] for key in ("model", "data", "steps", "best_step")} == {
        key: old[key] for key in ("model", "data", "steps", "best_step")
    }
    for name, score in old["scores"].items():
        assert new["scores"][name]["value"] == pytest.approx(score["value"], rel=1e-3, abs=1e-3)
    config = load_config(RunConfig, Path("colors.yaml"), ["seed=0"])
    before = {path: path.read_bytes() for path in Path(RUNS[0]).rglob("*.jsonl")}
    assert train(config, Path(RUNS[0]), stages_dir=Path("stages")) == old
    assert {path: path.read_bytes() for path in Path(RUNS[0]).rglob("*.jsonl")} == before
    config = load_config(RunConfig, Path("colors.yaml"), ["seed=2"])
    stages = sorted(path.name for path in Path("stages").iterdir())
    first = RunDirectory(Path("stopped")).log("metrics.jsonl")
    train(config, Path("stopped"), stages_dir=Path("stages"))
    assert results("stopped")["steps"] == 4
    assert RunDirectory(Path("stopped")).log("metrics.jsonl")[: len(first)] == first
    assert sorted(path.name for path in Path("stages").iterdir()) == stages
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize(
    ("changes", "label", "difference"),
    [
        (
            {"  k: 2\n": "  k: auto\n", "smoothing: 0.9": "smoothing: 0.5"},
            "BRIM (auto)",
            r"objective\.k: \"?auto\"? → 2",
        ),
        (
            {"phase: aligned": "phase: average"},
            "BRIM (K = 2) [phase = average]",
            r"objective\.phase: \"?average\"? → ",
        ),
    ],
    ids=["auto", "average"],
)
def test_a_run_of_what_is_gone_is_read_and_evaluated_and_not_resumed(
    runs, changes, label, difference
):
    run = Path(RUNS[0])
    text = run.joinpath("config.yaml").read_text()
    for old, gone in changes.items():
        assert old in text
        text = text.replace(old, gone)
    run.joinpath("config.yaml").write_text(text)
    update_manifest(run, {"config_sha256": sha256(text.encode()).hexdigest()})
    before, again = results(RUNS[0]), evaluate_run(run, out=Path("again"))
    for name, score in before["scores"].items():
        assert again["scores"][name]["value"] == pytest.approx(score["value"], rel=1e-3, abs=1e-3)
    assert label in {system.label for system in gather([run]).tasks[0].systems}
    config = load_config(RunConfig, Path("colors.yaml"), ["seed=0"])
    with pytest.raises(RunError, match=difference):
        train(config, run, stages_dir=Path("stages"))


def test_readers_say_what_the_runs_hold(runs):
    found = gather([Path(run) for run in (*RUNS, "stopped")])
    [task] = found.tasks
    read = {run.directory.name: run.results for system in task.systems for run in system.runs}
    assert set(read) == set(RUNS)
    assert read == {run: results(run) for run in RUNS}
    compared = compare(Path(RUNS[0]), Path(RUNS[2]), num_resamples=20).as_dict()
    for name in ("exact_match", "chrf", "return"):
        for side, run in (("a", RUNS[0]), ("b", RUNS[2])):
            value = results(run)["scores"][name]["value"]
            assert compared["metrics"][name][side]["value"] == pytest.approx(value)
    pairs = pairs_of(*read_systems(Path(RUNS[0]), Path(RUNS[2]), "test"), max_examples=None, seed=0)
    assert len(pairs) == results(RUNS[0])["num_examples"] == 6


@pytest.mark.parametrize("command", [["report", ".", "--out", "page"], ["compare", *RUNS[1:3]]])
def test_reading_them_needs_no_torch(runs, command):
    code = (
        "import sys; from brim.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert not {'torch', 'transformers', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "exact match" in done.stdout.lower()
