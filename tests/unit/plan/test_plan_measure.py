"""Seconds of real steps: of every stage that trains, with nothing left behind."""

import json
import tempfile
from dataclasses import replace

import makers
import pytest
from transformers import T5ForConditionalGeneration
from typer.testing import CliRunner

from brim.cli import app
from brim.errors import ConfigError, ModelError, RunError
from brim.plan import as_text, plan
from brim.plan.advice import Seen, advise, memory_warnings
from brim.plan.hours import Measured, Part
from brim.plan.measure import parts_of_run, shortened
from brim.plan.plan import Planner
from brim.runs.train import train
from brim.support.progress import Reporter
from brim.training.teacher_settings import TeacherConfig

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
    found = json.loads(result.stdout)
    timed = {stage["name"] for stage in found["stages"] if stage["seconds"]}
    assert timed == {"teacher", "predistill", "brim"}
    parts = {(part["stage"], part["what"]) for part in found["measured"]["parts"]}
    assert {("teacher_outputs", "example"), ("brim", "evaluation"), ("brim", "save")} <= parts
    assert {("test", name) for name in ("brim", "teacher", "predistill")} <= parts
    assert found["measured"]["hours"] > 0
    assert list(tmp_path.iterdir()) == []


def test_what_is_measured_is_the_same_step_of_a_shorter_run():
    config = configure("teacher.train.trainer.max_steps=9")
    short = shortened(config, Planner(config, 1), 3)
    for (*_, before, _), (*_, after, _) in zip(config.stages(), short.stages(), strict=True):
        assert (after.max_steps, after.num_epochs) == (4, None)
        kept = {"rollout_batch_size", "micro_batch_tokens", "dropout", "sharding"}
        assert before.model_dump(include=kept) == after.model_dump(include=kept)
    assert (short.objective, short.decoding) == (config.objective, config.decoding)
    loaded = configure("teacher.train=null")
    assert shortened(loaded, Planner(loaded, 1), 1).teacher.train is None


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--measure", "--devices", "2"], "--measure: times one device"),
        (["--tflops", "3"], "--tflops: is for a sweep"),
        (["--steps", "3"], "--steps: are those that --measure times"),
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


TIMED = ("time/step", "time/evaluation", "time/save")
STEP = {"time/rollout": 3.0, "time/teacher": 1.0, "time/update": 4.0, "time/step": 9.0}
SLOW = {key: 10 * seconds for key, seconds in STEP.items()}
TIMINGS = [
    {"step": 0, "time/evaluation": 50.0},
    {"step": 1, **SLOW},
    {"step": 2, **STEP},
    {"step": 3, **STEP},
    {"step": 3, "time/evaluation": 6.0},
    {"step": 3, "time/save": 2.0},
]
LOOPS = (
    "trainer={max_steps: 1000, evaluate_every: 10, save_every: 100, rollout_batch_size: 4}",
    "teacher.train.trainer={max_steps: 10, rollout_batch_size: 4}",
    "student.predistill.trainer={max_steps: 10, rollout_batch_size: 4}",
)
TOOK = {
    "reading train": (4.0, 40),
    "teacher": (1e6, 10),  # a training, whose log says more
    "teacher outputs": (20.0, 40),
    "brim on test": (30.0, 15),
}
COUNTS = {"train": (40, 4000), "validation": (20, 60), "test": (15, 150)}


def parts_of(*overrides, counts=COUNTS):
    config = configure(*TINY, *LOOPS, *overrides)
    timings = dict.fromkeys(("teacher", "predistill", "brim"), TIMINGS)
    return config, parts_of_run(config, timings, TOOK, counts, whole=1000.0)


def test_hours_are_measured_seconds_times_what_the_run_does():
    _, parts = parts_of()
    found = {(part.stage, part.what): (part.seconds, part.count) for part in parts}
    assert found["brim", "rollout"] == (3.0, 1000)
    assert found["brim", "rest"] == (1.0, 1000)
    assert found["brim", "evaluation"] == (6.0 * 3, 1 + 100)  # of 20 examples in place of 60
    assert found["brim", "save"] == (2.0, 10)
    assert found["teacher", "update"] == (4.0, 10)
    assert found["teacher_outputs", "example"] == (0.5, 4000)
    assert found["start", "reading train"] == (0.1, 4000)
    assert found["test", "brim"] == (2.0, 150)
    # All of the short run that is in no other part: each training took what its log has.
    known = 3 * sum(value for row in TIMINGS for key, value in row.items() if key in TIMED)
    assert found["start", "loading"] == (pytest.approx(1000 - known - 4 - 20 - 30), 1)
    order = list(dict.fromkeys(part.stage for part in parts))
    assert order == ["start", "teacher", "teacher_outputs", "predistill", "brim", "test"]
    hours = sum(seconds * count for seconds, count in found.values()) / 3600
    assert Measured(parts).hours == pytest.approx(hours)


def test_what_is_not_known_is_no_hours():
    unknown = {split: (few, None) for split, (few, _) in COUNTS.items()}
    _, parts = parts_of("trainer.max_steps=null", "trainer.num_epochs=1", counts=unknown)
    assert {part.hours for part in parts if part.stage in ("brim", "test")} == {None}
    assert Measured(parts).hours > 0


def test_a_stage_without_a_second_step_was_not_measured():
    config = configure(*TINY)
    timings = dict.fromkeys(("teacher", "predistill", "brim"), TIMINGS[:2])
    with pytest.raises(RunError, match="teacher: no step was measured"):
        parts_of_run(config, timings, {}, COUNTS, whole=1.0)


def advice_of(parts, *overrides, **seen):
    config = configure(*TINY, *LOOPS, *overrides)
    seen = Seen(**{"truncated": {}, "num_validation": 1000, "on_gpu": False, **seen})
    return {advice.setting: advice for advice in advise(Planner(config, 1), parts, seen)}


def shares(**seconds):
    """A run of 1,000 steps with these seconds of each, or of what happens every tenth step."""
    counts = {"evaluation": 1 + 100, "save": 10}
    return [Part("brim", what, each, counts.get(what, 1000)) for what, each in seconds.items()]


def test_evaluations_that_take_much_should_be_rarer():
    found = advice_of(shares(update=1.0, evaluation=10.0, save=1.0))
    rarer = found.pop("trainer.evaluate_every")
    assert (rarer.now, rarer.instead, rarer.at_most) == ("10", "200", False)
    # 5 evaluations in place of 100, and the one before.
    assert rarer.hours == pytest.approx(95 * 10.0 / 3600)
    assert "trainer.save_every" not in found
    assert rarer.why == "brim: evaluations take 50%"


def test_few_evaluations_should_be_of_fewer_examples():
    parts = [Part("brim", "update", 1.0, 100), Part("brim", "evaluation", 100.0, 3)]
    found = advice_of(parts, "trainer.evaluate_every=50")
    fewer = found["evaluation.max_validation_examples"]
    assert (fewer.now, fewer.instead) == ("1,000", "500")
    assert fewer.hours == pytest.approx(300 / 3600 / 2)


def test_writing_that_takes_much():
    parts = shares(rollout=7.0, update=3.0)
    assert "decoding.max_tokens" not in advice_of(parts)  # no text meets the limit
    found = advice_of(
        parts, "decoding.max_tokens=32", "decoding.batch_tokens=112", truncated={"brim": 0.25}
    )
    shorter, at_once = found["decoding.max_tokens"], found["decoding.batch_tokens"]
    assert (shorter.now, shorter.instead, shorter.at_most) == ("32", "16", True)
    assert shorter.hours == pytest.approx(7000 / 3600 / 2)
    # Rows of 24 + 32 tokens: two at a time of the four.
    assert (at_once.instead, at_once.hours) == ("224", pytest.approx(7000 / 3600 / 2))
    assert "decoding.engine" in advice_of(parts, on_gpu=True)
    assert next(iter(found)) in ("decoding.max_tokens", "decoding.batch_tokens")


def test_layers_that_are_passed_twice():
    parts = shares(rollout=1.0, update=9.0)
    found = advice_of(parts, "trainer.gradient_checkpointing=true")
    kept = found["trainer.gradient_checkpointing"]
    before, after = (
        plan(configure(*TINY, *LOOPS, f"trainer.gradient_checkpointing={value}")).stages[-1]
        for value in ("true", "false")
    )
    share = 1 - after.operations.update / before.operations.update
    assert 0 < share < 0.5
    assert kept.hours == pytest.approx(share * 9000 / 3600)


def test_tests_of_other_models():
    parts = [Part("test", name, 1.0, 3600) for name in ("brim", "teacher", "predistill")]
    twice = ("evaluation.metric=null", "evaluation.expected_returns=true")
    found = advice_of(parts, *twice)
    assert found["evaluation.stages"].hours == pytest.approx(2.0)
    assert "evaluation.stages" not in advice_of(parts, "evaluation.stages=false")
    assert found["evaluation.expected_returns"].hours == pytest.approx(1.5)


def test_a_server_that_is_waited_for():
    served = TeacherConfig(server="http://localhost:1", model="m")
    config = configure(*TINY, *LOOPS).model_copy(update={"teacher": served})
    seen = Seen({}, 1000, on_gpu=False)
    planner = Planner(configure(*TINY, *LOOPS), 1)
    planner.config = config
    found = {a.setting: a for a in advise(planner, shares(teacher=8.0, update=1.0), seen)}
    more = found["teacher.requests.concurrency"]
    assert (more.now, more.instead, more.hours) == ("8", "16", pytest.approx(8000 / 3600 / 2))


def test_what_saves_next_to_nothing_is_not_said():
    assert advice_of(shares(update=100.0, evaluation=1.0, save=1.0)) == {}


def test_a_phase_that_does_not_fit_says_what_makes_it_smaller():
    config = configure(*TINY)
    planned, planner = plan(config), Planner(config, 1)
    assert not [*memory_warnings(planned, planner, planned.peak_bytes)]
    found = [*memory_warnings(planned, planner, planned.peak_bytes - 1)]
    assert found
    every = " ".join(memory_warnings(planned, planner, 1))
    for setting in ("decoding.batch_tokens", "teacher.batch_tokens", "evaluation.batch_tokens"):
        assert f"lower {setting} from" in every
    assert "lower teacher.train.trainer.micro_batch_tokens from 8,192 to 4,096" in every


def test_the_text_has_hours_and_what_to_change_first():
    config, parts = parts_of()
    advice = advise(Planner(config, 1), parts, Seen({}, 60, on_gpu=False))
    text = as_text(replace(plan(config), measured=Measured(parts, advice)))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert any(line.startswith("brim rollout 3.00 1,000 0.833 ") for line in lines)
    assert any(line.startswith("run all - - ") and line.endswith("100.0%") for line in lines)
    assert "what to change first" in lines
    assert any(line.startswith("trainer.evaluate_every 10 ") for line in lines)
