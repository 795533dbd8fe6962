"""Masks over completion tokens, and reductions that padding cannot leak into.

A mask is (B, T) bool, True where a token counts. Values under False are arbitrary, NaN and
infinities included: they are replaced before any arithmetic, never multiplied by zero, so that
neither results nor gradients can meet them.
"""

from collections.abc import Collection

import torch
from torch import Tensor


def promote(values: Tensor) -> Tensor:
    """The values in the precision that sums are made in: float64 stays, all else is float32."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def gather_logprobs(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities of the tokens that were written.

        logprobs[t] = logits[t, ids[t]] - log Σ_a exp(logits[t, a])

    Args:
        logits: (B, T, V) float.
        ids: (B, T) int64 in [0, V), at padding positions too.

    Returns:
        (B, T), float32 or better, differentiable.
    """
    taken = logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    return promote(taken) - promote(logits).logsumexp(-1)


def masked_sum(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum of the values under the mask, over `dim` or over everything; in float32 or better."""
    return zero_padding(values, mask).sum(dim)


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of the values under the mask; like `torch.mean`, NaN where there are none."""
    return masked_sum(values, mask, dim) / mask.sum(dim)


def zero_padding(values: Tensor, mask: Tensor) -> Tensor:
    """The values in float32 or better, exactly 0 where the mask is False."""
    return torch.where(mask, promote(values), 0.0)


def mask_after_eos(ids: Tensor, eos_ids: Collection[int]) -> Tensor:
    """Mask out what follows the first end-of-sequence token; the token itself is an action.

    Args:
        ids: (B, T) int64.
        eos_ids: every id that ends a sequence; where none occurs, the whole row counts.

    Returns:
        (B, T) bool, True from the first token to the first EOS.
    """
    is_eos = torch.isin(ids, torch.tensor(list(eos_ids), dtype=ids.dtype, device=ids.device))
    num_eos_before = is_eos.cumsum(dim=1) - is_eos.long()
    return num_eos_before == 0


def check_shapes(mask: Tensor, **tensors: Tensor) -> None:
    """Refuse anything but a (B, T) bool mask and float tensors of its shape.

    Raises:
        ValueError: naming the tensor, what it is and what it should be.
    """
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool, got {mask.dtype}; use `mask.bool()`")
    if mask.dim() != 2:
        raise ValueError(f"mask must have shape (B, T), got {tuple(mask.shape)}")
    for name, tensor in tensors.items():
        if tensor.shape != mask.shape:
            raise ValueError(
                f"{name} must have the mask's shape {tuple(mask.shape)}, got {tuple(tensor.shape)}"
            )
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be a float tensor, got {tensor.dtype}")


def check_mask(mask: Tensor, **tensors: Tensor) -> None:
    """Refuse what `check_shapes` does, and masks that are not True exactly up to a length.

    A row without tokens is fine, a tensor without positions is not. On an accelerator this waits
    until the mask is known.

    Raises:
        ValueError: naming the first row with a hole or with padding before its first token.
    """
    check_shapes(mask, **tensors)
    if mask.shape[1] == 0:
        raise ValueError(f"mask must have at least one position, got {tuple(mask.shape)}")
    resumes = mask[:, 1:] > mask[:, :-1]
    # On CPU the maximum of bytes is ten times as fast as any().
    if resumes.numel() and resumes.view(torch.uint8).max():
        row, step = resumes.nonzero()[0].tolist()
        raise ValueError(
            "mask must be True from the first token to the last without holes (pad on the right), "
            f"but row {row} turns from False to True at position {step + 1}"
        )
