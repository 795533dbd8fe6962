"""How far two ways of computing the same numbers may differ: by dtype and number of additions.

The order in which a processor adds is its own: AMX, AVX-512, AVX2 and plain code differ, and so do
numbers of threads. Each of n additions rounds by up to half a unit in the last place, and the
errors add up like a random walk (Higham & Mary 2019, A new approach to probabilistic rounding
error analysis): rounding does not reach ten times their deviation, and a wrong mask, position or
dropout is a thousand times larger.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

# Additions on the longest path through a tiny model (`unit/models/tiny.py`, `e2e/pairs.py`) and
# back: three layers of six products with up to 64 terms each.
PATH = 2 * 3 * 6 * 64


def rounding(terms: int = PATH, size: float = 1.0, dtype: torch.dtype = torch.float32) -> float:
    """The largest difference that rounding makes.

    Args:
        terms: additions on the way to the number.
        size: of the largest number on the way.
        dtype: they are made in.
    """
    return 10 * math.sqrt(terms) * torch.finfo(dtype).eps * size


def assert_rounding(
    found: Tensor | Mapping[str, Tensor],
    expected: Tensor | Mapping[str, Tensor],
    *,
    terms: int = PATH,
    size: float | None = None,
) -> None:
    """Check that tensors differ by rounding only.

    Args:
        found: a tensor, or several by name, such as gradients.
        expected: the same from another order of additions.
        terms: additions on the way to a number.
        size: of the largest number on the way; by default the largest one that is expected, or 1.
    """
    if isinstance(found, Tensor) and isinstance(expected, Tensor):
        found, expected = {"": found}, {"": expected}
    assert isinstance(found, Mapping)
    assert isinstance(expected, Mapping)
    assert found.keys() == expected.keys()
    if size is None:
        size = max(1.0, *(float(tensor.detach().abs().max()) for tensor in expected.values()))
    for name, tensor in found.items():
        other = expected[name].detach()
        # What is compared may have been made in float64; what is found was not.
        tolerance = rounding(terms, size, tensor.dtype)
        torch.testing.assert_close(tensor.detach().to(other.dtype), other, rtol=0, atol=tolerance)
