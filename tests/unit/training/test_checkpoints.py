import json
import logging
import os
import resource
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from brim.errors import RunError
from brim.training.checkpoints import (
    latest_state,
    replace_directory,
    save_checkpoint,
    sound_checkpoints,
)
from brim.training.optimizer import load_optimizer, save_optimizer
from brim.training.resuming import find_start


def newest_sound(root):
    return next(sound_checkpoints(root), None)


def write_text(text, directory):
    (directory / "model").mkdir()
    (directory / "model" / "weights.txt").write_text(text)
    (directory / "trainer_state.json").write_text(json.dumps({"text": text}))


def save(root, step, keep=2):
    return save_checkpoint(root, step, partial(write_text, f"step {step}"), keep=keep)


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def in_child(function):
    """Start a function in a forked process; its id."""
    child = os.fork()
    if child == 0:
        try:
            function()
        finally:
            os._exit(1)
    return child


def test_the_newest_ones_are_kept(tmp_path):
    root = tmp_path / "run" / "checkpoints"
    assert newest_sound(root) is None
    assert latest_state(root) is None
    for step in (5, 10, 100, 20):
        path = save(root, step)
        assert path == newest_sound(root) == root / f"step-{step}"
    assert names(root) == ["step-10", "step-20"]
    assert latest_state(root) == {"text": "step 20"}
    assert (path / "model" / "weights.txt").read_text() == "step 20"


def flip_a_bit(file):
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda path: flip_a_bit(path / "model/weights.txt"), "model/weights.txt"),
        (lambda path: os.truncate(path / "model/weights.txt", 3), "model/weights.txt"),
        (lambda path: (path / "model/weights.txt").unlink(), "model/weights.txt"),
        (lambda path: (path / "manifest.json").unlink(), "manifest.json"),
        (lambda path: os.truncate(path / "manifest.json", 9), "manifest.json"),
        (lambda path: (path / "manifest.json").write_text("[]"), "manifest.json"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, caplog, damage, named):
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    damage(newer)
    with caplog.at_level(logging.WARNING):
        assert newest_sound(tmp_path) == older
    (record,) = caplog.records
    assert "step-2" in record.getMessage()
    assert named in record.getMessage()
    # Training goes on from step 1: a damaged future must not push sound checkpoints out.
    save(tmp_path, 1)
    assert names(tmp_path) == ["step-1"]


def test_when_all_are_damaged_the_run_is_not_silently_begun_again(tmp_path):
    flip_a_bit(save(tmp_path / "checkpoints", 1) / "model/weights.txt")
    with pytest.raises(RunError, match="every checkpoint is damaged"):
        find_start(tmp_path)


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), OSError(28, "full")])
@pytest.mark.parametrize("step", [1, 2])
def test_a_write_that_fails_leaves_everything_as_it_was(tmp_path, error, step):
    save(tmp_path, 1)

    def fail(directory):
        write_text("half", directory)
        raise error

    expected = RunError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as caught:
        save_checkpoint(tmp_path, step, fail, keep=1)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == ["step-1"]
    assert latest_state(tmp_path) == {"text": "step 1"}


def test_a_process_killed_while_writing_leaves_the_checkpoint_before(tmp_path):
    save(tmp_path, 1)

    def killed(directory):
        write_text("half", directory)
        os.kill(os.getpid(), signal.SIGKILL)

    child = in_child(lambda: save_checkpoint(tmp_path, 2, killed, keep=1))
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert names(tmp_path) == [".step-2.new", "step-1"]
    assert newest_sound(tmp_path) == tmp_path / "step-1"
    save(tmp_path, 3)
    assert names(tmp_path) == ["step-1", "step-3"]


def test_killed_at_any_moment_a_sound_checkpoint_is_left(tmp_path):
    started = time.perf_counter()
    save(tmp_path, 0)
    seconds = time.perf_counter() - started

    def save_for_ever(step):
        while True:
            step += 1
            save(tmp_path, step, keep=1)

    step = 0
    for i in range(8):
        child = in_child(partial(save_for_ever, step))
        while max(int(name[5:]) for name in names(tmp_path) if name[0] != ".") == step:
            assert os.waitpid(child, os.WNOHANG) == (0, 0)
            time.sleep(seconds / 8)
        time.sleep(seconds * i / 8)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        newest = int(newest_sound(tmp_path).name.removeprefix("step-"))
        assert newest > step
        assert latest_state(tmp_path) == {"text": f"step {newest}"}
        step = newest


def test_a_directory_is_replaced_as_a_whole(tmp_path):
    best = tmp_path / "best"
    replace_directory(best, partial(write_text, "one"))
    (best / "extra").write_text("of the first")
    replace_directory(best, partial(write_text, "two"))
    assert names(best) == ["model", "trainer_state.json"]
    assert (best / "model/weights.txt").read_text() == "two"
    assert names(tmp_path) == ["best"]


def test_a_replacement_that_was_killed_half_way_is_undone(tmp_path):
    aside = tmp_path / ".best.old"
    aside.mkdir()
    write_text("old", aside)
    with pytest.raises(ZeroDivisionError):
        replace_directory(tmp_path / "best", lambda directory: 1 / 0)
    assert names(tmp_path) == ["best"]
    assert (tmp_path / "best/model/weights.txt").read_text() == "old"


def test_places_that_cannot_be_written_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file/checkpoints.*cannot write"):
        save(tmp_path / "file" / "checkpoints", 1)
    with pytest.raises(ValueError, match="keep"):
        save(tmp_path, 1, keep=0)


def network(seed=0):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 3), nn.Linear(2, 2))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return model


def train(model, optimizer, steps):
    for step in steps:
        inputs = torch.randn(4, 5, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model[:3](inputs).square().sum().backward()  # the last layer never gets a gradient
        optimizer.step()


def adamw(parameters, **settings):
    first, *rest = parameters
    groups = [{"params": [first], "weight_decay": 0.3, "lr": 0.07}, {"params": rest}]
    return torch.optim.AdamW(groups, lr=0.1, betas=(0.8, 0.97), **settings)


OPTIMIZERS = {
    "adamw": adamw,
    "fused": partial(adamw, fused=True),
    "amsgrad": partial(adamw, amsgrad=True),
    "sgd": partial(torch.optim.SGD, lr=1e-3),
    "momentum": partial(torch.optim.SGD, lr=1e-3, momentum=0.9),
}


@pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("stop", [0, 1, 4])
def test_training_goes_on_to_the_same_bits(tmp_path, build, stop):
    straight = network()
    train(straight, build(straight.parameters()), range(8))

    first = network()
    optimizer = build(first.parameters())
    train(first, optimizer, range(stop))
    save_optimizer(optimizer, tmp_path)
    assert names(tmp_path) == ["optimizer.json", "optimizer.safetensors"]

    second = network(seed=1)
    second.load_state_dict(first.state_dict())
    optimizer = build(second.parameters())
    train(second, optimizer, [99])  # a state of its own, which the loaded one must replace
    second.load_state_dict(first.state_dict())
    load_optimizer(optimizer, tmp_path)
    (tmp_path / "optimizer.safetensors").write_bytes(b"gone")
    train(second, optimizer, range(stop, 8))
    for expected, actual in zip(straight.parameters(), second.parameters(), strict=True):
        assert torch.equal(expected, actual)


def test_saving_does_not_change_the_optimizer_and_loading_does_not_touch_the_file(tmp_path):
    model = network()
    optimizer = adamw(model.parameters())
    train(model, optimizer, range(2))
    save_optimizer(optimizer, tmp_path)
    data = (tmp_path / "optimizer.safetensors").read_bytes()
    load_optimizer(optimizer, tmp_path)
    train(model, optimizer, range(2, 4))
    assert (tmp_path / "optimizer.safetensors").read_bytes() == data
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.97)


def test_the_state_of_another_optimizer_is_refused(tmp_path):
    model = network()
    save_optimizer(torch.optim.SGD(model.parameters()), tmp_path)
    with pytest.raises(RunError, match="SGD, not of AdamW"):
        load_optimizer(adamw(model.parameters()), tmp_path)
    with pytest.raises(RunError, match="another model"):
        load_optimizer(torch.optim.SGD(model[0].parameters()), tmp_path)


@pytest.mark.parametrize(
    "forge",
    [
        lambda tensors: tensors.clear(),
        lambda tensors: tensors.update({"0.exp_avg": torch.zeros(3)}),
        lambda tensors: tensors.update({"0.step": torch.zeros(3)}),
        lambda tensors: tensors.update({"999.exp_avg": torch.zeros(3)}),
        lambda tensors: tensors.update({"x": torch.zeros(3)}),
        lambda tensors: tensors.pop("0.exp_avg"),
    ],
)
def test_forged_moments_are_refused_before_any_step_in_one_line(tmp_path, forge):
    model = network()
    optimizer = adamw(model.parameters())
    train(model, optimizer, range(2))
    save_optimizer(optimizer, tmp_path)
    tensors = load_file(tmp_path / "optimizer.safetensors")
    forge(tensors)
    save_file(tensors, tmp_path / "optimizer.safetensors")
    with pytest.raises(
        RunError, match="the optimizer is another, or that of another model"
    ) as error:
        load_optimizer(adamw(network().parameters()), tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["[]", "{}", "3", '{"class": "AdamW"}', '{"class": "AdamW", "state": 1}']
)
def test_other_json_for_an_optimizer_is_refused_in_one_line(tmp_path, text):
    optimizer = adamw(network().parameters())
    save_optimizer(optimizer, tmp_path)
    (tmp_path / "optimizer.json").write_text(text)
    with pytest.raises(RunError) as error:
        load_optimizer(optimizer, tmp_path)
    assert "\n" not in str(error.value)


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    optimizer = adamw([nn.Parameter(torch.ones(100_000))])
    optimizer.param_groups[0]["params"][0].sum().backward()
    optimizer.step()
    root, report = tmp_path / "checkpoints", tmp_path / "report"

    def save_on_a_small_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            save_checkpoint(root, 1, partial(save_optimizer, optimizer), keep=1)
        except RunError as error:
            report.write_text(str(error))

    os.waitpid(in_child(save_on_a_small_disk), 0)
    assert report.read_text().startswith(f"{Path(root)}/step-1: cannot write: ")
    assert "\n" not in report.read_text()
    assert names(root) == []
