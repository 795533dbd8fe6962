from typing import Any

import pytest
import torch
from operands import SmallestOperands
from rounding import assert_rounding
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from brim.models.head import (
    CHUNK_BYTES,
    EXCLUDED,
    Distribution,
    OutputHead,
    action_statistics,
    chunk_logits,
    keep_likeliest,
    token_statistics,
)
from brim.plan.peaks import CostCounter

N, D, ROWS, USED = 23, 8, 50, 44
TERMS = N + D + ROWS  # that are added on the way to a gradient
LARGEST = 10.0  # logit, where nothing is peaked
HOLES = [3, 17]


def make(
    *, bias: bool, holes: bool, scale: float, peak: float = 1.0, seed: int = 0
) -> tuple[Tensor, OutputHead, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, D, generator=generator).requires_grad_()
    weight = (peak * torch.randn(ROWS, D, generator=generator)).requires_grad_()
    row_bias = torch.randn(USED, generator=generator)
    if holes:
        row_bias[HOLES] = EXCLUDED
    row_bias = row_bias.requires_grad_() if bias else None
    candidates = torch.tensor([i for i in range(USED) if not holes or i not in HOLES])
    chosen = torch.randint(len(candidates), (N,), generator=generator)
    return hidden, OutputHead(weight, row_bias, USED, scale), candidates[chosen]


def naive_logits(hidden: Tensor, head: OutputHead) -> Tensor:
    """All logits at once, in double precision."""
    logits = (hidden.double() * head.scale) @ head.weight.double()[: head.num_rows].t()
    return logits if head.bias is None else logits + head.bias.double()


def kept(logits: Tensor, written: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """(n, V) bool, by the definition, token by token; the written ones too."""
    result = torch.zeros(logits.shape, dtype=torch.bool)
    for row, values, token in zip(result, logits.detach().double(), written, strict=True):
        order = values.argsort(descending=True)
        chosen = order if top_k is None else order[:top_k]
        chosen = (values >= values[chosen[-1]]).nonzero().squeeze(1)
        if top_p is not None:
            shares = values[chosen].softmax(0)
            order = shares.argsort(descending=True)
            before = shares[order].cumsum(0) - shares[order]
            chosen = chosen[order[before < top_p]]
        row[chosen] = row[token] = True
    return result


CUTS = [
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": ROWS},
    {"top_p": 0.8},
    {"top_p": 1.0},
    {"top_k": 6, "top_p": 0.7},
]

CASES = [
    {"bias": False, "holes": False, "scale": 1.0},
    {"bias": True, "holes": False, "scale": 1.0},
    {"bias": True, "holes": True, "scale": 1.0},
    {"bias": False, "holes": False, "scale": D**-0.5},
    {"bias": True, "holes": True, "scale": D**-0.5},
    {"bias": True, "holes": False, "scale": 1.0, "peak": 40.0},  # one-hot distributions
]


@pytest.mark.parametrize("cut", [{}, *CUTS], ids=str)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("chunk_tokens", [None, 1, 7, 100])
def test_statistics_and_gradients_equal_the_naive_ones(cut, case, chunk_tokens):
    hidden, head, targets = make(**case)
    leaves = [t for t in (hidden, head.weight, head.bias) if t is not None]
    distribution = Distribution(0.8 if cut else 1.0, **cut)
    logprobs, entropy = token_statistics(
        hidden, head.under(distribution), targets, chunk_tokens=chunk_tokens
    )
    weights = torch.linspace(-1, 1, N)
    gradients = torch.autograd.grad((weights * logprobs).sum(), leaves)

    logits = naive_logits(hidden, head) / distribution.temperature
    # Written at random, most tokens lie outside of a small set, and are kept even so.
    stay = kept(logits, targets, distribution.top_k, distribution.top_p)
    log_softmax = logits.masked_fill(~stay, -torch.inf).log_softmax(1)
    expected = log_softmax.gather(1, targets[:, None]).squeeze(1)
    expected_gradients = torch.autograd.grad((weights * expected).sum(), leaves)
    near = {"terms": TERMS, "size": LARGEST * case.get("peak", 1.0)}
    assert logprobs.dtype == entropy.dtype == torch.float32
    assert not entropy.requires_grad
    assert_rounding(logprobs, expected, **near)
    assert_rounding(entropy, torch.special.entr(log_softmax.exp()).sum(1), **near)
    for gradient, reference in zip(gradients, expected_gradients, strict=True):
        assert_rounding(gradient, reference, **near)
    assert logprobs.min() > -1000 * case.get("peak", 1.0)


def test_what_ties_with_the_last_token_is_kept_wherever_it_is():
    logits = torch.tensor([3.0, 1.0, 2.0, 1.0, 0.0, 1.0])
    generator = torch.Generator().manual_seed(0)
    # Of all that top_k = 3 keeps, ties counted, the first two hold 77 %.
    cuts = [(3, None, 1.0), (None, 0.95, 1.0), (2, 0.99, 2.0), (3, 0.85, 1.0), (3, 0.75, 2.0)]
    for top_k, top_p, lowest in cuts:
        expected = logits.where(logits >= lowest, EXCLUDED)
        for _ in range(5):
            order = torch.randperm(6, generator=generator)
            cut = keep_likeliest(logits[order][None], top_k, top_p)[0]
            assert torch.equal(cut, expected[order])


@pytest.mark.parametrize("noise", [0.0, 1e-7, -1e-7])
def test_rounding_does_not_decide_where_round_probabilities_add_up_to_top_p(noise):
    shares = torch.tensor([0.5, 0.3, 0.1, 0.1])
    for top_p, number in ((0.5, 1), (0.8, 2), (0.81, 4), (0.9, 4)):
        cut = keep_likeliest((shares + noise).log()[None], None, top_p)
        assert int((cut > EXCLUDED).sum()) == number
    uniform = keep_likeliest(torch.full((1, 1000), noise), None, 0.1)
    assert (uniform > EXCLUDED).all()  # all tie


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("centering", ["none", "mean", "max", "logsumexp"])
def test_action_statistics_equal_the_naive_ones(case, centering):
    hidden, head, targets = make(**case)
    taken, best, logprobs = action_statistics(hidden, head, targets, centering=centering)
    logits = naive_logits(hidden, head)
    rows = [i for i in range(USED) if not (case["holes"] and i in HOLES)]
    logits = logits[:, rows]
    columns = torch.tensor([rows.index(int(target)) for target in targets])
    target_logits = logits.gather(1, columns[:, None]).squeeze(1)
    center = {
        "none": torch.zeros(N),
        "mean": logits.mean(1),
        "max": logits.amax(1),
        "logsumexp": logits.logsumexp(1),
    }[centering]
    near = {"terms": TERMS, "size": LARGEST * case.get("peak", 1.0)}
    assert_rounding(taken, (target_logits - center).double(), **near)
    assert_rounding(best, (logits.amax(1) - center).double(), **near)
    assert_rounding(logprobs, target_logits - logits.logsumexp(1), **near)
    assert not taken.requires_grad


def test_peaked_distributions_leave_no_denormal_numbers_in_the_backward_pass():
    hidden, head, targets = make(bias=False, holes=False, scale=1.0, peak=12.0)
    denormal = naive_logits(hidden, head).softmax(1)
    assert ((denormal > 0) & (denormal < 1e-38)).any(), "the case must be peaked enough"
    logprobs, _ = token_statistics(hidden, head, targets)
    with SmallestOperands() as operands:
        logprobs.sum().backward()
    assert operands.seen
    assert min(operands.seen) > torch.finfo(torch.float32).tiny


def test_a_nan_is_not_hidden():
    hidden, head, targets = make(bias=False, holes=False, scale=1.0)
    with torch.no_grad():
        hidden[2, 0] = torch.nan
    logprobs, entropy = token_statistics(hidden, head, targets)
    logprobs.sum().backward()
    assert hidden.grad is not None
    assert head.weight.grad is not None
    assert logprobs[2].isnan()
    assert entropy[2].isnan()
    assert hidden.grad[2].isnan().all()
    assert head.weight.grad[:USED].isnan().any()
    assert logprobs[[0, 1, 3]].isfinite().all()


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_low_precision(stored):
    hidden, head, targets = make(bias=False, holes=False, scale=1.0)
    weight = head.weight.detach().to(stored).requires_grad_()
    low = OutputHead(weight, None, USED)
    with torch.autocast("cpu", torch.bfloat16):
        logprobs, _ = token_statistics(hidden, low, targets)
    reference = naive_logits(hidden, head).log_softmax(1).gather(1, targets[:, None]).squeeze(1)
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs.double(), reference, rtol=0, atol=0.1)
    exact = torch.autograd.grad(reference.sum(), head.weight)[0]
    (gradient,) = torch.autograd.grad(logprobs.sum(), weight)
    assert gradient.dtype == stored
    torch.testing.assert_close(gradient.float(), exact, rtol=0.05, atol=0.1)


def test_no_tokens():
    hidden, head, targets = make(bias=True, holes=False, scale=1.0)
    logprobs, entropy = token_statistics(hidden[:0], head, targets[:0])
    logprobs.sum().backward()
    assert logprobs.shape == entropy.shape == (0,)
    assert head.weight.grad is not None
    assert (head.weight.grad == 0).all()


def test_memory_is_bounded_by_the_chunk_at_a_vocabulary_of_152_000():
    num_rows, num_tokens, width = 152_000, 400, 4
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(num_tokens, width, generator=generator).requires_grad_()
    weight = torch.randn(num_rows, width, generator=generator).requires_grad_()
    targets = torch.randint(num_rows, (num_tokens,), generator=generator)
    head = OutputHead(weight, None, num_rows)
    all_logits = 4 * num_tokens * num_rows
    known = (hidden, weight, targets)
    with CostCounter(known) as training:
        token_statistics(hidden, head, targets)[0].sum().backward()
    with CostCounter(known) as reading:
        action_statistics(hidden, head, targets, centering="mean")
    with CostCounter(known) as cut:
        few = head.under(Distribution(top_p=0.9))
        token_statistics(hidden[:27], few, targets[:27])
    parameters = 4 * num_rows * width
    for memory in (training, reading, cut):
        assert CHUNK_BYTES / 2 < memory.peak < 3 * CHUNK_BYTES + 2 * parameters
        assert memory.peak < all_logits / 2


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_products_stay_in_float32_where_the_device_has_it(stored, monkeypatch):
    class Products(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func.overloadpacket is torch.ops.aten.mm:
                found.append(func)
            return func(*args, **(kwargs or {}))

    found: list[Any] = []
    with FakeTensorMode(), Products():  # nothing is computed, so no GPU is needed
        for device in ("cuda", "cpu", "cuda"):
            hidden = torch.empty(N, D, dtype=stored, device=device)
            weight = torch.empty(ROWS, D, dtype=stored, device=device)
            assert chunk_logits(hidden, weight, None).dtype == torch.float32
            if len(found) == 2:  # AMD's GPUs call themselves cuda too
                monkeypatch.setattr(torch.version, "hip", "6.0")
    plain = torch.ops.aten.mm.default
    assert found == [plain if stored == torch.float32 else torch.ops.aten.mm.dtype, plain, plain]


def test_q_values_of_a_half_precision_head_are_the_rounded_product_on_a_cpu():
    hidden, head, targets = make(bias=False, holes=False, scale=1.0)
    low = OutputHead(head.weight.detach().bfloat16(), None, USED)
    taken, best, _ = action_statistics(hidden.detach().bfloat16(), low, targets)
    logits = naive_logits(hidden.detach().bfloat16(), low)
    near = {"rtol": 2**-8, "atol": 2**-8}
    torch.testing.assert_close(best.double(), logits.amax(1), **near)
    torch.testing.assert_close(taken.double(), logits.gather(1, targets[:, None])[:, 0], **near)


def test_a_head_that_was_cast_gives_the_same_logits_and_is_not_cast_again():
    head = OutputHead(torch.randn(40, 8), torch.randn(30), num_rows=30, scale=0.5)
    hidden = torch.randn(5, 8)
    assert head.cast().weight.data_ptr() == head.weight.data_ptr()  # there is nothing to cast
    with torch.autocast("cpu", torch.bfloat16):
        cast = head.cast()
        assert cast.weight.dtype == torch.bfloat16
        assert cast.cast().weight.data_ptr() == cast.weight.data_ptr()
        assert torch.equal(cast.logits(hidden), head.logits(hidden))
