"""From a rollout batch to new weights: what the trainer does between two batches of prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor

from brim.models import LanguageModel, Teacher, checkpoint_layers, set_dropout, updating
from brim.objectives.base import Objective, Sums
from brim.seeding import derive_seed, minibatch_numbers
from brim.support.files import atomic_write_json, read_json
from brim.training.loop_settings import LoopConfig, OptimConfig
from brim.training.optimizer import (
    build_optimizer,
    count_bytes,
    fill,
    flat,
    load_optimizer,
    load_parameters,
    save_optimizer,
    save_parameters,
)
from brim.training.sharding import (
    gather,
    is_sharded,
    largest,
    local_part,
    shard_student,
    with_whole_weights,
)
from brim.types import Batch, Rollout

_T = TypeVar("_T")


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators, the only ones that dropout draws from, for the block."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@dataclass
class UpdateStats:
    """What the updates of one step add up to."""

    finite: bool
    count: int = 0
    num_tokens: float = 0.0
    grad_norm: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, sums: Mapping[str, float], grad_norm: float, num_tokens: float) -> None:
        """Count one more update."""
        self.finite &= math.isfinite(grad_norm) and all(map(math.isfinite, sums.values()))
        self.count += 1
        self.num_tokens += num_tokens
        self.grad_norm += grad_norm
        for key, value in sums.items():
            self.sums[key] = self.sums.get(key, 0.0) + value


@dataclass(frozen=True, slots=True)
class UpdaterState:
    """What a checkpoint holds of an updater, whole, on the process that writes it.

    Attributes:
        student: its weights, where the model holds a part of them; None where it holds all.
        optimizer: its `state_dict`.
        beside: what is trained beside the student.
    """

    student: dict[str, Tensor] | None
    optimizer: dict[str, Any]
    beside: dict[str, Tensor]


@dataclass
class Updater:
    """The student, all that is trained with it, and the optimizer.

    Attributes:
        student: the model that is trained, in place.
        teacher: the model that scores.
        objective: what the loss is.
        optim, settings: of the optimizer and the loop.
        accelerator: devices, processes, precision.
        seed: of the minibatches.
        module: what is trained: the student, or a module of the objective's that holds it.
        behavior: the policy that writes: the student, or a copy of it that is some steps old.
    """

    student: LanguageModel
    teacher: Teacher | None
    objective: Objective
    optim: OptimConfig
    settings: LoopConfig
    accelerator: Accelerator
    seed: int

    def __post_init__(self) -> None:
        if self.settings.dropout is not None:
            set_dropout(self.student.model, self.settings.dropout)
        self.student.batch_tokens = self.settings.micro_batch_tokens
        self.module = self.objective.prepare(self.student)
        if self.settings.gradient_checkpointing:
            checkpoint_layers(self.module, dropout=not self.objective.settings.compares_policies)
        self.behavior = self.student
        if self.objective.settings.updates.sync_every > 1:
            self.behavior = self.student.copy().requires_grad_(False)
        sharded = self.settings.sharding == "fsdp" and self.accelerator.num_processes > 1
        if sharded:
            shard_student(self.module, self.accelerator.device)
        # All processes make equally many passes over weights of which each holds a part.
        self._in_step = sharded or is_sharded(self.teacher)
        self.optimizer = build_optimizer(self.module, self.optim)
        # The policy is the module as the loss sees it: wrapped for DDP and autocast.
        self.policy, self._stepper = self.module, self.accelerator.prepare(self.optimizer)
        if not sharded:
            self.policy = self.accelerator.prepare(self.module)

    def begin_step(self, step: int, lr: float) -> None:
        """Set the learning rate, and bring the behavior policy up to date if it is time."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        every = self.objective.settings.updates.sync_every
        if self.behavior is not self.student and step % every == 0:
            with_whole_weights(self.module, self._renew_behavior)

    @torch.no_grad()
    def _renew_behavior(self) -> None:
        weights = self.student.parameters()
        for old, new in zip(self.behavior.parameters(), weights, strict=True):
            old.copy_(new)

    def collect(self, batch: Batch) -> tuple[Rollout, Sums]:
        """Return what `Objective.collect` makes of this process's prompts."""
        writing = self.module if self.behavior is self.student else self.behavior
        with torch.no_grad(), self.accelerator.autocast():
            return with_whole_weights(
                writing, lambda: self.objective.collect(batch, self.behavior, self.teacher)
            )

    def evaluate(self, function: Callable[[LanguageModel], _T]) -> _T:
        """Return a function of the student, without gradient; all processes call it together."""
        with torch.no_grad():
            return with_whole_weights(self.module, lambda: function(self.student))

    def update(self, rollout: Rollout, step: int, finite: bool) -> UpdateStats:
        """Update the weights from one rollout batch, as often as the objective says."""
        done = UpdateStats(finite=finite)
        for epoch in range(self.objective.settings.updates.num_epochs):
            for part in self._minibatches(rollout, step, epoch):
                num_tokens = self.total({"tokens": part.mask.sum()})["tokens"]
                sums, grad_norm = self._update_once(part, num_tokens, finite)
                done.add(sums, grad_norm, num_tokens)
                if self.objective.enough(sums, num_tokens):
                    return done
        return done

    @torch.no_grad()
    def find_nonfinite(self, rollout: Rollout) -> str | None:
        """Return the name of what the updates left unusable on any process, or None.

        Norms must be finite: of the weights, of the optimizer's moments, and of the student's
        log-probabilities of the first completion, which were finite before the update. All
        processes call it together.

        Args:
            rollout: this process's part of what was learned from.
        """
        weights = [p for p in self.module.parameters() if p.requires_grad]
        moments = [
            value
            for state in self.optimizer.state.values()
            for _, value in flat(state)
            if isinstance(value, Tensor) and value.is_floating_point()
        ]
        with self.accelerator.autocast(), self.student.uncompiled():
            logprobs = self.evaluate(lambda model: model.statistics(rollout.select([0])).logprobs)
        norms = {
            "weights": _norm(weights, 2.0),
            "optimizer's moments": _norm(moments, math.inf),
            "logits": _norm([logprobs], math.inf),
        }
        broken = self.total({name: float(not math.isfinite(norms[name])) for name in norms})
        return next((name for name, count in broken.items() if count), None)

    def _update_once(
        self, rollout: Rollout, num_tokens: float, finite: bool
    ) -> tuple[dict[str, float], float]:
        """One update, left out where anything is not finite; its sums and its gradient's norm."""
        loss_sums = self._backward(rollout, num_tokens)
        max_norm = self.optim.max_grad_norm or math.inf
        grad_norm = float(self.accelerator.clip_grad_norm_(self.policy.parameters(), max_norm))
        sums = self.total(loss_sums)
        if finite and math.isfinite(grad_norm) and all(map(math.isfinite, sums.values())):
            self._stepper.step()
        self._stepper.zero_grad(set_to_none=True)
        return sums, grad_norm

    def _minibatches(self, rollout: Rollout, step: int, epoch: int) -> Iterator[Rollout]:
        """This process's share of each minibatch; which rows it holds is the same for all."""
        count = self.objective.settings.updates.num_minibatches
        if count == 1:
            yield rollout
            return
        rank, num_processes = self.accelerator.process_index, self.accelerator.num_processes
        num_prompts = self.settings.rollout_batch_size
        copies = len(rollout) // len(range(rank, num_prompts, num_processes))
        numbers = minibatch_numbers(
            num_prompts * copies, count, derive_seed(self.seed, "minibatch", step, epoch)
        ).reshape(num_prompts, copies)[rank::num_processes]
        for number in range(count):
            rows = (numbers.reshape(-1) == number).nonzero()[0].tolist()
            yield _select(rollout, rows)

    def _backward(self, rollout: Rollout, num_tokens: float) -> dict[str, Tensor]:
        """Accumulate the gradient of the loss per token of the whole batch of an update."""
        updating(self.module, dropout=not self.objective.settings.compares_policies)
        found: list[dict[str, Tensor]] = []
        parts = rollout.buckets(self.settings.micro_batch_tokens)
        if self._in_step:
            parts += [[]] * (largest(len(parts), self.accelerator.device) - len(parts))
        # DDP and FSDP average over processes; the loss is a sum over all of them.
        scale = self.accelerator.num_processes / max(num_tokens, 1.0)
        for i, rows in enumerate(parts):
            part = _select(rollout, rows)
            synchronize = i == len(parts) - 1
            with nullcontext() if synchronize else self.accelerator.no_sync(self.policy):
                with self.accelerator.autocast():
                    out = self.objective.loss(self.policy, part, self.teacher)
                self.accelerator.backward(out.loss * scale)
            found.append({"loss": out.loss.detach(), **out.sums})
        totals: dict[str, Tensor] = {}
        for sums in found:  # not within the loop: who reads a number waits for the device
            for key, value in sums.items():
                totals[key] = totals.get(key, 0.0) + value.cpu().double()
        return totals

    def total(self, sums: Mapping[str, Tensor | float]) -> dict[str, float]:
        """Return sums over all processes, in float64, by one exchange."""
        values = torch.tensor([float(value) for value in sums.values()], dtype=torch.float64)
        if self.accelerator.num_processes > 1:
            values = self.accelerator.reduce(values.to(self.accelerator.device), "sum")
        return dict(zip(sums, values.tolist(), strict=True))

    def state(self) -> UpdaterState:
        """Return what `save` writes, gathered from all processes, which call it together."""
        optimizer, beside = self.optimizer.state_dict(), self._beside_student()
        if not is_sharded(self.module):
            return UpdaterState(None, optimizer, beside)
        moments = optimizer["state"]
        whole = {index: gather(values) for index, values in moments.items()}
        return UpdaterState(self.weights(), {**optimizer, "state": whole}, gather(beside))

    def weights(self) -> dict[str, Tensor] | None:
        """Return the student's part of `state`."""
        if not is_sharded(self.module):
            return None
        return gather(self.student.model.state_dict(keep_vars=True))

    def num_bytes(self, state: UpdaterState) -> int:
        """Count the bytes of the tensors that `save` writes."""
        weights = count_bytes((state.student or self.student.model.state_dict()).values())
        copies = 1 if self.behavior is self.student else 2
        moments = [v for own in state.optimizer["state"].values() for _, v in flat(own)]
        beside = [*state.beside.values(), *(v for v in moments if isinstance(v, Tensor))]
        return copies * weights + count_bytes(beside)

    def save(self, path: Path, state: UpdaterState | None = None) -> None:
        """Write into a checkpoint's folder all that `restore` needs; on one process.

        Args:
            path: the folder.
            state: what `state` gave; may be left out where nothing is sharded.
        """
        state = self.state() if state is None else state
        self.student.save(path, resumable=True, state_dict=state.student)
        save_optimizer(self.optimizer, path, state.optimizer)
        save_parameters(state.beside, path / "objective.safetensors")
        atomic_write_json(path / "objective.json", self.objective.state_dict())
        if self.behavior is not self.student:
            self.behavior.save(path / "writer", resumable=True)

    def restore(self, path: Path, load: Callable[[Path], LanguageModel]) -> None:
        """Restore what `save` wrote, bit for bit; `load` reads the model of a folder.

        Raises:
            RunError: a file is missing, or is of other settings.
        """
        if is_sharded(self.module):
            fill(self.student.model.state_dict(keep_vars=True), load(path).model.state_dict())
        else:
            self.student.restore(path, load)
        load_optimizer(self.optimizer, path)
        load_parameters(self._beside_student(), path / "objective.safetensors")
        self.objective.load_state_dict(read_json(path / "objective.json"))
        if self.behavior is not self.student:
            self.behavior.restore(path / "writer", load)

    def _beside_student(self) -> dict[str, Tensor]:
        """What is trained beside the student, such as a critic; no part of what comes out."""
        if self.module is self.student:
            return {}
        parameters = self.module.named_parameters()
        return {name: value for name, value in parameters if not name.startswith("student.")}


def _norm(tensors: Sequence[Tensor], order: float) -> float:
    """The norm of all that this process holds of the tensors; not finite where a number is not."""
    parts = [part for tensor in tensors if (part := local_part(tensor)).numel()]
    return float(torch.nn.utils.get_total_norm(parts, order)) if parts else 0.0


def _select(rollout: Rollout, rows: Sequence[int]) -> Rollout:
    """The rows; of none a row without tokens, for the others wait for this process's gradient."""
    if rows:
        return rollout.select(rows)
    nothing = rollout.select([0])
    return replace(nothing, mask=torch.zeros_like(nothing.mask))


def name_suspects(rollout: Rollout) -> str:
    """Return ids of the examples whose returns or weights are not finite; of all, if none is."""
    ids = [example.id for example in rollout.batch.examples]
    # Returns first: one of them that is not finite spoils the baseline, and so all weights.
    for numbers in (rollout.returns, rollout.advantages):
        if numbers is not None:
            bad = (~numbers.isfinite() & rollout.mask).any(dim=1).tolist()
            if any(bad):
                return ", ".join(name for name, is_bad in zip(ids, bad, strict=True) if is_bad)
    return ", ".join(ids)


def text_sums(rollout: Rollout) -> dict[str, float]:
    """Return what the monitors watch of the texts that the student wrote, as sums.

    Returns:
        `own_rows`; `ngrams`, runs of four tokens, and how many of them their text had before,
        `repeated` (seq-rep-4 of Welleck et al. 2019, over all texts); `weights`, tokens with an
        advantage, and the sums of it and of its square.
    """
    weights, own = rollout.advantages, rollout.by_student
    if own is None:
        own = torch.full_like(rollout.truncated, weights is not None)
    mask, ids = rollout.mask & own[:, None], rollout.completion_ids
    sums = {"own_rows": float(own.sum()), "weights": 0.0, "weight": 0.0, "squared_weight": 0.0}
    if weights is not None:
        values = weights[mask].cpu().double()
        sums |= {"weights": float(len(values)), "weight": float(values.sum())}
        sums["squared_weight"] = float(values.square().sum())
    count = max(ids.shape[1] - 3, 0)
    keys = torch.arange(len(ids), device=ids.device)[:, None].expand(-1, count)
    for i in range(4):  # a hash of 64 bits of row and tokens, which may wrap around
        keys = keys * 1_000_003 + ids[:, i : i + count]
    keys = keys[mask[:, 3:]]  # a row is without holes: where the last token is, the first ones are
    keys = keys.sort().values
    repeated = (keys[1:] == keys[:-1]).sum()
    return {**sums, "ngrams": float(len(keys)), "repeated": float(repeated)}
