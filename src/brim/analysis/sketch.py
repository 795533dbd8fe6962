"""A random projection of a gradient with millions of numbers to a few hundred."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from brim.seeding import derive_seed


class GradientSketch:
    """Count sketch (Charikar et al. 2002; feature hashing of Weinberger et al. 2009).

    Each number of the gradient is added, with a random sign, to one of D sums chosen at random:

        (S g)[j] = Σ_{i: h(i) = j} ς(i) g(i)

    Over the draws of h and ς inner products are right on average, E ⟨S x, S y⟩ = ⟨x, y⟩, and the
    standard deviation of ‖S x‖² is at most √(2/D) ‖x‖². One S is drawn and used for all gradients,
    so it is the same small distortion for all of them. It is linear: the sketch of a sum is the
    sum of the sketches.

    Of S only one number of 16 bits a parameter is kept, and gradients are taken parameter by
    parameter: nothing of D times the model's size exists.

    Args:
        sizes: numbers of each parameter.
        num_dimensions: D, at most 2^14.
        seed: of h and ς.
        device: where the gradients will be.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        num_dimensions: int,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        if not 1 <= num_dimensions <= 2**14:
            raise ValueError(f"num_dimensions must be in [1, 2^14], got {num_dimensions}")
        self.num_dimensions = num_dimensions
        # Place and sign as one number: the second half of the places is subtracted.
        self._places = [
            torch.randint(
                2 * num_dimensions,
                (size,),
                dtype=torch.int16,
                generator=torch.Generator().manual_seed(derive_seed(seed, "sketch", number)),
            ).to(device)
            for number, size in enumerate(sizes)
        ]

    def __call__(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """Sketch of each parameter's gradient, (parameters, D) float64 on the CPU.

        Their sum is the sketch of the whole gradient. None is a gradient of zeros.
        """
        places, width = self._places, self.num_dimensions
        result = torch.zeros(len(places), width, dtype=torch.float64)
        for row, where, gradient in zip(result, places, gradients, strict=True):
            if gradient is not None:
                sums = torch.bincount(where, gradient.flatten().float(), minlength=2 * width)
                row += (sums[:width] - sums[width:]).cpu()
        return result
