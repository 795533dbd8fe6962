"""brim evaluate, end to end: other decodings, stops, processes."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from pairs import GPT2, T5
from test_train import rows
from two_processes import by_two, run_script
from typer.testing import CliRunner

from brim.cli import app
from brim.errors import ConfigError, RunError
from brim.runs.evaluate import evaluate_run
from brim.runs.train import train
from brim.training import predictions
from brim.training.partial import PartialResults

BEAM = ["evaluation.decoding.strategy=beam", "evaluation.decoding.num_beams=3"]
SAMPLES = ["evaluation.decoding.strategy=sampling", "evaluation.decoding.num_samples=3"]
FILES = ("predictions/test.jsonl", "results.json")


@pytest.fixture(scope="module")
def run(make_config, tmp_path_factory) -> Path:
    """A short run of each kind of model, in one folder."""
    folder = tmp_path_factory.mktemp("runs")
    for name, model in (("t5", T5), ("gpt2", GPT2)):
        train(make_config(model, "trainer.max_steps=2"), folder / name)
    return folder


def evaluate(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def contents(folder: Path) -> list[bytes]:
    assert not list(folder.rglob("*.partial.jsonl"))
    return [(folder / name).read_bytes() for name in FILES]


@pytest.mark.parametrize("model", ["t5", "gpt2"])
def test_beams(run, tmp_path, model):
    evaluate(run / model, *BEAM, "--out", tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())["test"]
    assert results["decoding"] == {
        "strategy": "beam", "num_beams": 3, "length_penalty": 1.0,
        "max_tokens": 8, "max_prompt_tokens": 40,
    }  # fmt: skip
    greedy = rows(run / model / "predictions" / "test.jsonl")
    found = rows(tmp_path / "predictions" / "test.jsonl")
    assert [row["id"] for row in found] == [row["id"] for row in greedy]
    assert [row["text"] for row in found] != [row["text"] for row in greedy]
    # The policy's own sample does not depend on how the text beside it is written.
    assert [row["sampled_text"] for row in found] == [row["sampled_text"] for row in greedy]
    assert all("samples" not in row for row in (*greedy, *found))


def test_samples(run, tmp_path):
    said = evaluate(run / "t5", *SAMPLES, "--out", tmp_path)
    assert "|samples:3" in said
    results = json.loads((tmp_path / "results.json").read_text())["test"]
    assert results["decoding"]["num_samples"] == 3
    found = rows(tmp_path / "predictions" / "test.jsonl")
    assert results["num_examples"] == len(found) == 23
    for row in found:
        assert [set(sample) for sample in row["samples"]] == [
            {"text", "num_tokens", "truncated", "teacher_return", "token_ids", "regrets"}
        ] * 3
        assert row["text"] == row["samples"][0]["text"]
        assert row["statistics"]["exact_match"][1] == 3
    cut = sum(sample["truncated"] for row in found for sample in row["samples"])
    assert results["num_truncated_completions"] == cut


def test_settings_of_the_run_itself_need_another_folder(run):
    result = CliRunner().invoke(app, ["evaluate", str(run / "t5"), *BEAM])
    assert "--out" in str(result.exception)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["teacher.build.d_ff=8"], r"^teacher\.build: .*teacher\.train=null"),
        (["teacher.path=OTHER"], r"^teacher\.path: .*teacher\.train=null"),
        (["student.path=OTHER", "student.build=null"], r"^student\.path: .*--model"),
        (["teacher.device=gpu"], r"^teacher\.device: 'gpu'"),
    ],
)
def test_another_model_is_never_left_out_in_silence(run, tmp_path, overrides, message):
    best = str(run / "t5" / "best")
    given = [override.replace("OTHER", best) for override in overrides]
    if "teacher.path" in given[0]:
        given += ["teacher.build=null", "teacher.tokenizer=null"]
    with pytest.raises(ConfigError, match=message):
        evaluate_run(run / "t5", out=tmp_path / "out", overrides=given)
    assert not (tmp_path / "out").exists()


def test_another_teacher_scores_where_training_is_taken_away(run, tmp_path):
    best = run / "t5" / "best"
    other = [f"teacher.path={best}", "teacher.build=null", "teacher.tokenizer=null"]
    evaluate(run / "t5", *other, "teacher.train=null", "--out", tmp_path)
    theirs = json.loads((tmp_path / "results.json").read_text())["test"]
    own = json.loads((run / "t5" / "results.json").read_text())["test"]
    assert theirs["teacher"] == own["model"] != own["teacher"]


def test_a_stage_is_evaluated_in_its_own_folder(run):
    stages = json.loads((run / "t5" / "manifest.json").read_text())["stages"]
    evaluate(run / "t5", "--stage", "predistill", "--split", "validation")
    (folder,) = (run / "t5" / "stages").glob(f"*{stages['predistill']}*")
    results = json.loads((folder / "results.json").read_text())
    assert results["validation"]["num_examples"] == 16
    assert len(rows(folder / "predictions" / "validation.jsonl")) == 16


def test_a_stage_is_evaluated_as_the_run_says(run, tmp_path):
    result = CliRunner().invoke(
        app, ["evaluate", str(run / "t5"), "--stage", "teacher", "--out", str(tmp_path)]
    )
    assert "--stage" in str(result.exception)


@pytest.mark.parametrize("settings", [[], BEAM, SAMPLES], ids=["greedy", "beam", "samples"])
def test_ctrl_c_and_again_gives_the_same_files(run, tmp_path, monkeypatch, settings):
    monkeypatch.setattr(predictions, "BLOCK", 6)
    evaluate(run / "t5", *settings, "--out", tmp_path / "whole")
    arguments = [run / "t5", *settings, "--out", tmp_path / "stopped", "-q"]
    with monkeypatch.context() as patch:
        patch.setattr(PartialResults, "append", stopping(1))
        result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    assert result.exit_code == 130
    assert "the same command goes on" in result.output
    assert not (tmp_path / "stopped" / "results.json").exists()
    partial = tmp_path / "stopped" / "predictions" / ".test.partial.jsonl"
    assert len(partial.read_bytes().splitlines()) == 2
    written = []
    monkeypatch.setattr(PartialResults, "append", counting(written))
    evaluate(*arguments)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")
    assert sum(written) == 23 - (2 if settings is SAMPLES else 6)


def stopping(blocks: int):
    """`PartialResults.append` that is interrupted after so many blocks."""
    left, append = [blocks], PartialResults.append

    def stopped(self, block):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        append(self, block)

    return stopped


def counting(written: list[int]):
    append = PartialResults.append

    def counted(self, block):
        written.append(len(block.predictions))
        append(self, block)

    return counted


def test_other_settings_throw_the_finished_blocks_away(run, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(predictions, "BLOCK", 6)
    with monkeypatch.context() as patch:
        patch.setattr(PartialResults, "append", stopping(2))
        with pytest.raises(KeyboardInterrupt):
            evaluate_run(run / "t5", out=tmp_path / "out")
    caplog.set_level("WARNING", logger="brim")  # which `-q` has made silent
    evaluate_run(run / "t5", out=tmp_path / "out", overrides=["evaluation.batch_tokens=64"])
    assert "decoding, sampling; thrown away" in caplog.text
    evaluate_run(run / "t5", out=tmp_path / "whole", overrides=["evaluation.batch_tokens=64"])
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_run_that_stopped_in_its_test_goes_on_there(
    run, make_config, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(predictions, "BLOCK", 6)
    config = make_config(T5, "trainer.max_steps=2")
    stages = run / "t5" / "stages"
    train(config, tmp_path / "whole", stages_dir=stages)
    with monkeypatch.context() as patch:
        patch.setattr(PartialResults, "append", stopping(3))
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "stopped", stages_dir=stages)
    written = []
    monkeypatch.setattr(PartialResults, "append", counting(written))
    train(config, tmp_path / "stopped", stages_dir=stages)
    assert sum(written) == 5
    name = FILES[0]
    assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    scores = [
        json.loads((tmp_path / folder / "results.json").read_text())["test"]["scores"]
        for folder in ("stopped", "whole")
    ]
    assert scores[0] == scores[1]
    # A kill just after the results were written: what was finished is left, and cleared away.
    with monkeypatch.context() as patch:
        patch.setattr(PartialResults, "remove", lambda partial: None)
        train(make_config(T5, "trainer.max_steps=1"), tmp_path / "left", stages_dir=stages)
    assert list((tmp_path / "left" / "predictions").glob(".test.partial.json*"))
    train(make_config(T5, "trainer.max_steps=1"), tmp_path / "left", stages_dir=stages)
    assert not list((tmp_path / "left" / "predictions").glob(".test.partial.json*"))


def test_the_teacher_is_picked_by_greedy_text_whatever_the_evaluation(run, make_config, tmp_path):
    """Runs that differ in their evaluation share stages."""
    stages = tmp_path / "stages"
    shutil.copytree(run / "t5" / "stages", stages)
    before = sorted(path.name for path in stages.iterdir())
    config = make_config(T5, "trainer.max_steps=1", *BEAM)
    results = train(config, tmp_path / "run", stages_dir=stages)
    assert results["decoding"]["strategy"] == "beam"
    assert sorted(path.name for path in stages.iterdir()) == before


def test_two_processes_stop_and_go_on(run, tmp_path):
    run_script(__file__, run / "t5", tmp_path)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")
    evaluate(run / "t5", *SAMPLES, "--out", tmp_path / "one")
    one, two = (rows(tmp_path / name / FILES[0]) for name in ("one", "whole"))
    for ours, theirs in zip(one, two, strict=True):
        assert ours.pop("teacher_return") == pytest.approx(theirs.pop("teacher_return"), rel=1e-4)
        assert ours["token_ids"] == theirs["token_ids"]
        assert [s["text"] for s in ours["samples"]] == [s["text"] for s in theirs["samples"]]
        assert ours["statistics"] == theirs["statistics"]


def test_a_folder_in_use_is_refused(run, tmp_path):
    evaluate_run(run / "t5", out=tmp_path)
    partial = PartialResults(tmp_path / "predictions" / ".test.partial.jsonl", {})
    with partial.opened(), pytest.raises(RunError, match="another process is writing"):
        evaluate_run(run / "t5", out=tmp_path)


def work(run: Path, folder: Path) -> None:
    """What each of two processes does."""
    predictions.BLOCK = 6
    evaluate_run(run, out=folder / "whole", overrides=SAMPLES)
    append, PartialResults.append = PartialResults.append, stopping(2)
    with pytest.raises(KeyboardInterrupt):
        evaluate_run(run, out=folder / "stopped", overrides=SAMPLES)
    PartialResults.append = append
    evaluate_run(run, out=folder / "stopped", overrides=SAMPLES)


if __name__ == "__main__":
    by_two(lambda: work(*map(Path, sys.argv[1:])))
