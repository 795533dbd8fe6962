import json
import math
import sys
from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brim.errors import ConfigError, RunError
from brim.training.tracking import Tracker, check_backends

FILES = ("metrics.jsonl", "timings.jsonl", "samples.jsonl")


def log_steps(tracker, steps, scale=1.0):
    for step in steps:
        tracker.log(step, {"train/loss": scale / (step + 1)}, {"time/step": 0.1 * step})
        if step % 2 == 0:
            tracker.log(step, {"eval/bleu": 30.0 + step})
            tracker.log_samples(step, [{"prompt": "a|b", "completion": f"é\n{step}"}] * 2)


def contents(directory):
    return {name: (directory / name).read_bytes() for name in FILES}


def rows(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_line_a_step_with_namespaced_keys_and_seconds_apart(tmp_path):
    with Tracker(tmp_path) as tracker:
        log_steps(tracker, [1, 2])
    assert rows(tmp_path / "metrics.jsonl") == [
        {"step": 1, "train/loss": 0.5},
        {"step": 2, "train/loss": 1 / 3},
        {"step": 2, "eval/bleu": 32.0},
    ]
    assert rows(tmp_path / "timings.jsonl") == [
        {"step": 1, "time/step": 0.1},
        {"step": 2, "time/step": 0.2},
    ]
    assert rows(tmp_path / "samples.jsonl") == [
        {"step": 2, "prompt": "a|b", "completion": "é\n2"}
    ] * 2  # fmt: skip


@given(st.floats())
def test_numbers_keep_every_bit_and_the_file_stays_json(tmp_path_factory, value):
    directory = tmp_path_factory.mktemp("run")
    Tracker(directory).log(1, {"x": value})
    Tracker(directory).log_samples(1, [{"x": value}])

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    for name in ("metrics.jsonl", "samples.jsonl"):
        written = json.loads((directory / name).read_text(), parse_constant=refuse)["x"]
        assert isinstance(written, str) != math.isfinite(value)
        assert repr(float(written)) == repr(value)


@pytest.mark.parametrize("stop", [0, 1, 2, 5])
@pytest.mark.parametrize("checkpoint", [-1, 0, 2, 3, 5])
@pytest.mark.parametrize("torn", [False, True])
def test_a_resumed_run_writes_the_same_bytes(tmp_path, stop, checkpoint, torn):
    for name in ("straight", "resumed"):
        (tmp_path / name).mkdir()
    with Tracker(tmp_path / "straight") as tracker:
        log_steps(tracker, range(6))
    with Tracker(tmp_path / "resumed") as tracker:
        log_steps(tracker, range(max(stop, checkpoint) + 1))
    if torn:  # killed in the middle of a line
        for name in FILES:
            with (tmp_path / "resumed" / name).open("ab") as file:
                file.write(b'{"step": 6, "tra')
    with Tracker(tmp_path / "resumed") as tracker:
        tracker.rewind(checkpoint)
        tracker.sync()
        log_steps(tracker, range(checkpoint + 1, 6))
    assert contents(tmp_path / "straight") == contents(tmp_path / "resumed")


def test_lines_lost_in_the_middle_are_not_passed_over(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 2}\n')
    with pytest.raises(RunError, match=r"metrics.jsonl:2: damaged"):
        Tracker(tmp_path).rewind(2)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_lines_are_on_file_at_once(tmp_path):
    tracker = Tracker(tmp_path)
    tracker.log(1, {"x": 1.0})
    assert rows(tmp_path / "metrics.jsonl") == [{"step": 1, "x": 1.0}]
    assert not (tmp_path / "timings.jsonl").exists()


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(RunError, match=r"gone/metrics.jsonl: cannot write"):
        Tracker(tmp_path / "gone").log(1, {"x": 1.0})


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with Tracker(tmp_path, ["tensorboard"], config={"optim": {"lr": 1e-5}}) as tracker:
        tracker.rewind(-1)
        log_steps(tracker, range(5), scale=7.0)
    with Tracker(tmp_path, ["tensorboard"]) as tracker:
        tracker.rewind(2)
        log_steps(tracker, range(3, 6))
    events = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["eval/bleu", "time/step", "train/loss"]
    losses = [(event.step, event.value) for event in events.Scalars("train/loss")]
    expected = [(step, (7.0 if step < 3 else 1.0) / (step + 1)) for step in range(6)]
    assert [step for step, _ in losses] == [step for step, _ in expected]
    assert [value for _, value in losses] == pytest.approx([value for _, value in expected])
    assert {event.step for event in events.Tensors("samples/text_summary")} == {0, 2, 4}
    (sample,) = events.Tensors("samples/text_summary")[-1].tensor_proto.string_val
    assert "| a\\|b | é<br>4 |" in sample.decode()
    (config,) = events.Tensors("config/text_summary")[0].tensor_proto.string_val
    assert '"lr": 1e-05' in config.decode()


def scalars(directory):
    """Step and value of each tag, as TensorBoard reads them."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(directory))
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def test_tensorboard_has_all_stages_of_a_run_in_one_folder(tmp_path):
    """A stage that is resumed, or begun again, leaves the others' curves as they are."""
    run, teacher = tmp_path / "run", tmp_path / "stages" / "teacher-1"
    teacher.mkdir(parents=True)
    run.mkdir()
    steps = {"teacher": range(1, 9), "objective": range(1, 4)}
    for stage, directory in (("teacher", teacher), ("objective", run)):
        with Tracker(directory, ["tensorboard"], run=run, stage=stage) as tracker:
            tracker.rewind(-1)
            log_steps(tracker, steps[stage])
    with Tracker(run, ["tensorboard"], run=run) as tracker:
        tracker.rewind(1)
        log_steps(tracker, range(2, 6), scale=7.0)
    assert {path.parent for path in tmp_path.rglob("events.*")} == {run / "tensorboard"}
    found = scalars(run / "tensorboard")
    assert [step for step, _ in found["teacher/train/loss"]] == [*steps["teacher"]]
    assert [step for step, _ in found["train/loss"]] == [1, 2, 3, 4, 5]
    expected = [1.0 / 2, *(7.0 / (step + 1) for step in range(2, 6))]
    assert [value for _, value in found["train/loss"]] == pytest.approx(expected)
    with Tracker(teacher, ["tensorboard"], run=run, stage="teacher") as tracker:
        tracker.rewind(-1)
        log_steps(tracker, [1])
    assert [step for step, _ in scalars(run / "tensorboard")["teacher/train/loss"]] == [1]
    assert scalars(run / "tensorboard")["train/loss"] == found["train/loss"]


@pytest.mark.parametrize("torn", [False, True])
def test_a_checkpoints_curves_outlive_a_kill(tmp_path, torn):
    """What is before a checkpoint is on file with it, also in files of older versions."""
    tracker = Tracker(tmp_path, ["tensorboard"])
    tracker.rewind(-1)
    log_steps(tracker, range(1, 4))
    tracker.sync()  # and no close
    [file] = (tmp_path / "tensorboard").iterdir()
    older = file.rename(file.with_name(file.name.removesuffix(".objective")))
    if torn:
        with older.open("ab") as open_file:
            open_file.write(older.read_bytes()[-20:])
    with Tracker(tmp_path, ["tensorboard"]) as resumed:
        resumed.rewind(2)
        log_steps(resumed, range(3, 5))
    assert [step for step, _ in scalars(tmp_path / "tensorboard")["train/loss"]] == [1, 2, 3, 4]


class FakeService(ModuleType):
    """Stands for trackio or wandb; how the real ones answer is tried by hand."""

    def __init__(self, name):
        super().__init__(name)
        self.started, self.logged, self.finished = [], [], 0
        kind = "Markdown" if name == "trackio" else "Table"
        setattr(self, kind, lambda *args, **kwargs: (args, kwargs))

    def init(self, **settings):
        def finish():
            self.finished += 1

        self.started.append(settings)
        return SimpleNamespace(
            log=lambda metrics, step: self.logged.append((step, metrics)), finish=finish
        )


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_services_get_what_the_files_get_and_know_a_resumed_run_again(tmp_path, monkeypatch, name):
    service = FakeService(name)
    monkeypatch.setitem(sys.modules, name, service)
    for _ in range(2):
        with Tracker(tmp_path, [name], run_name="brim", project="p", config={"seed": 1}) as tracker:
            tracker.log(3, {"train/loss": 0.5}, {"time/step": 2.0})
            tracker.log_samples(3, [{"prompt": "a", "completion": "b"}])
            tracker.log_samples(3, [])
    assert service.started[0] == service.started[1]
    assert service.started[0]["resume"] == "allow"
    assert service.started[0]["project"] == "p"
    assert service.started[0]["config"] == {"seed": 1}
    assert service.logged[0] == (3, {"train/loss": 0.5, "time/step": 2.0})
    assert list(service.logged[1][1]) == ["samples"]
    assert len(service.logged) == 4
    assert service.finished == 2
    other = tmp_path / "other"
    other.mkdir()
    Tracker(other, [name], run_name="brim")
    assert service.started[2]["name"] != service.started[0]["name"] or (
        service.started[2]["id"] != service.started[0]["id"]
    )


def test_back_ends_that_cannot_be_used_are_one_line_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"wandb is not installed.*pip install 'brim-distill\[w"):
        Tracker(tmp_path, ["wandb"])
    with pytest.raises(ConfigError, match="wandb is not installed"):
        check_backends(["wandb"])
    with pytest.raises(ConfigError, match="not one of tensorboard, trackio, wandb"):
        Tracker(tmp_path, ["wandbb"])

    def refuse(**settings):
        raise RuntimeError("no API key configured.\nUse `wandb login`")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=refuse))
    with pytest.raises(ConfigError, match=r"wandb does not start: no API key configured\. Use"):
        Tracker(tmp_path, ["wandb"])


def test_nothing_optional_is_imported_unless_asked_for(tmp_path, monkeypatch):
    for name in ("tensorboard", "trackio", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)
    Tracker(tmp_path).log(1, {"x": 1.0})
