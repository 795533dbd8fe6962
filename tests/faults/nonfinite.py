"""Numbers that are not finite, put in at 13 sites: none is in `best/` or in a checkpoint."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file
from torch import Tensor

from brim.models import LanguageModel
from brim.objectives.policy_gradient import PolicyGradient
from brim.objectives.seqkd import SeqKD
from brim.runs import stages
from brim.training.trainer import Trainer
from brim.training.updates import Updater

from .rows import Row
from .runs import End, Lab, lab_in, start, wait

NAN = float("nan")
# The update that the faults are put into, and all that follow it where they stay.
STEP = 1

Due = Callable[[], bool]
"""Whether the fault is to be put in now."""


def run(seed: int, count: int, directory: Path) -> list[Row]:
    """Put in each fault once, and for good; for a count so many, at random and once."""
    lab = lab_in(directory)
    sites = list(SITES)
    if count:
        sites = random.Random(seed).sample(sites[:12], count)  # the quick ones
    rows = []
    for site in sites:
        row = Row(f"not finite: {site}")
        for stays in (False,) if count else (False, True):
            fault, end = _try(lab, site, stays)
            said = "not finite" in end.output or "non-finite" in end.output
            row.count(fault, silent=not said, traceback=end.traceback)
        rows.append(row)
    return rows


def _try(lab: Lab, site: str, stays: bool) -> tuple[str | None, End]:
    """Make a run with a fault, then go on without it."""
    own = site in OVERRIDES or site == OF_ONE_RANK  # a run unlike the undisturbed one
    out = lab.fresh("poisoned", stages=not own and site != OF_A_STAGE)
    arguments = lab.train(out, *OVERRIDES.get(site, ()))
    if own:
        arguments += ["--stages", str(lab.whole / "stages")]

    def brim(prepare: Callable[[], None]) -> End:
        if site == OF_ONE_RANK:
            return _two_processes(lab, arguments, prepare)
        return wait(start(arguments, lab.log, prepare))

    end = brim(partial(SITES[site], stays))
    fault = _wrong(end) or _poisoned(out)
    if fault is None:
        again = brim(_nothing)
        if again.code != 0:
            fault = f"does not go on: {again.output[-400:]}"
        # It stopped, and so goes on to what it would have been; or it left out some updates.
        elif end.code == 2 and not own:
            fault = lab.difference(out)
    return fault and f"{'stays' if stays else 'once'}: {fault}", end


def _nothing() -> None:
    pass


def _wrong(end: End) -> str | None:
    if end.code not in (0, 2) or end.traceback:
        return f"ends by {end.code}: {end.output[-1500:]}"
    if not ("not finite" in end.output or "non-finite" in end.output):
        return f"nothing is said of it: {end.output[-300:]}"
    return None


def _poisoned(out: Path) -> str | None:
    for path in out.rglob("*.safetensors"):
        bad = [name for name, value in load_file(path).items() if not value.isfinite().all()]
        if bad:
            return f"{path.relative_to(out)} holds numbers that are not finite: {bad[:3]}"
    return None


def _two_processes(lab: Lab, arguments: list[str], prepare: Callable[[], None]) -> End:
    """The arguments by two processes of one launch; the end of the first one to fail."""
    port = 29000 + os.getpid() % 2000

    def of_rank(rank: int) -> None:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_PORT": str(port),
            "MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true",
        }  # fmt: skip
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        prepare()

    processes = [start(arguments, lab.log, partial(of_rank, rank)) for rank in range(2)]
    return max(map(wait, processes), key=lambda end: (end.code != 0, len(end.output)))


# -- the sites -------------------------------------------------------------------------------------


def _due(stays: bool) -> Due:
    """True in the step of the fault, and after it if the fault stays."""
    now = {"step": -1}
    begin = Updater.begin_step

    def begin_step(self: Updater, step: int, lr: float) -> None:
        # The teacher and pre-distillation are never disturbed here.
        now["step"] = -1 if isinstance(self.objective, SeqKD) else step
        begin(self, step, lr)

    Updater.begin_step = begin_step  # type: ignore[method-assign]
    return lambda: now["step"] >= STEP if stays else now["step"] == STEP


@contextmanager
def _poisoned_head(model: LanguageModel, due: Due) -> Iterator[None]:
    """All logits of a model are NaN while the block runs, if it is time."""
    if not due():
        yield
        return
    original = type(model)._head

    def head() -> Any:
        head = original(model)
        return replace(head, bias=torch.full((head.num_rows,), NAN))

    vars(model)["_head"] = head
    try:
        yield
    finally:
        del vars(model)["_head"]


def _wrap(owner: type, name: str, make: Callable[..., Any]) -> None:
    """Replace a method by `make(original)`."""
    setattr(owner, name, make(getattr(owner, name)))


def _during(owner: type, name: str, which: str, stays: bool) -> None:
    """Spoil the logits of `student` or `teacher` while a method of `owner` runs."""
    due = _due(stays)

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(self: Any, *arguments: Any) -> Any:
            model = getattr(self, which)
            if model is None:
                return original(self, *arguments)
            with _poisoned_head(model, due):
                return original(self, *arguments)

        return wrapped

    _wrap(owner, name, make)


def _teacher_outputs(stays: bool) -> None:
    write = stages.write_completions

    def poisoned(model: LanguageModel, *arguments: Any, **options: Any) -> None:
        with _poisoned_head(model, lambda: True):
            write(model, *arguments, **options)

    stages.write_completions = poisoned


def _of_rollout(field: str, stays: bool) -> None:
    due = _due(stays)

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def assign_credit(self: Any, rollout: Any, values: Any, student: Any = None) -> Any:
            if field == "returns" and due():
                values = replace(values, q_taken=torch.full_like(values.q_taken, NAN))
            rollout, sums = original(self, rollout, values, student)
            if field == "advantages" and due():
                rollout.advantages[0, 0] = NAN
            return rollout, sums

        return assign_credit

    _wrap(PolicyGradient, "assign_credit", make)


def _loss(stays: bool) -> None:
    due = _due(stays)

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def loss(self: Any, *arguments: Any) -> Any:
            out = original(self, *arguments)
            return replace(out, loss=out.loss * NAN) if due() else out

        return loss

    _wrap(PolicyGradient, "loss", make)


def _gradient(stays: bool) -> None:
    due = _due(stays)

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def clip(self: Accelerator, parameters: Any, *arguments: Any) -> Any:
            parameters = list(parameters)
            if due():
                _first(parameters).grad.view(-1)[0] = NAN
            return original(self, parameters, *arguments)

        return clip

    _wrap(Accelerator, "clip_grad_norm_", make)


def _first(parameters: list[Any]) -> Any:
    return next(p for p in parameters if p.grad is not None)


def _after_update(spoil: Callable[[Updater], None], stays: bool) -> None:
    due = _due(stays)

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def update(self: Updater, *arguments: Any) -> Any:
            found = original(self, *arguments)
            if due():
                with torch.no_grad():
                    spoil(self)
            return found

        return update

    _wrap(Updater, "_update_once", make)


def _one_number(tensor: Tensor) -> None:
    tensor.view(-1)[-1] = NAN


def _weights(updater: Updater) -> None:
    trained = [p for p in updater.student.parameters() if p.requires_grad]
    _one_number(trained[-1])


def _moments(updater: Updater) -> None:
    _one_number(next(iter(updater.optimizer.state.values()))["exp_avg_sq"])


def _beside(updater: Updater) -> None:
    _one_number(next(iter(updater._beside_student().values())))


def _one_rank(stays: bool) -> None:
    def spoil(updater: Updater) -> None:
        if os.environ.get("RANK") == "1":
            _weights(updater)

    _after_update(spoil, stays)


OF_A_STAGE = "the teacher's logits while it writes"
OF_ONE_RANK = "weights of one process of two"

SITES: dict[str, Callable[[bool], None]] = {
    "the student's logits while it writes": partial(_during, Updater, "collect", "student"),
    "the student's logits in the update": partial(_during, Updater, "_backward", "student"),
    "the student's logits in an evaluation": partial(_during, Trainer, "_evaluate", "student"),
    OF_A_STAGE: _teacher_outputs,
    "the teacher's logits of a rollout": partial(_during, Updater, "collect", "teacher"),
    "the teacher's logits in an evaluation": partial(_during, Trainer, "_evaluate", "teacher"),
    "returns": partial(_of_rollout, "returns"),
    "advantages": partial(_of_rollout, "advantages"),
    "the loss": _loss,
    "the gradient": _gradient,
    "weights": partial(_after_update, _weights),
    "moments of the optimizer": partial(_after_update, _moments),
    OF_ONE_RANK: _one_rank,
    # Beside the 13, what is trained beside or in place of a student's weights.
    "adapters": partial(_after_update, _weights),
    "a critic": partial(_after_update, _beside),
}
OVERRIDES = {
    "adapters": ("student.lora={r: 2}", "student.predistill=null"),
    "a critic": ("objective={name: ppo_llmr, critic: separate, num_epochs: 1}",),
}
