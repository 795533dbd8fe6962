import csv
import json

import pytest
from pairs import GPT2, LLAMA, T5

import brim.cli.analyze
from brim.analysis import (
    AnalyzedModel,
    analyze_variance,
    find_students,
    open_run,
    write_analysis,
)
from brim.analysis.subjects import Analysis, analyzed_objective, load_analyzed
from brim.cli import app
from brim.errors import ConfigError, RunError
from brim.examples import Example
from brim.runs.train import train
from brim.support.progress import Reporter

QUICK = ["--prompts", "6", "--samples", "4", "--k", "1,2,8", "--quiet"]


@pytest.fixture(scope="module")
def run(make_config, tmp_path_factory):
    """A run with two checkpoints of its pre-distilled student."""
    out = tmp_path_factory.mktemp("run") / "brim"
    config = make_config(
        T5, "trainer.max_steps=2", "student.predistill.trainer.save_every=1",
        "evaluation.num_resamples=100",
    )  # fmt: skip
    train(config, out)
    return out


def brim(*arguments):
    app([str(argument) for argument in arguments], standalone_mode=False)


def checkpoints(run):
    return next(run.glob("stages/predistill-*")) / "checkpoints"


def test_variance_of_students_along_the_way(run, tmp_path):
    steps = sorted(checkpoints(run).iterdir())
    before = sorted(run.rglob("*"))
    brim("analyze", "variance", run, "--students", *steps, "objective.baseline=mean",
         "--split", "test", "--out", tmp_path, *QUICK)  # fmt: skip
    assert sorted(run.rglob("*")) == before
    found = json.loads((tmp_path / "variance.json").read_text())
    assert found["objective"]["baseline"] == "mean"
    assert found["batch_prompts"] == 8
    assert [student["label"] for student in found["students"]] == [step.name for step in steps]
    for student in found["students"]:
        assert [(row["k"], row["tail"]) for row in student["rows"]] == [
            (1, "one_step"), (2, "one_step"), (8, "one_step"), (2, "none"), (8, "none"),
        ]  # fmt: skip
        one, _, eight, *_ = (row["numbers"] for row in student["rows"])
        assert one["bias_first"]["value"] == 0
        assert eight["variance_first"] == one["variance_first"]  # no longer than 8 tokens
        assert all(row["numbers"]["bias_tokens"]["value"] >= 0 for row in student["rows"])
        assert one["output_layer_gradient_variance"]["value"] > 0
        assert student["numbers"]["reverse_kl"]["value"] > 0
        assert len(student["prompts"]) == 6
    rows = list(csv.DictReader((tmp_path / "variance.csv").open()))
    value = found["students"][0]["rows"][3]["numbers"]["variance_tokens"]["value"]
    assert [float(row["value"]) for row in rows if row["student"] == steps[0].name
            and (row["k"], row["tail"], row["quantity"]) == ("2", "none", "variance_tokens")
            ] == [value]  # fmt: skip
    assert "## Which K?" in (tmp_path / "variance.md").read_text()
    assert (tmp_path / "variance.png").read_bytes().startswith(b"\x89PNG")


def test_theorem1_and_the_same_bytes_again(run, tmp_path):
    for name in ("a", "b"):
        brim("analyze", "theorem1", run, "--out", tmp_path / name, *QUICK, "--samples", 16)
    files = sorted((tmp_path / "a").iterdir())
    assert len(files) == 5
    for path in files:
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    found = json.loads((tmp_path / "a" / "theorem1.json").read_text())
    assert [fit["k"] for fit in found["students"][0]["fits"]] == [1, 2, 8]


def test_a_recipe_is_analysed_before_any_reinforcement_learning(write_recipe, tmp_path, capsys):
    recipe = write_recipe(LLAMA)
    brim("analyze", "variance", recipe, "evaluation.num_resamples=100", "objective.tail=none",
         "--out", tmp_path / "out", "--stages", tmp_path / "stages", *QUICK[:-1])  # fmt: skip
    said = capsys.readouterr().out
    assert "pre-distilled student: " in said
    assert "tables and figure: " in said
    assert {path.name.split("-")[0] for path in (tmp_path / "stages").iterdir()} == {
        "teacher", "teacher_outputs", "predistill",
    }  # fmt: skip
    found = json.loads((tmp_path / "out" / "variance.json").read_text())
    assert (found["objective"]["tail"], found["students"][0]["path"]) == ("none", None)
    with pytest.raises(ConfigError, match="--out"):
        brim("analyze", "variance", recipe, *QUICK)
    with pytest.raises(ConfigError, match=r"nosuch: no such recipe; .* nor is there such a run"):
        brim("analyze", "variance", "nosuch", *QUICK)


def check_lambdas(found, folder):
    paths = {path.suffix: path for path in write_analysis(found, folder / "out")}
    written = json.loads(paths[".json"].read_text())["students"][0]
    lambdas = [1, 0.9, 0.7, 0.6, 0.5, 0.3, 0]
    assert [row["lambda"] for row in written["rows"]] == lambdas
    assert written["choice"]["lambda"] in (None, *lambdas)
    assert written["prompts"][0].keys() == {"id", "length"}
    assert "## Which λ?" in paths[".md"].read_text()
    rows = list(csv.DictReader(paths[".csv"].open()))
    assert {float(row["lambda"] or 1) for row in rows} == set(lambdas)


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        (GPT2, ["objective.tail=none", "objective.reward.metric=chrf"]),
        (LLAMA, ["student.lora.r=2"]),
        (LLAMA, ["objective={name: ppo_brim, reward: {metric: chrf}}"]),
        (LLAMA, ["objective={name: kl}"]),
        (
            T5,
            [
                "objective={name: anchored, per_token: false, lambda: 0.6}",
                "objective.remaining_regret=learned",
                "objective.reward.metric=chrf",
            ],
        ),
    ],
    ids=["no tail", "lora", "ppo", "kl", "anchored"],
)
def test_other_objectives(make_config, tmp_path, model, settings):
    config = make_config(model, "trainer.max_steps=1", "evaluation.num_resamples=100", *settings)
    out = tmp_path / "run"
    train(config, out)
    opened = open_run(out)
    ks = None if "anchored" in settings[0] else [2]
    found = analyze_variance(opened, find_students([]), ks=ks, num_prompts=4, num_samples=2)
    student = found.students[0]
    if ks is None:
        assert found.objective["remaining_regret"] == "time_mean"
        check_lambdas(found, tmp_path)
        with pytest.raises(ConfigError, match="anchored"):
            analyze_variance(opened, find_students([]), ks=[2], num_prompts=4, num_samples=2)
        return
    assert {row.tail for row in student.rows} == {"one_step", "none"}
    assert found.objective["tail"] == ("none" if "tail" in settings[0] else "one_step")
    assert student.row(2, found.objective["tail"]).numbers["scaled_gradient_variance"].value > 0
    frozen = "lora" in settings[0]
    assert ("output_layer_gradient_variance" in student.rows[0].numbers) != frozen
    if "ppo" in settings[0]:
        assert (found.objective["baseline"], found.batch_prompts) == ("mean", 2)


def test_adapters_are_added_to_a_model_of_its_own(make_config, tmp_path):
    config = make_config(LLAMA, "trainer.max_steps=1", "student.lora.r=2")
    train(config, tmp_path / "run")
    opened = open_run(tmp_path / "run")
    for _ in range(2):
        student = load_analyzed(opened, AnalyzedModel("it"))
        assert student.num_trainable < opened.student().num_parameters


def test_rollouts_do_not_depend_on_how_many_are_written_at_once(run, monkeypatch):
    from brim.analysis import sampling

    opened = open_run(run)
    student = load_analyzed(opened, AnalyzedModel("it"))

    def draw():
        return sampling.draw_samples(
            analyzed_objective(opened.run), student, opened.teacher(),
            [Example("a", "write 7 in Roman numerals:"), Example("b", "write 91:")],
            num_samples=4, seed=3,
        ).rollout  # fmt: skip

    together = draw()
    monkeypatch.setattr(sampling, "ROWS", 1)
    apart = draw()
    assert (
        apart.completion_ids[apart.mask].tolist() == together.completion_ids[together.mask].tolist()
    )
    assert apart.batch.seeds == together.batch.seeds


def test_what_is_missing_is_said(run, tmp_path):
    with pytest.raises(ConfigError, match="holds no model"):
        brim("analyze", "variance", run, "--students", tmp_path, *QUICK)
    with pytest.raises(ConfigError, match="no list of whole numbers"):
        brim("analyze", "variance", run, "--k", "1,two", "--out", tmp_path, "--quiet")
    with pytest.raises(ConfigError, match="give integers of at least 1"):
        brim("analyze", "variance", run, "--k", "0,2", "--out", tmp_path, "--quiet")
    with pytest.raises(ConfigError, match="samples: 1 rollouts a prompt .* give a multiple of 2"):
        brim("analyze", "variance", run, "--out", tmp_path, *QUICK, "--samples", 1)
    for number in (1, -3):
        with pytest.raises(ConfigError, match=f"prompts: .* at least 2, not {number}"):
            brim("analyze", "variance", run, "--out", tmp_path, *QUICK, "--prompts", number)
    with pytest.raises(ConfigError, match="no number of tokens left occurs 32 times"):
        brim("analyze", "theorem1", run, "--out", tmp_path, *QUICK)
    with (
        pytest.warns(UserWarning, match="greedy rollouts"),
        pytest.raises(ConfigError, match="decoding.strategy"),
    ):
        brim("analyze", "variance", run, "decoding.strategy=greedy", "--out", tmp_path, *QUICK[:-1])
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="no run directory"):
        brim("analyze", "variance", tmp_path / "empty", *QUICK)


def test_folders_that_cannot_be_written_and_prompts_that_are_not_there_are_said_at_once(
    run, tmp_path, capsys, monkeypatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("brim.analysis.subjects.draw_samples", None)  # nothing is written before
    with pytest.raises(RunError, match="cannot write"):
        brim("analyze", "theorem1", run, "--out", tmp_path / "file" / "out", "--quiet")
    study = Analysis.plan(
        open_run(run, reporter=Reporter()), split="test", num_prompts=9999, num_samples=2, seed=0
    )
    assert f"test has {len(study.examples)}; all are taken" in capsys.readouterr().err
