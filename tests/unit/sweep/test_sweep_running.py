"""Scheduling, failures, stops: real processes, which are scripts in place of `brim train`."""

import fcntl
import json
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from listening import Listener
from rundirs import change_results

from brim.config.loading import dump_config
from brim.errors import RunError
from brim.support.progress import Meter
from brim.sweep import Outcome, Point, load_sweep, points, run_sweep
from brim.sweep.grid import Task
from brim.sweep.launching import LocalLauncher, local_launcher
from brim.sweep.states import last_lines, log_of, stage_tests, state_of, status_table

# A run: it says when it begins and ends, and does what `plan.json` says of it.
RUN = r"""
import json, os, pathlib, signal, sys, time
out, name, config = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
plans = json.loads((out / "plan.json").read_text())
run, plan = out / name, plans.get(name, "")
def tell(event):
    with open(out / "events", "a") as file:
        file.write(json.dumps({"event": event, "name": name, "time": time.monotonic(),
            "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "threads": os.environ["OMP_NUM_THREADS"]}) + "\n")
def wait_for(other, event="begin"):
    end = time.monotonic() + 30
    while f'"{event}", "name": "{other}"' not in (out / "events").read_text():
        assert time.monotonic() < end
        time.sleep(0.02)
tell("begin")
print("hello from", name, flush=True)
run.mkdir(parents=True, exist_ok=True)
if plan.startswith("fail after"):
    wait_for(plan.split()[2], "at work")
    sys.exit("too late")
if plan == "fail late":
    tell("failing")
    while not (run / "results.json").exists():
        time.sleep(0.02)
    sys.exit("another process is working on this run")
if plan == "fail" or plan == "fail once" and not (run / "tried").exists():
    (run / "tried").touch()
    sys.exit("cannot go on: no such file")
if name.startswith("stages/"):
    assert config == ""
else:
    (run / "config.yaml").write_text(config)
if plan == "deaf":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tell("deaf")
    time.sleep(60)
if plan == "long" and not (run / "saved").exists():
    try:
        tell("at work")
        time.sleep(60)
    except KeyboardInterrupt:
        (run / "saved").touch()
        sys.exit(130)
if plan.startswith("stages"):
    wait_for(plan.split()[1])
    tell("stages")
(run / "half").write_text(json.dumps({"config_hash": "", "stages": plans.get("made", {})}))
(run / "half").rename(run / "manifest.json")
if plan.startswith("stages"):
    wait_for(plan.split()[2])
if plan == "short":
    time.sleep(0.2)
if plan != "nothing":
    score = {"name": "BLEU", "value": 12.345}
    (run / "results.json").write_text(json.dumps({"test": {"scores": {"bleu": score}}}))
tell("end")
"""

SWEEP = """\
seeds: [1, 2]
settings: {teacher.seed: 0}
systems:
  a: {recipe: cmudict/llmr}
  b: {recipe: cmudict/brim}
"""


@pytest.fixture
def make(tmp_path):
    """`make(text)` is the points of a sweep."""

    def points_of(text=SWEEP) -> list[Point]:
        path = tmp_path / "file.yaml"
        path.write_text(text)
        return points(load_sweep(path))

    return points_of


@pytest.fixture
def run(tmp_path, monkeypatch):
    """`run(points, plan, ...)` runs them in `tmp_path / "out"`; what is said is in `run.lines`."""
    monkeypatch.setattr("brim.sweep.running.POLL_SECONDS", 0.02)
    out = tmp_path / "out"
    out.mkdir()

    def go(todo, plan=None, *, slots=1, devices=(), **options) -> Outcome:
        (out / "plan.json").write_text(json.dumps(plan or {}))
        listener = Listener()
        go.lines = listener.lines
        launcher = LocalLauncher(slots, 3, devices, command)
        return run_sweep(todo, out, launcher=launcher, reporter=listener, **options)

    go.out = out
    return go


def command(task: Task, out: Path) -> list[str]:
    config = dump_config(task.config) if isinstance(task, Point) else ""
    return [sys.executable, "-I", "-S", "-c", RUN, str(out), task.name, config]


def events(out: Path) -> list[dict]:
    path = out / "events"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def begun(out: Path) -> list[str]:
    return [event["name"] for event in events(out) if event["event"] == "begin"]


def when(out: Path, event: str, name: str) -> float:
    (moment,) = (e["time"] for e in events(out) if (e["event"], e["name"]) == (event, name))
    return moment


def after(out: Path, event: str, action) -> threading.Thread:
    """Do something as soon as a run has told of an event."""

    def watch():
        end = time.monotonic() + 20
        while not any(e["event"] == event for e in events(out)) and time.monotonic() < end:
            time.sleep(0.02)
        action()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


ALL = ("a/seed=1", "b/seed=1", "a/seed=2", "b/seed=2")


def test_all_systems_of_a_seed_come_first(make, run):
    todo = make()
    assert run(todo) == Outcome(ALL, (), (), ())
    assert tuple(begun(run.out)) == ALL
    assert run.lines[0].startswith("a/seed=1: BLEU 12.35 (")
    assert all(event["threads"] == "3" for event in events(run.out))
    assert "hello from b/seed=2" in log_of(todo[3], run.out).read_text()


def test_what_is_done_is_left_alone(make, run):
    run(make()[:2])
    assert run(make()).done == ALL
    assert tuple(begun(run.out)) == ALL
    assert run(make()).done == ALL
    assert tuple(begun(run.out)) == ALL


def test_descriptions_and_trackers_do_not_matter_other_settings_do(make, run):
    run(make()[:1])
    told = "settings: {teacher.seed: 0, description: other, tracking.project: other}"
    assert state_of(make(SWEEP.replace("settings: {teacher.seed: 0}", told))[0], run.out) == "done"
    other = make(SWEEP.replace("teacher.seed: 0", "teacher.seed: 1"))
    assert state_of(other[0], run.out) == "foreign"
    with pytest.raises(RunError, match=r"a/seed=1: .* \(teacher.seed: 0 → 1\)") as error:
        run(other)
    assert "\n" not in str(error.value)
    assert begun(run.out) == ["a/seed=1"]  # nothing was begun


def test_a_stopped_run_that_somebody_evaluated_goes_on(make, run):
    point = make()[0]
    run([point])
    directory, planned = run.out / point.name, point.config.trainer.max_steps
    (directory / "manifest.json").write_text('{"config_hash": ""}')
    # `steps` alone is what older versions write.
    for more in ({"steps": 11}, {"steps": 11, "planned_steps": planned}):
        change_results(directory, **more)
        assert state_of(point, run.out) == "stopped"
    change_results(directory, steps=planned)
    assert state_of(point, run.out) == "done"
    change_results(directory, steps=11)
    run([point])
    assert begun(run.out) == [point.name, point.name]
    assert state_of(point, run.out) == "done"


def test_a_failed_run_is_shown_and_tried_again_after_the_others(make, run):
    todo = make()
    ended = run(todo, {"b/seed=1": "fail"})
    assert ended == Outcome(("a/seed=1", "a/seed=2", "b/seed=2"), ("b/seed=1",), (), ())
    assert begun(run.out) == [*ALL, "b/seed=1"]
    assert [line for line in run.lines if "cannot go on" in line] == [
        "  cannot go on: no such file"
    ] * 2
    assert any("b/seed=1: failed with exit code 1, will be tried again" in x for x in run.lines)
    assert state_of(todo[1], run.out) == "failed"
    assert run(todo, {"b/seed=1": "fail"}, retry=0).failed == ("b/seed=1",)
    assert begun(run.out)[5:] == ["b/seed=1"]
    assert run(todo).done == ALL
    assert state_of(todo[1], run.out) == "done"


def test_a_run_that_fails_once_is_no_failure(make, run):
    assert run(make(), {"a/seed=1": "fail once"}) == Outcome(ALL, (), (), ())
    assert begun(run.out) == [*ALL, "a/seed=1"]


def test_what_another_process_has_done_meanwhile_is_no_failure(make, run):
    # As where another sweep's run has the lock before this one's has begun.
    todo = make()[:1]
    run(todo)
    results = run.out / "a/seed=1/results.json"
    done = results.read_bytes()
    results.unlink()
    finish = after(run.out, "failing", lambda: results.write_bytes(done))
    ended = run(todo, {"a/seed=1": "fail late"}, retry=0)
    finish.join()
    assert ended == Outcome(("a/seed=1",), (), (), ())
    assert "a/seed=1: done by another process, left alone" in run.lines


def test_an_exit_without_results_is_a_failure(make, run):
    ended = run(make()[:1], {"a/seed=1": "nothing"}, retry=0)
    assert ended.failed == ("a/seed=1",)


def test_fail_fast_stops_the_others(make, run):
    plan = {"a/seed=1": "long", "b/seed=1": "fail after a/seed=1"}
    todo = make(
        SWEEP.replace("settings: {teacher.seed: 0}", "").replace(
            "brim}", "brim, settings: {teacher.seed: 5}}"
        )
    )
    ended = run(todo, plan, slots=2, fail_fast=True)
    assert ended == Outcome((), ("b/seed=1",), (), ("a/seed=1", "a/seed=2", "b/seed=2"))
    assert (run.out / "a/seed=1/saved").exists()


def test_the_bar_shows_the_last_line_of_each_that_runs(make, run, monkeypatch):
    monkeypatch.setattr("brim.sweep.running.NOTE_SECONDS", 0.0)
    notes = []

    class Watched(Meter):
        def advance(self, amount=1, note=None, seconds_left=None):
            super().advance(amount, note, seconds_left)
            notes.append(self.note)

    @contextmanager
    def meter(self, name, total):
        yield Watched(name, total)

    monkeypatch.setattr(Listener, "meter", meter)
    plan = {"a/seed=1": "stages a/seed=1 b/seed=1", "b/seed=1": "stages a/seed=1 b/seed=1"}
    todo = make(SWEEP.replace("{teacher.seed: 0}", "{teacher.seed: null}"))
    assert run(todo[:2], plan, slots=2).done == ALL[:2]
    assert "a/seed=1: hello from a/seed=1" in {line for n in notes for line in n.splitlines()}
    assert notes[-1] == ""


def test_a_log_that_cannot_be_read_ends_nothing(make, run, monkeypatch):
    def stale(*args):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr("brim.sweep.running.NOTE_SECONDS", 0.0)
    monkeypatch.setattr("brim.sweep.running.last_lines", stale)
    assert run(make()[:2], {"a/seed=1": "short"}).done == ALL[:2]


def test_ctrl_c_lets_runs_save_and_the_same_call_goes_on(make, run):
    todo = make()
    watcher = after(run.out, "at work", lambda: os.kill(os.getpid(), signal.SIGINT))
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="the same command goes on"):
        run(todo, {"b/seed=1": "long"})
    watcher.join()
    assert signal.getsignal(signal.SIGINT) is handler
    assert "stopping when 1 run has saved; once more ends them at once" in run.lines
    assert (run.out / "b/seed=1/saved").exists()
    states = [state_of(point, run.out) for point in todo]
    assert states == ["done", "stopped", "waiting", "waiting"]
    assert run(todo).done == ALL
    assert begun(run.out) == ["a/seed=1", "b/seed=1", "b/seed=1", "a/seed=2", "b/seed=2"]


def test_a_second_ctrl_c_kills(make, run):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.6)
        os.kill(os.getpid(), signal.SIGTERM)

    watcher, began = after(run.out, "deaf", twice), time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(make(), {"a/seed=1": "deaf"})
    watcher.join()
    assert time.monotonic() - began < 20
    assert "end" not in {event["event"] for event in events(run.out)}
    assert state_of(make()[0], run.out) == "stopped"


def test_while_a_stage_is_made_only_those_begin_that_do_not_need_it(make, run):
    text = "systems:\n" + "".join(
        f"  {name}: {{recipe: cmudict/{recipe}, settings: {{teacher.seed: {seed}}}}}\n"
        for name, recipe, seed in (("a", "kl", 1), ("b", "js", 1), ("c", "kl", 2), ("d", "js", 2))
    )
    plan = {"a/seed=0": "stages c/seed=0 a/seed=0", "c/seed=0": "stages b/seed=0 d/seed=0"}
    assert len(run(make(text), plan, slots=2).done) == 4
    assert set(begun(run.out)[:2]) == {"a/seed=0", "c/seed=0"}  # not b, which needs a's teacher
    assert when(run.out, "begin", "b/seed=0") > when(run.out, "stages", "a/seed=0")
    # Once the stages are there, nobody waits for the end of whoever made them.
    assert when(run.out, "begin", "d/seed=0") > when(run.out, "stages", "c/seed=0")
    assert when(run.out, "begin", "d/seed=0") < when(run.out, "end", "c/seed=0")


def test_each_run_has_a_device_of_its_own(make, run):
    text = "seeds: [1, 2, 3, 4, 5]\nsystems: {a: {recipe: cmudict/kl}}"
    run(
        make(text),
        {f"a/seed={n}": "short" for n in range(1, 6)},
        slots=2,
        devices=["3", "7"],
    )
    busy = set()
    for event in events(run.out):
        if event["event"] == "begin":
            assert event["gpu"] not in busy
            busy.add(event["gpu"])
            assert busy <= {"3", "7"}
        elif event["event"] == "end":
            busy.remove(event["gpu"])
    assert {event["gpu"] for event in events(run.out)} == {"3", "7"}


def test_what_another_process_works_on_is_left_to_it(make, run):
    todo = make()
    held = run.out / todo[0].name
    held.mkdir(parents=True)
    with (held / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert state_of(todo[0], run.out) == "running"
        assert run(todo) == Outcome(ALL[1:], (), ("a/seed=1",), ())
    assert state_of(todo[0], run.out) == "waiting"


def test_the_table_of_states(make, run):
    todo = make()
    run(todo[:2], {"b/seed=1": "fail"}, retry=0)
    lines = status_table(todo, run.out).splitlines()
    assert lines == [
        "   1  a/seed=1  done     BLEU 12.35",
        "   2  b/seed=1  failed",
        "   3  a/seed=2  waiting",
        "   4  b/seed=2  waiting",
        "4 points: 2 waiting, 1 done, 1 failed",
    ]


STAGES = ("stages/teacher-1", "stages/predistill-2")
MADE = {"teacher": "teacher-1", "teacher_outputs": "outputs-3", "predistill": "predistill-2"}


@pytest.fixture
def stages(run):
    """What the runs' stages have made: both of a sweep's seeds have the same here."""
    for name in STAGES:
        (run.out / name / "best").mkdir(parents=True)


def test_stages_are_tested_once_after_the_points(make, run, stages):
    ended = run(make(), {"made": MADE, STAGES[0]: "fail once"}, slots=2)
    assert ended == Outcome((*ALL, *STAGES), (), (), ())
    assert sorted(begun(run.out)[4:6]) == sorted(STAGES)  # which begin at once
    assert begun(run.out)[6:] == [STAGES[0]]
    assert run.lines[-1].startswith("stages/teacher-1: BLEU 12.35 (")
    table = status_table(make(), run.out).splitlines()
    assert table[4:] == [
        "      stages/teacher-1     done     BLEU 12.35",
        "      stages/predistill-2  done     BLEU 12.35",
        "4 points: 4 done",
        "2 stages: 2 done",
    ]
    assert run(make(), {"made": MADE}).done == ended.done
    assert len(begun(run.out)) == 7
    log = (run.out / "logs/stages-predistill-2.log").read_text()
    wanted = f"brim evaluate {run.out}/a/seed=1 --stage predistill"
    assert wanted in log.splitlines()[0]


def test_stages_are_tested_only_for_points_that_ask_for_it(make, run, stages):
    quiet = "evaluation.stages: false"
    some = make(SWEEP.replace("cmudict/llmr", f"cmudict/llmr, settings: {{{quiet}}}"))
    none = make(SWEEP.replace("teacher.seed: 0", f"teacher.seed: 0, {quiet}"))
    assert run(none, {"made": MADE}).done == ALL
    assert stage_tests(none, run.out) == []
    assert {test.run for test in stage_tests(some, run.out)} == {"b/seed=1"}


def test_a_stages_test_fails_like_a_run_and_is_left_to_others(make, run, stages):
    held = run.out / STAGES[1] / "predictions"
    held.mkdir()
    with (held / ".test.partial.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        ended = run(make(), {"made": MADE, STAGES[0]: "fail"}, retry=0)
    assert ended == Outcome(ALL, STAGES[:1], STAGES[1:], ())
    assert "  cannot go on: no such file" in run.lines
    assert status_table(make(), run.out).endswith("\n2 stages: 1 failed, 1 waiting")


def test_where_a_sweep_stops_no_stage_is_tested(make, run, stages):
    ended = run(make(), {"made": MADE, "b/seed=1": "fail"}, fail_fast=True)
    assert ended.left == ("a/seed=2", "b/seed=2", *STAGES)
    assert begun(run.out) == ["a/seed=1", "b/seed=1"]


def test_all_runs_are_killed_even_if_the_disk_is_full(make, run, monkeypatch):
    def full(self, task, text):
        if text == "killed":
            raise RunError("no space left")

    started = []

    class Job:
        def __init__(self):
            self.killed = False

        def poll(self):
            raise RunError("no space left")

        def kill(self):
            self.killed = True

    class Launcher:
        slots = 2

        def start(self, task, out):
            started.append(Job())
            return started[-1]

    monkeypatch.setattr("brim.sweep.running._Work._note", full)
    text = "seeds: [1, 2]\nsystems: {a: {recipe: cmudict/kl}}"
    with pytest.raises(RunError, match="no space"):
        run_sweep(make(text), run.out, launcher=Launcher())
    assert [job.killed for job in started] == [True, True]


def test_the_end_of_a_log_survives_strange_bytes(make, run):
    (point, *_) = make()
    log = log_of(point, run.out)
    assert last_lines(log) == []
    log.parent.mkdir()
    log.write_bytes(b"\xff" * 30_000 + b"\none\n\n\xfftwo\n")
    assert last_lines(log, 2) == ["one", "\ufffdtwo"]
    with log.open("a") as file:
        file.write("brim sweep: brim train again\nthree\n")
    assert last_lines(log) == ["three"]


@pytest.mark.parametrize(
    ("jobs", "threads", "variables", "expected"),
    [
        (None, None, {}, (8, 1, [])),
        (None, 3, {}, (2, 3, [])),
        (None, 16, {}, (1, 16, [])),
        (3, None, {}, (3, 2, [])),
        (3, 5, {}, (3, 5, [])),
        (None, None, {"OMP_NUM_THREADS": "4"}, (2, 4, [])),
        (None, None, {"OMP_NUM_THREADS": "4,2"}, (2, 4, [])),
        (None, None, {"OMP_NUM_THREADS": "all"}, (8, 1, [])),
        (None, None, {"CUDA_VISIBLE_DEVICES": "2,5"}, (2, 4, ["2", "5"])),
        (4, None, {"CUDA_VISIBLE_DEVICES": "2,5"}, (4, 2, ["2", "5"])),
        (None, None, {"CUDA_VISIBLE_DEVICES": "-1"}, (8, 1, [])),
    ],
)
def test_the_machine_is_shared_out(monkeypatch, jobs, threads, variables, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    launcher = local_launcher(jobs, threads)
    assert (launcher.slots, launcher.threads, launcher.devices) == expected
