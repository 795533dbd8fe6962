"""Seconds of real steps: of every stage that trains, with nothing left behind."""

import json
import tempfile

import makers
import pytest
from transformers import T5ForConditionalGeneration
from typer.testing import CliRunner

from brim.cli import app
from brim.errors import ConfigError, ModelError
from brim.plan import plan
from brim.plan.measure import shortened
from brim.runs.train import train
from brim.support.progress import Reporter
from brim.training.optimizer import training_stages

TINY = (
    "teacher.build={family: t5, d_model: 8, layers: 1, heads: 2, d_ff: 8}",
    "student.build={family: t5, d_model: 8, layers: 1, heads: 2, d_ff: 8}",
    "decoding={max_prompt_tokens: 24, max_tokens: 4}",
    *(f"{stage}trainer.rollout_batch_size=4" for stage in ("", "teacher.train.")),
    "evaluation.num_resamples=100",
)


def configure(*overrides):
    return makers.configure("cmudict/brim", *overrides)


def test_each_stage_that_trains_is_timed_and_nothing_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    result = CliRunner().invoke(app, ["plan", "cmudict/brim", *TINY, "--measure", "--json"])
    assert result.exit_code == 0, result.output
    stages = json.loads(result.stdout)["stages"]
    timed = {stage["name"] for stage in stages if stage["seconds"]}
    assert timed == {"teacher", "predistill", "brim"}
    assert list(tmp_path.iterdir()) == []


def test_what_is_measured_is_the_same_step_of_a_shorter_run():
    config = configure("teacher.train.trainer.max_steps=9")
    short = shortened(config)
    for (*_, before, _), (*_, after, _) in zip(
        training_stages(config), training_stages(short), strict=True
    ):
        assert (after.max_steps, after.num_epochs) == (2, None)
        kept = {"rollout_batch_size", "micro_batch_tokens", "dropout", "sharding"}
        assert before.model_dump(include=kept) == after.model_dump(include=kept)
    assert (short.objective, short.decoding) == (config.objective, config.decoding)
    assert shortened(configure("teacher.train=null")).teacher.train is None


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--measure", "--devices", "2"], "--measure: times one device"),
        (["--tflops", "3"], "--tflops: is for a sweep"),
    ],
)
def test_options_that_do_not_go_together(options, text):
    with pytest.raises(ConfigError, match=text):
        CliRunner().invoke(app, ["plan", "cmudict/brim", *options], catch_exceptions=False)


def test_a_model_that_training_refuses_is_refused_on_paper(monkeypatch):
    monkeypatch.setattr(T5ForConditionalGeneration, "supports_gradient_checkpointing", False)
    with pytest.raises(ModelError, match="gradient_checkpointing: T5"):
        plan(configure("trainer.gradient_checkpointing=true"))


def test_training_repeats_what_a_plan_says_of_warm_ups(tmp_path, monkeypatch, capsys):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("brim.runs.train.begin_run", stop)
    config = configure(*TINY, "optim.warmup_steps=10000")
    (warning,) = (w for w in plan(config).warnings if "warm-up" in w)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", reporter=Reporter())
    assert f"warning: {warning}" in capsys.readouterr().err
