"""What enters the matrix products of a block of code."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class SmallestOperands(TorchDispatchMode):
    """Records the smallest number but 0 of each matrix that is multiplied while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm_.default):
            for leaf in tree_leaves(args):
                if isinstance(leaf, Tensor):
                    sizes = leaf.detach().abs()
                    self.seen.append(float(sizes[sizes > 0].min()) if (sizes > 0).any() else 1.0)
        return func(*args, **(kwargs or {}))
