import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from brim.masking import (
    check_mask,
    check_shapes,
    gather_logprobs,
    mask_after_eos,
    masked_mean,
    masked_sum,
)

MASK = torch.tensor([[True, True, False], [True, False, False]])


def test_gather_logprobs_are_the_logs_of_the_softmax():
    probabilities = torch.tensor([[[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]]], dtype=torch.float64)
    offsets = torch.tensor([[[3.0], [-80.0]]], dtype=torch.float64)
    logprobs = gather_logprobs(probabilities.log() + offsets, torch.tensor([[2, 1]]))
    assert logprobs[0].exp().tolist() == pytest.approx([0.7, 0.25])


def test_gather_logprobs_of_half_precision_logits_are_float32():
    logits = torch.linspace(-4, 4, 64).reshape(1, 4, 16).bfloat16()
    ids = torch.tensor([[0, 5, 10, 15]])
    logprobs = gather_logprobs(logits, ids)
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs.double(), gather_logprobs(logits.double(), ids))


def test_gather_logprobs_passes_finite_differences():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    ids = torch.tensor([[0, 4, 4], [2, 1, 0]])
    assert torch.autograd.gradcheck(lambda x: gather_logprobs(x, ids), logits)


@pytest.mark.parametrize("filler", [math.nan, math.inf, -math.inf])
def test_reductions_do_not_see_the_padding(filler):
    values = torch.tensor([[1.0, 2.0, filler], [6.0, filler, filler]], requires_grad=True)
    assert masked_sum(values, MASK).item() == 9
    assert masked_sum(values, MASK, dim=1).tolist() == [3, 6]
    assert masked_mean(values, MASK).item() == 3
    assert masked_mean(values, MASK, dim=1).tolist() == [1.5, 6]
    masked_mean(values, MASK).backward()
    torch.testing.assert_close(values.grad, MASK / 3)


def test_reductions_keep_what_half_precision_would_lose():
    values = torch.ones(1, 4097, dtype=torch.bfloat16)
    assert masked_sum(values, torch.ones(1, 4097, dtype=torch.bool)).item() == 4097


def test_the_mean_of_nothing_is_nan():
    assert masked_mean(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool)).isnan()


@given(st.lists(st.lists(st.integers(0, 4), min_size=6, max_size=6), min_size=1, max_size=4))
def test_mask_after_eos_keeps_all_up_to_the_first_eos(rows):
    mask = mask_after_eos(torch.tensor(rows), eos_ids=(1, 3))
    check_mask(mask)
    for row, keep in zip(rows, mask.tolist(), strict=True):
        ends = [t for t, token in enumerate(row) if token in (1, 3)]
        assert sum(keep) == (ends[0] + 1 if ends else len(row))


def test_without_eos_ids_everything_counts():
    assert mask_after_eos(torch.tensor([[0, 1, 2]]), eos_ids=()).all()


@pytest.mark.parametrize(
    ("rows", "row", "position"),
    [
        ([[1, 1, 1], [1, 0, 1]], 1, 2),
        ([[0, 1, 1], [1, 1, 1]], 0, 1),
        ([[0, 0, 0], [0, 0, 1]], 1, 2),
    ],
)
def test_masks_with_holes_are_refused(rows, row, position):
    with pytest.raises(ValueError, match=f"row {row} turns from False to True at .* {position}$"):
        check_mask(torch.tensor(rows, dtype=torch.bool))


def test_empty_and_full_rows_are_masks():
    check_mask(torch.tensor([[False, False], [True, True], [True, False]]))


@pytest.mark.parametrize(
    ("mask", "values", "message"),
    [
        (MASK.int(), torch.zeros(2, 3), "mask must be bool, got torch.int32"),
        (MASK[0], torch.zeros(3), r"mask must have shape \(B, T\), got \(3,\)"),
        (MASK, torch.zeros(2, 1), r"values must have the mask's shape \(2, 3\), got \(2, 1\)"),
        (MASK, MASK.long(), "values must be a float tensor, got torch.int64"),
    ],
)
def test_shapes_and_dtypes_are_refused_by_name(mask, values, message):
    with pytest.raises(ValueError, match=message):
        check_shapes(mask, values=values)


def test_a_mask_without_positions_is_refused():
    with pytest.raises(ValueError, match="at least one position"):
        check_mask(torch.zeros(2, 0, dtype=torch.bool))
