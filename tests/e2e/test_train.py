"""The main job, end to end, on tiny models of both kinds."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from listening import Listener
from pairs import LLAMA, QWEN2, T5
from rundirs import change_results
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from brim.cli.process import flush_denormals
from brim.compare.ending import ending
from brim.errors import NonFiniteError, RunError
from brim.metrics.regrets import REGRETS
from brim.models import Decoding
from brim.objectives.policy_gradient import PolicyGradient
from brim.runs import stage_results
from brim.runs.directory import RunDirectory
from brim.runs.evaluate import evaluate_run, evaluate_stage
from brim.runs.generate import generate
from brim.runs.stage_results import evaluate_stages
from brim.runs.tested import find_tested
from brim.runs.train import train


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    newest = max((run / "checkpoints").iterdir(), key=lambda p: int(p.name.removeprefix("step-")))
    files = [newest / "model.safetensors", *newest.glob("adapters.safetensors")]
    return {name: weight for file in files for name, weight in load_file(file).items()}


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    predictions = "predictions/test.jsonl"
    assert (one / predictions).read_bytes() == (other / predictions).read_bytes()


@pytest.fixture(scope="module")
def finished(make_config, tmp_path_factory):
    """`finished(model)` is an uninterrupted run and the folder of its stages."""
    runs = {}

    def run(model: str) -> tuple[Path, Path]:
        if model not in runs:
            folder = tmp_path_factory.mktemp("finished")
            train(make_config(model), folder / "run", stages_dir=folder / "stages")
            runs[model] = folder / "run", folder / "stages"
        return runs[model]

    return run


@pytest.mark.parametrize("model", [T5, LLAMA], ids=["t5", "llama"])
def test_run_directory(finished, model):
    run, _ = finished(model)
    results = json.loads((run / "results.json").read_text())["test"]
    assert results["num_examples"] == 23
    scores = {"exact_match", "ter", *REGRETS, *REGRETS.values(), "length"}
    assert set(results["scores"]) == scores
    score = results["scores"]["return"]
    assert score["low"] <= score["value"] <= score["high"]

    predictions = rows(run / "predictions" / "test.jsonl")
    mean = sum(row["teacher_return"] for row in predictions) / len(predictions)
    assert score["value"] == pytest.approx(mean)
    mean = sum(row["sampled_return"] for row in predictions) / len(predictions)
    assert results["scores"]["expected_return"]["value"] == pytest.approx(mean)

    lines = rows(run / "metrics.jsonl")
    steps = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    for line in steps:
        assert line["rollout/bias"] >= 0
        assert line["rollout/length"] <= 8
        assert {"policy/entropy", "policy/kl_to_teacher", "optim/grad_norm"} <= line.keys()
        assert not any(key.startswith("time/") for key in line)
    assert [line["step"] for line in lines if "eval/exact_match" in line] == [0, 2, 4, 6]
    timings = rows(run / "timings.jsonl")
    of_steps = [line for line in timings if "time/step" in line]
    assert [line["step"] for line in of_steps] == [1, 2, 3, 4, 5, 6]
    assert {"time/rollout", "time/teacher", "time/update"} <= of_steps[0].keys()
    assert [line["step"] for line in timings if "time/evaluation" in line] == [0, 2, 4, 6]
    assert [line["step"] for line in timings if "time/save" in line][-1] == 6
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step-5", "step-6"]

    reader = AutoModelForSeq2SeqLM if model == T5 else AutoModelForCausalLM
    reader.from_pretrained(run / "best")


def test_stages_alone_are_those_that_the_run_then_begins_with(finished, make_config, tmp_path):
    whole, stages = finished(T5)
    run = tmp_path / "run"
    assert train(make_config(T5), run, stages_dir=tmp_path / "stages", stages_only=True) == {}
    assert {p.name for p in (tmp_path / "stages").iterdir()} == {p.name for p in stages.iterdir()}
    assert not (run / "checkpoints").exists()
    assert not (run / "best").exists()
    train(make_config(T5), run, stages_dir=tmp_path / "stages")
    expected = weights(whole)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(run).items())


def test_stages_data_order_and_seeds_are_shared(finished, make_config, tmp_path):
    run, stages = finished(T5)
    before = {path: path.stat().st_mtime_ns for path in stages.rglob("*") if path.is_file()}
    assert {path.name.rsplit("-", 1)[0] for path in stages.iterdir()} == {
        "teacher", "teacher_outputs", "predistill",
    }  # fmt: skip
    train(make_config(T5, "objective={name: llmr}"), tmp_path / "llmr", stages_dir=stages)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    # Before the first update two methods see the same prompts and write the same text.
    first, other = (
        next(row for row in rows(folder / "metrics.jsonl") if "train/loss" in row)
        for folder in (run, tmp_path / "llmr")
    )
    for key in ("rollout/return", "rollout/length", "policy/entropy"):
        assert first[key] == other[key]
    assert other["rollout/var_return_k"] == first["rollout/var_return"]

    changed = "student.predistill.trainer.max_steps=2"
    train(make_config(T5, changed), tmp_path / "changed", stages_dir=stages)
    names = [path.name.rsplit("-", 1)[0] for path in stages.iterdir()]
    assert sorted(names) == ["predistill", "predistill", "teacher", "teacher_outputs"]


def test_seqkd_learns_the_teacher_outputs(make_config, finished, tmp_path):
    _, stages = finished(T5)
    config = make_config(T5, "objective={name: seqkd}", "student.predistill=null", "optim.lr=5e-3",
                         "trainer.max_steps=40", "trainer.rollout_batch_size=32",
                         "trainer.evaluate_every=40")  # fmt: skip
    train(config, tmp_path / "run", stages_dir=stages)
    metrics = rows(tmp_path / "run" / "metrics.jsonl")
    losses = [row["train/loss"] for row in metrics if "train/loss" in row]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_gradient_does_not_depend_on_micro_batches(make_config, tmp_path):
    losses = {}
    for size in (8192, 100):
        run = tmp_path / str(size)
        config = make_config(
            QWEN2, f"trainer.micro_batch_tokens={size}",
            "teacher.build.dropout=0.0", "student.build.dropout=0.0",
        )  # fmt: skip
        train(config, run, stages_dir=tmp_path / "stages")
        losses[size] = [
            (r["train/loss"], r["optim/grad_norm"])
            for r in rows(run / "metrics.jsonl") if "train/loss" in r
        ]  # fmt: skip
    for one, other in zip(losses[8192], losses[100], strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def poison(monkeypatch, steps: set[int]) -> None:
    """Let the weights of some steps' tokens be NaN; a step is known by its first row's seed."""
    original, calls = PolicyGradient.assign_credit, iter(range(1, 1000))

    def poisoned(self, rollout, values, student=None):
        rollout, sums = original(self, rollout, values, student)
        if next(calls) in steps:
            rollout.advantages[0, 0] = float("nan")
        return rollout, sums

    monkeypatch.setattr(PolicyGradient, "assign_credit", poisoned)


def test_nonfinite_step_is_skipped(finished, make_config, tmp_path, monkeypatch, caplog):
    _, stages = finished(T5)
    poison(monkeypatch, {2, 3})
    train(make_config(T5), tmp_path / "run", stages_dir=stages)
    steps = [r for r in rows(tmp_path / "run" / "metrics.jsonl") if "train/loss" in r]
    assert [r["optim/skipped"] for r in steps] == [0, 1, 1, 0, 0, 0]
    assert "step 2" in caplog.text
    # The one example whose weights were not finite is named, and no other.
    [named] = set(re.findall(r"step 2:.*examples ([^)]*)\)", caplog.text))
    assert "," not in named
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "run").values())


def test_five_nonfinite_steps_stop_the_run(finished, make_config, tmp_path, monkeypatch):
    _, stages = finished(T5)
    poison(monkeypatch, set(range(2, 100)))
    config = make_config(T5, "trainer.max_steps=20")
    with pytest.raises(NonFiniteError, match="5 steps in a row"):
        train(config, tmp_path / "run", stages_dir=stages)
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "run").values())


def test_a_stage_that_spoils_the_weights_names_its_own_settings(make_config, tmp_path):
    config = make_config(T5, "student.predistill.optim.lr=1e38")
    with pytest.raises(NonFiniteError, match=r"lower student\.predistill\.optim\.lr"):
        train(config, tmp_path / "run", stages_dir=tmp_path / "stages")


@pytest.mark.parametrize("setting", ["optim.eps=1e-45", "optim.lr=1e38", "optim.lr=1e12"])
def test_an_update_that_spoils_the_weights_is_not_saved(finished, make_config, tmp_path, setting):
    _, stages = finished(T5)
    flush_denormals(True)  # as the command line does; 0 / 1e-45 is then NaN
    try:
        with pytest.raises(NonFiniteError, match=r"best/ of step 0 was saved .* is intact"):
            train(make_config(T5, setting), tmp_path / "run", stages_dir=stages)
    finally:
        flush_denormals(False)
    assert not list((tmp_path / "run").glob("checkpoints/*"))
    kept = load_file(tmp_path / "run" / "best" / "model.safetensors")
    start = load_file(next(stages.glob("predistill-*")) / "best" / "model.safetensors")
    assert all(torch.equal(kept[name], start[name]) for name in start)
    evaluate_run(tmp_path / "run")


def test_evaluate_again_gives_the_same_numbers_wherever_the_folder_is(finished, tmp_path):
    run, _ = finished(T5)
    shutil.copytree(run.parent, tmp_path / "moved")
    first = json.loads((run / "results.json").read_text())["test"]["scores"]
    for folder in (run, tmp_path / "moved" / run.name):
        assert evaluate_run(folder)["scores"] == first


def test_what_a_run_began_with_is_tested_once(finished, tmp_path, monkeypatch):
    name = finished(T5)[0].name
    shutil.copytree(finished(T5)[0].parent, tmp_path / "own")
    run, stages = tmp_path / "own" / name, tmp_path / "own" / "stages"
    tested = evaluate_stages(run)
    assert {path.parent for path in tested.values()} == {stages}
    assert [*tested] == ["teacher", "predistill"]

    def evaluate(run, name, *, split, out, reporter):
        others.append((name, out.name))
        return evaluate_stage(run, name, split=split, out=out, reporter=reporter)

    others: list[tuple[str, str]] = []
    monkeypatch.setattr(stage_results, "evaluate_stage", evaluate)
    assert evaluate_stages(run) == tested
    assert others == []

    # What another run tested with other decoding stays, and ours goes beside it, once.
    teacher = tested["teacher"]
    change_results(teacher, decoding={"strategy": "beam"})
    beside = evaluate_stages(run)["teacher"]
    assert others == [("teacher", beside.name)]
    assert beside.name.startswith(f"{teacher.name}-")
    assert evaluate_stages(run)["teacher"] == beside
    assert len(others) == 1
    assert RunDirectory(teacher).results("test").facts["decoding"] == {"strategy": "beam"}

    # Fewer scores, or a model that was trained again, do not count.
    change_results(beside, scores={})
    change_results(tested["predistill"], seconds=-1.0)
    assert evaluate_stages(run) == {**tested, "teacher": beside}
    assert len(others) == 3
    assert find_tested(RunDirectory(run), "test") == {**tested, "teacher": beside}
    assert "student minus start" in ending(RunDirectory(run))


def test_generate_depends_on_the_prompt_only(finished):
    run, _ = finished(T5)
    prompts = [f"write {number} in Roman numerals:" for number in (12, 7, 88)]
    decoding = Decoding(strategy="greedy", max_tokens=8)
    texts = list(generate(run, prompts, decoding=decoding, block=2))
    assert len(texts) == 3
    assert list(generate(run, prompts[::-1], decoding=decoding)) == texts[::-1]


def test_prompts_without_targets(finished, make_config, tmp_path):
    """Reinforcement learning needs no targets: the return picks the checkpoint."""
    _, stages = finished(T5)
    teacher = next(stages.glob("teacher-*")) / "best"
    student = next(stages.glob("predistill-*")) / "best"
    config = make_config(
        T5, f"teacher.path={teacher}", "teacher.build=null", "teacher.tokenizer=null",
        "teacher.train=null", f"student.path={student}", "student.build=null",
        "student.predistill=null", "task.target_column=null", "evaluation.metric=return",
    )  # fmt: skip
    listener = Listener()
    results = train(config, tmp_path / "run", reporter=listener)
    assert set(results["scores"]) == {*REGRETS, *REGRETS.values(), "length"}
    for role, folder in (("teacher", teacher), ("student", student)):
        said = rf"{role} from {folder}: T5\w+, [\d,]+ parameters, float32 on \w+(:\d)?(, \d+ s)?"
        assert any(re.fullmatch(said, line) for line in listener.lines), listener.lines


def test_student_from_teacher_layers(finished, make_config, tmp_path):
    _, stages = finished(LLAMA)
    config = make_config(LLAMA, "student.build=null", "student.keep_layers=1")
    train(config, tmp_path / "run", stages_dir=stages)
    settings = json.loads((tmp_path / "run" / "best" / "config.json").read_text())
    assert settings["num_hidden_layers"] == 1


def test_foreign_directories_are_refused(finished, make_config, tmp_path):
    run, stages = finished(T5)
    before = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(RunError, match=r"other settings \(optim.lr: [\d.e-]+ → 0.5\);"):
        train(make_config(T5, "optim.lr=0.5"), run, stages_dir=stages)
    with pytest.raises(RunError, match="holds a run already"):
        train(make_config(T5), run, stages_dir=stages, resume="never")
    with pytest.raises(RunError, match="no run to resume"):
        train(make_config(T5), tmp_path / "new", stages_dir=stages, resume="must")
    assert not (tmp_path / "new").exists()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("mine")
    with pytest.raises(RunError, match="diary.txt"):
        train(make_config(T5), tmp_path / "notes", stages_dir=stages)
    assert (run / "metrics.jsonl").read_bytes() == before


def test_changed_data_is_refused(make_config, numerals, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(numerals, data)
    splits = [f"task.{split}={data}/{split}.jsonl" for split in ("train", "validation", "test")]
    config = make_config(T5, *splits, "trainer.max_steps=1")
    train(config, tmp_path / "run")
    lines = (data / "train.jsonl").read_text().splitlines(keepends=True)
    (data / "train.jsonl").write_text("".join(lines[:-1]))
    before = (tmp_path / "run" / "manifest.json").read_bytes()
    with pytest.raises(RunError, match="data is not what this run was begun with"):
        train(config, tmp_path / "run")
    assert (tmp_path / "run" / "manifest.json").read_bytes() == before
