"""What the benchmarks compare with: the count of operations; and that contestants take turns."""

import sys
from argparse import Namespace
from dataclasses import replace
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
