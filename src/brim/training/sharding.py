"""Weights in parts: each process holds a share of every tensor (FSDP2, torch's `fully_shard`).

Each layer of encoder and decoder is a group that is gathered and freed as a whole. All else is the
root's group: embeddings, output head, last norms, a critic's value head. The head has no forward
pass of its own (`models/head.py` reads its weight), so it has to be there whenever the root is.

- An update gathers a layer for its forward and again for its backward pass, and the root's group
  for both together. Every pass is a joint act: all processes make equally many (`largest`).
- While the student writes or is asked, it is whole on every process (`with_whole_weights`):
  gathered once, freed at the end. Processes then need not go in step, token by token or at all.
- A teacher that scores is gathered layer by layer in each pass (`LanguageModel.map` makes them
  equally many), for it may be too large for one device. A teacher that writes is gathered as a
  whole for as long as it writes.

Accelerate's own FSDP plugin is set by the launch rather than by the recipe, knows no other entry
than `forward`, and no second model without an optimizer; the loop uses accelerate for the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from brim.errors import ConfigError, ModelError
from brim.models import Decoding, LanguageModel
from brim.models.adapters import has_adapters
from brim.models.decoding import OnFinished
from brim.models.layers import layers_of
from brim.types import Batch, Rollout

_T = TypeVar("_T")


def is_sharded(module: object) -> bool:
    """Whether the module was given to `shard_student`, or is a `ShardedTeacher`."""
    return isinstance(module, FSDPModule)


def shard_student(module: nn.Module, device: torch.device) -> None:
    """Leave each process its part of what is trained, in place; before the optimizer is made.

    Args:
        module: the student, or what holds it (and a critic with layers of its own).
        device: of this process; its weights move there, layer by layer.

    Raises:
        ConfigError: the torch at hand is too old.
        ModelError: the module has adapters, or layers that are not known.
    """
    models = [part for part in module.modules() if isinstance(part, LanguageModel)]
    if any(has_adapters(model.model) for model in models):
        raise ModelError("adapters cannot be trained in parts; set trainer.sharding to none")
    _shard(module, models, device, OffloadPolicy())


class ShardedTeacher(LanguageModel):
    """A frozen teacher of which each process holds a part.

    All processes must call its `map` and its `generate` equally often.

    Args:
        teacher: on the CPU, where it need not fit the device; used in this form only from now on.
        device: where it computes.
        offload: keep the parts in the CPU's memory. One process can do so, too.

    Raises:
        ConfigError: the torch at hand is too old.
        ModelError: the teacher's layers are not known.
    """

    def __init__(
        self, teacher: LanguageModel, device: torch.device, *, offload: bool = False
    ) -> None:
        vars(self).update(vars(teacher))  # the same weights, and what it must not write
        self._computes_on = device
        if not torch.distributed.is_initialized():
            store = torch.distributed.HashStore()  # type: ignore[attr-defined]
            # As launchers have it: what is on a GPU is exchanged by NCCL.
            nccl = device.type == "cuda" and torch.distributed.is_nccl_available()
            backend = "cpu:gloo,cuda:nccl" if nccl else "gloo"
            torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
        # Memory that is pinned is copied to a GPU while that computes.
        policy = CPUOffloadPolicy(pin_memory=device.type == "cuda") if offload else OffloadPolicy()
        _shard(self, [self], device, policy)
        register_fsdp_forward_method(self, "features")

    def generate(
        self, batch: Batch, decoding: Decoding, *, on_finished: OnFinished | None = None
    ) -> Rollout:
        """Write with all of the weights gathered; see `LanguageModel.generate`."""
        write, batch = super().generate, batch.to(self._computes_on)
        return with_whole_weights(self, lambda: write(batch, decoding, on_finished=on_finished))

    def map(self, rollout: Rollout, function: Callable[[Rollout], _T]) -> _T:
        """Make as many passes as the process with the most; see `LanguageModel.map`."""
        own = len(rollout.buckets(self.batch_tokens))
        # Before the first pass, which waits for the others.
        missing = largest(own, self._computes_on) - own
        found = super().map(rollout, function)
        for _ in range(missing):
            function(rollout.select([0]))
        _free(self)
        return found


def with_whole_weights(module: nn.Module, function: Callable[[], _T]) -> _T:
    """What a function returns while every process holds all of the module's weights.

    All processes call it together; what the function does is each one's own affair. It must not
    ask for gradients. A module that is not sharded is whole anyway.
    """
    if not isinstance(module, FSDPModule):
        return function()
    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
    module.set_reshard_after_forward(False)
    try:
        with torch.no_grad():
            found: _T = vars(module)["whole"](parts, function)
            return found
    finally:
        _free(module)
        for part in parts[1:]:
            part.set_reshard_after_forward(True, recurse=False)


def largest(count: int, device: torch.device) -> int:
    """The largest of all processes' counts."""
    number = torch.tensor(count, device=device)
    torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
    return int(number)


def gather(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, whole, in the first process's main memory; the others get none.

    All processes call it together. What is one tensor under several names stays one.
    """
    first = torch.distributed.get_rank() == 0
    whole: dict[int, Tensor] = {}
    for tensor in tensors.values():
        if id(tensor) not in whole:
            found = tensor.detach()
            found = found.full_tensor() if isinstance(found, DTensor) else found
            whole[id(tensor)] = found.cpu() if first else found.new_empty(0)
    return {name: whole[id(tensor)] for name, tensor in tensors.items()} if first else {}


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: all of it, where it is whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_of(value: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, shared out as `like` is; all of it if that is whole.

    Nothing is sent: every process brings the whole tensor.
    """
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def _shard(
    root: nn.Module, models: Iterable[LanguageModel], device: torch.device, policy: OffloadPolicy
) -> None:
    if not hasattr(FSDPModule, "reset_iter_state"):
        raise ConfigError(
            f"sharding: needs a newer torch than {torch.__version__}; install torch 2.13, or set "
            "it to none"
        )
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for model in models:
        stacks = [model.model.get_decoder()]
        if model.is_encoder_decoder:
            stacks.append(model.model.get_encoder())
        for stack in stacks:
            for layer in layers_of(stack):
                fully_shard(layer, mesh=mesh, offload_policy=policy)
    fully_shard(root, mesh=mesh, reshard_after_forward=False, offload_policy=policy)

    def whole(parts: Iterable[FSDPModule], function: Callable[[], Any]) -> Any:
        for part in parts:
            part.unshard()
        return function()

    # To FSDP all that happens while the weights are whole is one forward pass of the root.
    vars(root)["whole"] = whole
    register_fsdp_forward_method(root, "whole")


def _free(root: nn.Module) -> None:
    """Drop gathered weights, and FSDP's list of passes, which only a backward pass would empty."""
    assert isinstance(root, FSDPModule)
    root.reset_iter_state()
