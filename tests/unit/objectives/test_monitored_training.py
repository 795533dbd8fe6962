"""What the trainer does when a monitor raises an alarm: warn, stop, or go back."""

import json
import logging

import pytest
import torch
from enumerable import DECODING, make_trainer, pair
from makers import policy_gradient
from safetensors.torch import load_file

from brim.errors import MonitorError
from brim.training.callbacks import Callbacks
from brim.training.monitors import LR_FACTOR, MAX_ROLLBACKS, Monitors
from brim.training.resuming import Interrupted

LR = 0.008


class Alarming(Monitors):
    """Raises an alarm at given steps, which its state counts."""

    at: tuple[int, ...] = (4, 7)

    def observe(self, metrics, sums):
        steps = self.state.start.setdefault("steps", [])
        steps.append(0.0)
        return self._raise("kl", "seen") if len(steps) in self.at else {}


def trainer_of(directory, mode, *, steps=10, at=(4, 7), killed_at=None):
    objective = policy_gradient(DECODING, k=2)
    trainer, _ = make_trainer(objective, *pair(), directory, steps=steps, rows=8, lr=LR)
    trainer.settings = trainer.settings.model_copy(update={"save_every": 3, "keep_checkpoints": 1})
    trainer.monitors = Alarming(mode)
    trainer.monitors.at = at
    trainer.__post_init__()
    logged = []

    def killing(state):
        logged.append(dict(state.metrics))
        if state.step == killed_at:
            raise KeyboardInterrupt

    trainer.callbacks = Callbacks(killing)
    return trainer, logged


def weights(directory, step):
    return load_file(directory / "checkpoints" / f"step-{step}" / "model.safetensors")


def lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def same(ours, theirs):
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_warning_comes_once_and_changes_nothing(tmp_path, caplog):
    plain, watched = tmp_path / "plain", tmp_path / "watched"
    trainer_of(plain, "warn", at=())[0].train()
    with caplog.at_level(logging.WARNING):
        trainer_of(watched, "warn")[0].train()
    assert [r.message for r in caplog.records if "monitor" in r.message] == [
        f"{watched}: step 4: monitor kl: seen: lower optim.lr, or narrow objective.clip.range"
    ]
    assert same(weights(plain, 10), weights(watched, 10))
    assert [row["step"] for row in lines(watched) if row.get("monitor/kl")] == [4]


def test_a_stop_is_saved_and_the_same_command_goes_on(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    trainer_of(whole, "warn")[0].train()
    with pytest.raises(MonitorError, match=r"after step 4, which is saved: monitor kl: .*goes on"):
        trainer_of(stopped, "stop")[0].train()
    assert (stopped / "checkpoints" / "step-4").exists()
    assert trainer_of(stopped, "stop")[0].train().step == 10
    assert same(weights(whole, 10), weights(stopped, 10))
    assert lines(whole) == lines(stopped)


def test_a_rollback_goes_on_from_healthy_weights_at_a_lower_rate(tmp_path):
    trainer_of(tmp_path, "rollback", steps=3, at=())[0].train()
    healthy = weights(tmp_path, 3)
    with pytest.raises(KeyboardInterrupt):
        trainer_of(tmp_path, "rollback", killed_at=5)[0].train()
    assert same(healthy, weights(tmp_path, 4))
    trainer, logged = trainer_of(tmp_path, "rollback")
    trainer.train()
    rates = [metrics["optim/lr"] for metrics in logged]
    assert rates == [LR * LR_FACTOR] * 3 + [LR * LR_FACTOR**2] * 3
    key = "monitor/rolled_back_to"
    assert {row["step"]: row[key] for row in lines(tmp_path) if key in row} == {4: 3, 7: 6}


@pytest.mark.parametrize("killed_at", [4, 8])
def test_a_killed_training_rolls_back_to_the_same_bits(tmp_path, killed_at):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    trainer_of(whole, "rollback")[0].train()
    with pytest.raises(KeyboardInterrupt):
        trainer_of(killed, "rollback", killed_at=killed_at)[0].train()
    trainer_of(killed, "rollback")[0].train()
    assert same(weights(whole, 10), weights(killed, 10))
    assert lines(whole) == lines(killed)


@pytest.mark.parametrize("stopped_at", [4, 5])
def test_a_stopped_training_rolls_back_to_the_same_bits(tmp_path, stopped_at):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    trainer_of(whole, "rollback", at=(6,))[0].train()
    trainer, _ = trainer_of(stopped, "rollback", at=(6,))
    observe = trainer.monitors.observe

    def stopping(metrics, sums):
        trainer.stop_requested = (
            len(trainer.monitors.state.start.get("steps", [])) == stopped_at - 1
        )
        return observe(metrics, sums)

    trainer.monitors.observe = stopping
    with pytest.raises(Interrupted):
        trainer.train()
    assert (stopped / "checkpoints" / f"step-{stopped_at}").exists()
    trainer_of(stopped, "rollback", at=(6,))[0].train()
    assert same(weights(whole, 10), weights(stopped, 10))
    assert lines(whole) == lines(stopped)


def test_a_healthy_checkpoint_stays_while_later_ones_are_not(tmp_path):
    trainer, _ = trainer_of(tmp_path, "rollback", at=())
    observe = trainer.monitors.observe

    def sick(metrics, sums):
        trainer.monitors.state.shares["kl"] = 0.7
        return observe(metrics, sums)

    trainer.monitors.observe = sick
    trainer.train()
    steps = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert steps == ["step-0", "step-10"]


def test_after_the_last_rollback_it_stops(tmp_path):
    at = tuple(range(2, 2 + MAX_ROLLBACKS + 1))
    with pytest.raises(MonitorError, match=f"after step {at[-1]}"):
        trainer_of(tmp_path, "rollback", at=at)[0].train()
    assert sum("monitor/rolled_back_to" in row for row in lines(tmp_path)) == MAX_ROLLBACKS
