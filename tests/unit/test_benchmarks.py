"""What the benchmarks compare with: the count of operations; and that contestants take turns."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from torch.utils.flop_counter import FlopCounterMode

from brim.types import Rollout

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def pairs(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import random_pairs

    return random_pairs


def count_products(function) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    counts = counter.get_flop_counts()["Global"]
    # Scores of attention are no part of the limit.
    return sum(n for operator, n in counts.items() if str(operator) in ("aten.mm", "aten.addmm"))


@pytest.mark.parametrize("family", ["qwen2", "t5"])
def test_operations_are_those_that_torch_counts(pairs, family):
    pair = replace(pairs.tiny(pairs.PAIRS[family]), prompt_tokens=7, max_tokens=5)
    model, rows = pair.build("student"), 3
    batch = model.encode(pair.examples(rows), max_tokens=None)
    mask = torch.ones(rows, 5, dtype=torch.bool)
    ids = torch.randint(3, pair.vocab_size, (rows, 5))
    rollout = Rollout(batch, ids, mask, mask[:, 0])
    once = pairs.forward_operations(model.model, pair, rows)
    assert count_products(lambda: model.action_values(rollout)) == once
    # Back there are two products for each. The head's logits are made once more, which just makes
    # up for the gradient of its weight: that is added in place, and torch does not count it.
    assert count_products(lambda: model(rollout).logprobs.sum().backward()) == 3 * once


@pytest.fixture
def step(pairs):
    import step

    AcceleratorState._reset_state(reset_partial_state=True)
    yield step
    AcceleratorState._reset_state(reset_partial_state=True)  # of another precision


def test_contestants_take_turns(step, monkeypatch, capsys):
    command = ["step.py", "--tiny", "--pair", "t5", "--batch", "2", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", [*command, "--contestants", "brim", "plain"])
    step.main()
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split("|")[1].strip() for line in lines if "|" in line]
    assert rows == ["", "---", "brim", "plain"]


@pytest.mark.parametrize("name", ["brim", "plain", "matmul"])
def test_each_contestant_has_its_turn_in_bfloat16(step, monkeypatch, name):
    monkeypatch.setattr(step, "wait", lambda: True)
    args = Namespace(pair="qwen2", precision="bfloat16", tiny=True, rows=2, worker=name)
    numbers = next(step.CONTESTANTS[name](args))
    assert numbers.keys() >= ({"rate"} if name == "matmul" else {*step.PHASES, "tokens"})
    assert min(numbers.values()) > 0


@pytest.fixture
def quality(step):
    import time_to_quality

    return time_to_quality


@pytest.mark.parametrize(
    ("mark", "seconds", "tokens"),
    [(0.0, 0.0, 0.0), (5.0, 1.0, 10.0), (10.0, 2.0, 20.0), (11.0, 4.5, 70.0), (13.0, inf, inf)],
)
def test_a_mark_is_reached_where_the_curve_first_meets_it(quality, mark, seconds, tokens):
    points = [(0, 0, 0), (2, 20, 10), (3, 40, 8), (5, 80, 12), (6, 90, 9)]
    names = ("seconds", "tokens", "return")
    curve = [dict(zip(names, map(float, point), strict=True)) for point in points]
    assert quality.when_reached(curve, "return", mark) == pytest.approx(seconds)
    assert quality.when_reached(curve, "return", mark, "tokens") == pytest.approx(tokens)


def test_clock_stops_for_evaluations(quality, monkeypatch):
    now = iter([0.0, 0.0, 1.0, 1.0, 9.0, 9.0, 10.0, 10.0, 30.0, 30.0])
    for name in ("process_time", "perf_counter"):
        monkeypatch.setattr(quality.time, name, lambda: next(now))
    meter = quality.Meter({"score": 0.0}, [1.0, 2.0], lambda: {"score": 1.0})
    meter.start()
    assert meter.step(10)
    assert not meter.step(10)
    assert [point["seconds"] for point in meter.curve] == [0, 1, 2]
    assert [point["tokens"] for point in meter.curve] == [0, 10, 20]


def test_rate_is_chosen_on_a_seed_of_its_own(quality):
    def curve(method, lr, seed):
        best = {"a": 1e-3, "b": 3e-3}[method] if seed == quality.TUNING_SEED else 3e-4
        end = {"seconds": 2.0, "exact_match": float(lr == best), "seed": seed}
        return [{"seconds": 0.0, "exact_match": 0.0, "seed": seed}, end]

    args = quality.parse_arguments(["--methods", "a", "b", "--seeds", "5", "6"])
    results = quality.measure_all(Namespace(args=args, curve=curve))
    assert {method: lr for method, (lr, _) in results.items()} == {"a": 1e-3, "b": 3e-3}
    assert [c[0]["seed"] for c in results["a"][1]] == [5, 6]


def test_finished_runs_of_quality_are_kept(quality, tmp_path, capsys, monkeypatch):
    command = ["--short", "--methods", "rkl", "anchored", "--out", str(tmp_path)]
    quality.main(command)
    first = capsys.readouterr().out
    rows = [line.split("|")[1].strip() for line in first.splitlines() if line.startswith("|")]
    assert rows[2:4] == rows[6:8] == ["rkl", "anchored"]
    assert (tmp_path / "time_to_quality.png").stat().st_size > 0
    monkeypatch.setattr(quality, "Meter", None)  # without which nothing can run
    quality.main(command)
    assert capsys.readouterr().out == first


def test_a_server_is_measured_beside_its_model(step, capsys):
    import serve

    serve.main(["--tiny", "--families", "t5", "--rows", "4", "--clients", "2", "--turns", "1"])
    rows = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines()]
    assert rows == ["", "---", "t5 in process", "t5, 2 clients"]


def test_every_part_for_a_gpu_runs_on_a_cpu(tmp_path):
    paths = os.pathsep.join([*filter(None, sys.path), str(BENCHMARKS)])
    run = subprocess.run(
        [sys.executable, BENCHMARKS / "device.py", "--device", "cpu", "--short",
         "--minutes", "60", "--out", tmp_path],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads((tmp_path / "device.json").read_text())
    table = (tmp_path / "device.md").read_text()
    for name, part in found.items():
        assert f"## {name}" in table
        skipped = [row["case"] for row in part["rows"] if "skipped" in row]
        assert name in ("trl", "vllm") or skipped == (["tf32"] if name == "facts" else [])
    methods = [row for row in found["methods"]["rows"] if row["case"].endswith(", qwen2")]
    assert len(methods) == 14
    assert all(row["ok"] for row in methods)
    for row in found["memory"]["rows"]:
        assert row["update_ratio"] > 0


@pytest.fixture
def device(pairs):
    import device

    AcceleratorState._reset_state(reset_partial_state=True)
    yield device
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_part_that_fails_hangs_or_dies_leaves_the_others(device, tmp_path, monkeypatch):
    def fails(part):
        part.case("bad", lambda: 1 / 0)
        part.case("good", lambda: {"number": 2.5})

    def hangs(part):
        part.case("begun", lambda: {"ok": True})
        device.time.sleep(60)

    parts = {"facts": fails, "resume": hangs, "trl": lambda part: os._exit(3), "vllm": fails}
    shares = {name: (work, 0.01 if work is hangs else 1) for name, work in parts.items()}
    monkeypatch.setattr(device, "PARTS", shares)
    monkeypatch.setattr(device, "GRACE", 2.0)
    command = ["--device", "cpu", "--minutes", "10", "--out", str(tmp_path), "--parts", *parts]
    assert device.main(command) == 1
    found = json.loads((tmp_path / "device.json").read_text())
    bad, good = found["facts"]["rows"]
    assert bad["error"].startswith("ZeroDivisionError")
    assert good["number"] == 2.5
    assert "stopped after" in found["resume"]["error"]
    assert found["resume"]["rows"][0]["ok"]
    assert "ended with 3" in found["trl"]["error"]
    assert [row["case"] for row in found["vllm"]["rows"]] == ["bad", "good"]
    assert len(device.failures(found)) == 4


def test_no_case_begins_after_the_time_is_over(device, tmp_path):
    part = device.Part("facts", tmp_path / "facts.json", torch.device("cpu"), True, 0.0, {})
    part.case("late", lambda: {"number": 1})
    (row,) = json.loads(part.file.read_text())["rows"]
    assert row["skipped"] == "no time was left"


def test_what_a_training_foresees_is_compared_with_what_it_took_behind(pairs, tmp_path):
    import plan_time

    rows = [
        {"step": 0, "time/evaluation": 64.0},
        *({"step": step, "time/step": 1.0, "time/update": 0.5} for step in range(1, 13)),
        {"step": 12, "time/evaluation": 8.0},
        {"step": 12, "time/save": 4.0},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "timings.jsonl").write_text(lines, encoding="utf-8")
    assert plan_time.left_after(tmp_path, plan_time.STEPS) == 2 * 1.0 + 8.0 + 4.0
    watch = plan_time.Watch()
    with watch.meter("brim", 12) as meter:
        for step in range(12):
            meter.advance(1, seconds_left=100.0 - step)
    assert watch.left == 100.0 - (plan_time.STEPS - 1)
    with watch.meter("brim on test", 12) as meter:  # which knows nothing of the time left
        meter.advance(plan_time.STEPS)
    assert watch.left == 100.0 - (plan_time.STEPS - 1)
