"""From Python: rows and models in memory, callbacks, patience, results that print."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict
from pairs import roman
from two_processes import by_two, run_script

import brim
from brim.errors import CallbackError, ConfigError, DataError, ModelError, RunError
from brim.models import build_model, train_tokenizer
from brim.models.loading import describe_tokenizer
from brim.runs.directory import RunDirectory

ROWS = [{"prompt": f"write {n} in Roman numerals:", "completion": roman(n)} for n in range(1, 65)]
DATA = {"train": ROWS[:48], "validation": ROWS[48:56], "test": ROWS[56:]}
TINY = {"family": "llama", "d_model": 16, "d_ff": 32, "layers": 1, "heads": 2}
SHORT = {
    "decoding": {"max_prompt_tokens": 40, "max_tokens": 6},
    "evaluation": {"stages": False, "expected_returns": False, "num_samples": 1},
}


def loop(steps=4, **more):
    return {
        "max_steps": steps,
        "rollout_batch_size": 4,
        "evaluate_every": 2,
        "save_every": 1,
        **more,
    }


def make_pair():
    """A teacher and a student as transformers has them, and their tokenizer."""
    texts = (text for row in ROWS for text in row.values())
    tokenizer = train_tokenizer(texts, kind="bpe", vocab_size=300)
    teacher, student = (build_model(TINY, tokenizer, seed=seed).model for seed in (0, 1))
    return teacher, student, tokenizer


@pytest.fixture(scope="module")
def pair():
    return make_pair()


@pytest.fixture(scope="module")
def finished(pair, tmp_path_factory):
    """A run of rows and models in memory, and what it came to."""
    out = tmp_path_factory.mktemp("python") / "run"
    return brim.train(**given(pair), out=out, quiet=True)


def given(pair, **more):
    teacher, student, tokenizer = pair
    settings = {
        "task": DatasetDict({split: Dataset.from_list(rows) for split, rows in DATA.items()}),
        "teacher": (teacher, tokenizer),
        "student": student,
        "tokenizer": tokenizer,
        "objective": "anchored",
        "trainer": loop(),
        **SHORT,
    }
    return settings | more


def same_training(one, other):
    for name in ("metrics.jsonl", "samples.jsonl", "predictions/test.jsonl"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    weights = "best/model.safetensors"
    assert (one / weights).read_bytes() == (other / weights).read_bytes()


def test_a_run_of_what_is_in_memory(finished, pair):
    teacher, student, _ = pair
    config = finished.run.settings()
    assert config["objective"]["name"] == "anchored"
    assert config["task"]["prompt_column"] == "prompt"
    assert config["task"]["target_column"] == "completion"
    assert finished.facts["num_examples"] == len(DATA["test"])
    assert finished.facts["steps"] == 4
    # The models are as they were given, and in the run.
    kept = brim.load_model(finished.directory / "inputs" / "teacher").model.state_dict()
    assert all(torch.equal(kept[name], weight) for name, weight in teacher.state_dict().items())
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    trained = finished.load().model.state_dict()
    first = student.state_dict()
    assert finished.facts["best_step"] == 0 or any(
        not torch.equal(trained[name], first[name]) for name in first
    )


def test_a_result_prints_as_the_command_does(finished, brim_says):
    text = str(finished)
    assert text == repr(finished)
    assert "test split: 8 examples" in text
    assert f"<pre>{text[:20]}" in finished._repr_html_()
    assert finished.scores["exact_match"].low <= finished.scores["exact_match"].value
    steps = [step for step, _ in finished.curve("train/loss")]
    assert steps == [1, 2, 3, 4]
    assert [step for step, _ in finished.curve("eval/chrf")] == [0, 2, 4]
    assert len(list(finished.predictions())) == 8
    code, said, _ = brim_says("evaluate", finished.directory, "-q")
    assert (code, said) == (0, "")
    again = brim.evaluate(str(finished.directory), quiet=True)
    assert again.scores == finished.scores


def test_models_are_not_changed(pair, tmp_path):
    teacher, _, tokenizer = pair
    config, weights = copy.deepcopy(teacher.config), copy.deepcopy(teacher.state_dict())
    before = describe_tokenizer(tokenizer)
    brim.train(**given(pair, trainer=loop(1)), out=tmp_path / "run", quiet=True)
    assert teacher.config.to_dict() == config.to_dict()
    assert all(torch.equal(weights[name], now) for name, now in teacher.state_dict().items())
    assert describe_tokenizer(tokenizer) == before


def test_the_command_line_resumes_to_the_same_bits(pair, finished, tmp_path, brim_says):
    out = tmp_path / "run"

    def stop(state):
        if state.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        brim.train(**given(pair), out=out, callbacks=[stop], quiet=True)
    code, said, _ = brim_says("train", out / "config.yaml", "--out", out, "--resume", "must")
    assert code == 0, said
    same_training(out, finished.directory)
    # And Python finds all of it done.
    assert brim.train(**given(pair), out=out, quiet=True).scores == finished.scores


def test_a_run_keeps_what_it_began_with(finished, pair):
    out = finished.directory
    rows = {**DATA, "train": ROWS[:47]}
    with pytest.raises(RunError, match=r"other rows of task\.train .*choose another out"):
        brim.train(**given(pair, task=rows), out=out, quiet=True)
    _, student, tokenizer = pair
    with pytest.raises(RunError, match="began with another teacher"):
        brim.train(**given(pair, teacher=(student, tokenizer)), out=out, quiet=True)
    with pytest.raises(RunError, match=r"trainer\.max_steps: 4 → 5"):
        brim.train(**given(pair, trainer=loop(5)), out=out, quiet=True)


@pytest.mark.parametrize(
    ("more", "error", "text"),
    [
        ({"trainer": {"max_stepz": 3}}, ConfigError, "did you mean trainer.max_steps"),
        ({"trianer": {}}, ConfigError, "trianer: unknown key; did you mean trainer"),
        ({"overrides": {"optim.learning_rate": 1.0}}, ConfigError, "did you mean optim.lr"),
        ({"objective": "anchord"}, ConfigError, "did you mean anchored"),
        ({"trainer": {"max_steps": object()}}, ConfigError, "object is no type of a setting"),
        ({"task": []}, DataError, "task.train: no rows"),
        ({"task": ["a", 1]}, DataError, r"task.train\[0\]: str is no row"),
        ({"task": [{"prompt": {1, 2}}]}, DataError, r"task.train\[0\]: is no JSON"),
        ({"student": object()}, ModelError, "object is no model of transformers"),
        ({"student": 3}, ModelError, "int is no model of transformers"),
        ({"callbacks": [3]}, ConfigError, "int is no callback"),
    ],
)
def test_mistakes_are_a_line_and_leave_nothing(pair, tmp_path, more, error, text):
    out = tmp_path / "run"
    with pytest.raises(error, match=text) as caught:
        brim.train(**given(pair, **more), out=out, quiet=True)
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_a_model_needs_its_tokenizer_and_a_run_its_directory(pair, tmp_path):
    with pytest.raises(ModelError, match="student: a model in memory needs its tokenizer"):
        brim.train(**given(pair, tokenizer=None), out=tmp_path / "run")
    with pytest.raises(ConfigError, match="out: name the run directory"):
        brim.train(**given(pair))
    with pytest.raises(ModelError, match="teacher: a model in memory needs its tokenizer"):
        brim.plan(teacher=pair[0])


def test_a_plan_of_what_is_in_memory_is_that_of_its_files(pair, finished):
    plan, on_disk = brim.plan(**given(pair)), brim.plan(finished.directory / "config.yaml")
    assert plan.stages == on_disk.stages
    assert [model.name for model in plan.models] == ["teacher", "student"]
    inputs = f"{finished.directory / 'inputs'}{os.sep}"
    assert str(plan).split() == str(on_disk).replace(inputs, "").split()
    assert plan.stages[-1].num_examples == len(DATA["train"])
    assert pair[0].config.to_dict() == make_pair()[0].config.to_dict()


class Watch(brim.Callback):
    """Notes what it sees, and stops at a step."""

    def __init__(self, event="on_step", step=None):
        self.seen, self.event, self.step = [], event, step

    def note(self, event, state):
        self.seen.append((event, state.step))
        if (event, state.step) == (self.event, self.step):
            state.stop("seen enough")

    def on_step(self, state):
        assert state.metrics["train/loss"] is not None
        self.note("on_step", state)

    def on_evaluate(self, state):
        assert "chrf" in state.scores
        assert len(state.predictions) == 8
        self.note("on_evaluate", state)

    def on_save(self, state):
        assert (state.checkpoint / "model.safetensors").exists()
        self.note("on_save", state)


def test_callbacks_see_all_of_it(pair, tmp_path):
    watch = Watch()
    brim.train(**given(pair, trainer=loop(2)), out=tmp_path / "run", callbacks=[watch], quiet=True)
    assert watch.seen == [
        *(("on_evaluate", 0), ("on_step", 1), ("on_save", 1)),
        *(("on_step", 2), ("on_evaluate", 2), ("on_save", 2)),
    ]


@pytest.mark.parametrize(
    ("event", "step", "end"), [("on_step", 1, 1), ("on_evaluate", 2, 2), ("on_save", 2, 3)]
)
def test_a_callback_ends_the_training(pair, tmp_path, event, step, end):
    out, watch = tmp_path / "run", Watch(event, step)
    result = brim.train(**given(pair), out=out, callbacks=[watch], quiet=True)
    assert (result.facts["steps"], result.facts["stopped"]) == (end, "seen enough")
    assert ("on_evaluate", end) in watch.seen
    assert "ended early: seen enough" in str(result)
    assert result.run.results("test").stopped_at is None
    # It is over, also for who asks again without the callback.
    assert brim.train(**given(pair), out=out, quiet=True).facts["steps"] == end


def test_a_callback_that_fails_is_named_and_the_step_is_saved(pair, finished, tmp_path):
    out = tmp_path / "run"

    def divide(state):
        if state.step == 3:
            raise ZeroDivisionError("by nothing")

    with pytest.raises(CallbackError, match="divide failed in on_step at step 3: ZeroDivision"):
        brim.train(**given(pair), out=out, callbacks=[divide], quiet=True)
    assert (out / "checkpoints" / "step-3").exists()
    brim.train(**given(pair), out=out, quiet=True)
    same_training(out, finished.directory)


def test_callbacks_by_import_path(pair, tmp_path, monkeypatch):
    (tmp_path / "watching.py").write_text(
        "def second(state):\n    if state.step == 2:\n        state.stop('the second')\n\n\n"
        "class Needy:\n    def __init__(self, what):\n        pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    named = loop(callbacks=["watching:second"])
    result = brim.train(**given(pair, trainer=named), out=tmp_path / "run", quiet=True)
    assert result.facts["stopped"] == "the second"
    assert RunDirectory(tmp_path / "run").settings()["trainer"]["callbacks"] == ["watching:second"]
    for path, text in {
        "watching:third": "watching has no function third",
        "watchng:second": "watchng cannot be imported",
        "watching:Needy": "cannot be made without arguments",
        "watching": "no path of a function or class; write MODULE:NAME",
    }.items():
        with pytest.raises(ConfigError, match=text):
            brim.train(
                **given(pair, trainer=loop(callbacks=[path])), out=tmp_path / "no", quiet=True
            )


def test_patience_ends_the_training_and_resumes_to_the_same(pair, tmp_path):
    # The rate is so small that no text changes: every score stays what it was.
    still = {"optim": {"lr": 1e-12}, "trainer": loop(20, evaluate_every=1, patience=3)}
    whole = brim.train(**given(pair, **still), out=tmp_path / "whole", quiet=True)
    assert whole.facts["stopped"] == "no better chrf in 3 evaluations"
    assert whole.facts["steps"] == 3

    def stop(state):
        if state.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        brim.train(**given(pair, **still), out=tmp_path / "cut", callbacks=[stop], quiet=True)
    again = brim.train(**given(pair, **still), out=tmp_path / "cut", quiet=True)
    assert again.facts["stopped"] == whole.facts["stopped"]
    same_training(tmp_path / "cut", tmp_path / "whole")


def test_splits_are_carved_from_rows_as_from_a_file(pair, tmp_path):
    rows = {"train": ROWS, "validation_fraction": 0.2, "test_fraction": 0.2}
    result = brim.train(**given(pair, task=rows, trainer=loop(1)), out=tmp_path / "a", quiet=True)
    data = result.run.manifest()["data"]
    assert data["validation"]["carved"] == data["test"]["carved"] == 0.2
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    named = {**rows, "train": file}
    other = brim.train(**given(pair, task=named, trainer=loop(1)), out=tmp_path / "b", quiet=True)
    now = other.run.manifest()["data"]
    assert [data[split]["sha256"] for split in data] == [now[split]["sha256"] for split in now]


def test_the_other_commands(finished, tmp_path):
    run = str(finished.directory)
    comparison = brim.compare(run, finished.directory, num_resamples=100)
    assert comparison.metrics["chrf"].difference == 0
    assert str(comparison).startswith("A")
    assert "text" not in comparison.as_dict()
    report = brim.report(run, out=tmp_path / "report")
    assert (tmp_path / "report" / "report.html").exists()
    assert str(report) == report.text
    fewer = {"evaluation.num_resamples": 100, "evaluation": {"confidence": 0.5}}
    other = brim.evaluate(run, overrides=fewer, out=tmp_path / "other", quiet=True)
    assert other.scores["chrf"].value == finished.scores["chrf"].value
    assert other.scores["chrf"].confidence == 0.5
    with pytest.raises(RunError, match="has no best checkpoint"):
        other.load()
    with pytest.raises(ConfigError, match="need a folder of their own"):
        brim.evaluate(run, overrides=fewer, quiet=True)
    texts = brim.generate(run, "write 7 in Roman numerals:", max_tokens=3)
    assert len(texts) == 1
    assert brim.generate(run, ["write 7", "write 8"], max_tokens=3, temperature=0.5, seed=1)
    plan = brim.plan("cmudict/brim", trainer={"max_steps": 7})
    assert plan.stages[-1].num_steps == 7
    assert "most memory at once" in str(plan)
    assert brim.plan("cmudict/brim", overrides={"trainer.max_steps": 8}).stages[-1].num_steps == 8
    with pytest.raises(ConfigError, match="did you mean strategy"):
        brim.generate(run, "a", strateg="greedy")


@pytest.mark.parametrize(
    "code",
    [
        "from brim import compare, plan, report; import brim.compare, brim.plan, brim.report",
        "import brim.compare, brim.plan, brim.report; from brim import compare, plan, report",
        "import brim; compare, plan, report = brim.compare, brim.plan, brim.report",
        "from brim.compare.write import comparison_text; from brim.plan import as_text; "
        "from brim.report import summary; from brim import compare, plan, report",
    ],
)
def test_packages_are_commands_in_whatever_order_they_are_imported(code):
    check = (
        "import sys, brim; import brim.compare as package; from brim.compare import compare_runs\n"
        "assert compare is brim.compare is package is sys.modules['brim.compare']\n"
        "assert package.compare_runs is compare_runs\n"
        "try:\n    compare('nowhere', 'there')\nexcept brim.BrimError as error:\n    print(error)\n"
        "assert callable(plan) and callable(report) and plan.as_text and report.summary\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{check}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("nowhere: no such directory")


def test_importing_brim_imports_nothing_heavy():
    code = "import sys, brim; assert not {'torch', 'pydantic', 'rich'} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def work_by_two(folder):
    """In each of two processes, both with the same rows and models."""
    settings = given(make_pair(), trainer=loop(3))
    watch = Watch("on_step", 2)
    result = brim.train(**settings, out=folder / "stopped", callbacks=[watch], quiet=True)
    assert result.facts["steps"] == 2
    assert bool(watch.seen) == (os.environ["RANK"] == "0")

    def fail(state):
        raise ZeroDivisionError

    with pytest.raises(CallbackError):
        brim.train(**settings, out=folder / "failed", callbacks=[fail], quiet=True)


def test_a_stop_and_a_failure_are_for_all_processes(tmp_path):
    run_script(__file__, tmp_path)
    stopped, failed = (RunDirectory(tmp_path / name) for name in ("stopped", "failed"))
    assert stopped.results("test").facts["stopped"] == "seen enough"
    assert stopped.manifest()["num_processes"] == 2
    assert [path.name for path in (failed.path / "checkpoints").iterdir()] == ["step-1"]


if __name__ == "__main__":
    by_two(lambda: work_by_two(Path(sys.argv[1])))
