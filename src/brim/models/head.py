"""The output head in chunks: logits of all tokens at once are never held.

With N tokens, d features and V rows, logits are `hidden @ weight.T + bias`, `(N, V)`. At V =
152,000 a batch of 64 × 300 tokens would need 12 GB for them in float32; here one chunk of tokens is
made at a time, reduced to a few numbers a token, and made again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from brim.models.settings import Centering, Distribution

Compare = Callable[[slice, Tensor], Tensor]
"""Of some of the N tokens, and their logits (n, V), to one number each, (n,) float32."""

# A chunk's float32 logits take at most this much; about three buffers of the size exist at once.
# Larger chunks gain nothing: the matrix product is already far past its break-even size.
CHUNK_BYTES = 32 * 2**20

# Probabilities below this, and gradients of comparisons, are zero in the backward pass. Peaked
# distributions are full of denormal floats, and a matrix product over denormals is ten times slower
# on a CPU; next to float32's relative precision of 1e-7 the change cannot be seen.
SMALLEST_PROBABILITY = 1e-20

# Stands for minus infinity in logits: its exponential is exactly 0, and 0 times it is not NaN.
EXCLUDED = -1e30

# A sum of probabilities this close below `top_p` has reached it. Without it, rounding would decide
# wherever round probabilities add up to a round `top_p`, as .5 and .3 do to .8.
ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class OutputHead:
    """A model's last layer, restricted to the rows that have a token.

    Attributes:
        weight: (V', d) with V' ≥ num_rows, as the model stores it.
        bias: (num_rows,) float32 or None; `EXCLUDED` at rows without a token.
        num_rows: V, the rows in use are the first V; what lies behind has no token.
        scale: factor of the features before the product, d^-0.5 in T5's first version.
        top_k, top_p: which logits are not excluded, see `keep_likeliest`.
    """

    weight: Tensor
    bias: Tensor | None
    num_rows: int
    scale: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    @classmethod
    def of(
        cls, model: PreTrainedModel, num_rows: int, excluded: Sequence[int], scale: float
    ) -> OutputHead:
        """Return the head of a model; `excluded` are rows among the first `num_rows`."""
        layer = model.get_output_embeddings()
        bias = getattr(layer, "bias", None)
        added = getattr(model, "final_logits_bias", None)  # BART and Marian
        if added is not None:
            bias = added[0] if bias is None else bias + added[0]
        if bias is not None:
            bias = bias[:num_rows].float()
        if excluded:
            floor = torch.zeros(num_rows, device=layer.weight.device)
            floor[excluded] = EXCLUDED
            bias = floor if bias is None else bias + floor
        return cls(layer.weight, bias, num_rows, scale)

    def to(self, device: torch.device | str) -> OutputHead:
        """The same head on `device`."""
        bias = None if self.bias is None else self.bias.to(device)
        return replace(self, weight=self.weight.to(device), bias=bias)

    def logits(self, hidden: Tensor, written: Tensor | None = None) -> Tensor:
        """(n, d) -> (n, V) float32 logits; for a few positions at a time.

        `written` (n,) are tokens that are kept in any case.
        """
        dtype = compute_dtype(self.weight)
        weight = self.weight[: self.num_rows].to(dtype)
        logits = chunk_logits(self.scaled(hidden).to(dtype), weight, self.bias)
        return keep_likeliest(logits, self.top_k, self.top_p, written)

    def cast(self) -> OutputHead:
        """The same head with its weight in the type that it multiplies in, for many products."""
        weight = self.weight[: self.num_rows]
        return replace(self, weight=weight.to(compute_dtype(weight)))

    def under(self, distribution: Distribution) -> OutputHead:
        """The head whose logits' softmax is the distribution."""
        head = self.at_temperature(distribution.temperature)
        return replace(head, top_k=distribution.top_k, top_p=distribution.top_p)

    def at_temperature(self, temperature: float) -> OutputHead:
        """The head whose logits are these ones divided by `temperature`."""
        if temperature == 1:
            return self
        bias = None if self.bias is None else self.bias / temperature
        return replace(self, bias=bias, scale=self.scale / temperature)

    def scaled(self, hidden: Tensor) -> Tensor:
        """The features as they enter the product."""
        return hidden if self.scale == 1 else hidden * self.scale

    def chunk_tokens(self) -> int:
        """Tokens whose float32 logits fit the budget of one chunk, at least 1."""
        # What is sorted needs a buffer for the values and two for their places.
        num_bytes = 4 if self.top_p is None else 8
        return max(1, CHUNK_BYTES // (num_bytes * self.num_rows))


def keep_likeliest(
    logits: Tensor, top_k: int | None, top_p: float | None, written: Tensor | None = None
) -> Tensor:
    """Exclude, in place, the tokens that a `Distribution` does not keep, of (n, V) float logits.

    Sampling and losses find the kept tokens here, so that they find the same. A loss reads tokens
    that were written before, (n,) int64, and there the set can have changed: at its border by
    rounding, under dropout, and where an older policy wrote. A written token is kept even so. Its
    probability is then that of a set with one token more: close to the border, where the exact 0
    would have an infinite logarithm and no gradient that could bring the token back.

    Returns:
        The same tensor, `EXCLUDED` at tokens that are not kept.
    """
    if top_p == 1:
        top_p = None
    if top_k is None and top_p is None:
        return logits
    excluded = logits < _lowest_kept(logits.detach(), top_k, top_p)
    if written is not None:
        excluded.scatter_(1, written[:, None], False)
    return logits.masked_fill_(excluded, EXCLUDED)


def _lowest_kept(logits: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """The logit of the least probable token of each row that is kept, (n, V) -> (n, 1)."""
    num_rows = logits.shape[1]
    size = num_rows if top_k is None else min(top_k, num_rows)
    descending = logits.topk(size, dim=1).values
    lowest = descending[:, -1:]
    if top_p is None:
        return lowest
    shares = descending.softmax(1)
    # Tokens that tie with the k-th are kept and hold a share too.
    num_ties = (logits >= lowest).sum(1, keepdim=True) - size
    enough = (top_p - ROUNDING) * (1 + num_ties * shares[:, -1:])
    last = (shares.cumsum(1) < enough).sum(1, keepdim=True).clamp_(max=size - 1)
    return descending.gather(1, last)


def token_statistics(
    hidden: Tensor, head: OutputHead, targets: Tensor, *, chunk_tokens: int | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of each distribution.

    Args:
        hidden: (N, d) features of the positions that predict the targets.
        head: the output head; gradients reach its weight and bias.
        targets: (N,) int64 token ids below `head.num_rows`.
        chunk_tokens: tokens a chunk; by default what fits `CHUNK_BYTES`.

    Returns:
        `log softmax(logits)[target]` (N,) float32, differentiable once, and the entropy (N,)
        float32, detached.
    """
    chunk_tokens = chunk_tokens or head.chunk_tokens()
    logprobs, entropy, _ = compared_statistics(hidden, head, targets, None, chunk_tokens)
    return logprobs, entropy


def compared_statistics(
    hidden: Tensor, head: OutputHead, targets: Tensor, compare: Compare | None, chunk_tokens: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """`token_statistics`, and what `compare` makes of the same logits, differentiable once too."""
    return _TokenStatistics.apply(  # type: ignore[no-any-return, no-untyped-call]
        head.scaled(hidden),
        head.weight,
        head.bias,
        targets,
        head.num_rows,
        chunk_tokens,
        compare,
        head.top_k,
        head.top_p,
    )


@torch.no_grad()
def action_statistics(
    hidden: Tensor, head: OutputHead, targets: Tensor, *, centering: Centering = "none"
) -> tuple[Tensor, Tensor, Tensor]:
    """Logit of each target, largest logit, and log-probability of each target.

    Args:
        hidden: (N, d) features of the positions that predict the targets.
        head: the output head.
        targets: (N,) int64 token ids below `head.num_rows`.
        centering: which statistic of a position's logits is subtracted from both of its logits.

    Returns:
        taken, best and logprobs, (N,) float32 each.
    """
    taken, best, logprobs = (hidden.new_empty(len(targets), dtype=torch.float32) for _ in range(3))
    head, step = head.cast(), head.chunk_tokens()
    for start in range(0, len(targets), step):
        rows = slice(start, start + step)
        logits = head.logits(hidden[rows])
        target_logits, largest = _gather(logits, targets[rows]), logits.amax(1)
        # Not by logsumexp: see the remark on exp below.
        logprobs[rows] = _gather(logits.log_softmax(1), targets[rows])
        center = _center(logits, largest, target_logits - logprobs[rows], centering)
        taken[rows] = target_logits - center
        best[rows] = largest - center
    return taken, best, logprobs


@torch.no_grad()
def gradient_norms(hidden: Tensor, head: OutputHead, targets: Tensor) -> Tensor:
    """Squared norm of the gradient of each target's log-probability in the head's weight, (N,).

    The gradient is the outer product of `onehot(a) - π` and the features h, so that

        ‖∇ log π(a)‖² = (1 - 2 π(a) + Σ_v π(v)²) ‖h‖²
    """
    norms = hidden.new_empty(len(targets), dtype=torch.float32)
    head, step = head.cast(), head.chunk_tokens()
    for start in range(0, len(targets), step):
        rows = slice(start, start + step)
        probabilities = head.logits(hidden[rows], targets[rows]).softmax(1)
        taken = probabilities.gather(1, targets[rows, None]).squeeze(1)
        residual = 1 - 2 * taken + probabilities.square().sum(1)
        norms[rows] = residual * head.scaled(hidden[rows]).float().square().sum(1)
    return norms


def _center(logits: Tensor, largest: Tensor, logsumexp: Tensor, centering: Centering) -> Tensor:
    """What to subtract from a position's logits, (n,)."""
    if centering == "mean":
        has_token = logits > EXCLUDED / 2
        return logits.where(has_token, 0).sum(1) / has_token.sum(1)
    if centering == "max":
        return largest
    return logsumexp if centering == "logsumexp" else torch.zeros_like(largest)


def compute_dtype(weight: Tensor) -> torch.dtype:
    """What the head multiplies in: autocast's type where autocast is on, else the weight's."""
    device = weight.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return weight.dtype


def chunk_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(n, d), (V, d) of one type, (V,) float32 -> (n, V) float32, in memory of their own."""
    with torch.autocast(hidden.device.type, enabled=False):
        if _sums_are_float32(hidden, weight):
            logits = torch.mm(hidden, weight.t(), out_dtype=torch.float32)
        else:
            logits = (hidden @ weight.t()).float()
    return logits if bias is None else logits.add_(bias)


def _sums_are_float32(hidden: Tensor, weight: Tensor) -> bool:
    """Whether a half-precision product comes as it was summed, in float32, and not rounded again.

    Rounded to bfloat16, Q-values keep three digits. torch 2.8 and later have it for NVIDIA's GPUs,
    without a derivative.
    """
    return (
        hidden.device.type == "cuda"
        and hidden.dtype in (torch.bfloat16, torch.float16)
        and torch.version.hip is None
        and hasattr(torch.ops.aten.mm, "dtype")
        and not (torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad))
    )


class _TokenStatistics(torch.autograd.Function):
    """Keeps the inputs and one number a token; the backward pass makes each chunk again."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        num_rows: int,
        chunk_tokens: int,
        compare: Compare | None,
        top_k: int | None,
        top_p: float | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        dtype = compute_dtype(weight)
        features, rows_weight = hidden.to(dtype), weight[:num_rows].to(dtype)
        logprobs, entropy = (hidden.new_empty(len(targets), dtype=torch.float32) for _ in range(2))
        compared = None if compare is None else torch.empty_like(logprobs)
        for start in range(0, len(targets), chunk_tokens):
            rows = slice(start, start + chunk_tokens)
            logits = chunk_logits(features[rows], rows_weight, bias)
            logits = keep_likeliest(logits, top_k, top_p, targets[rows])
            if compare is not None and compared is not None:
                compared[rows] = compare(rows, logits)
            logprobs[rows], entropy[rows] = _statistics(logits, targets[rows])
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.num_rows, ctx.chunk_tokens, ctx.dtype = num_rows, chunk_tokens, dtype
        ctx.compare, ctx.top_k, ctx.top_p = compare, top_k, top_p
        ctx.mark_non_differentiable(entropy)
        ctx.set_materialize_grads(False)  # what the loss does not use costs nothing
        return logprobs, entropy, compared

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, grad_logprobs: Tensor | None, _grad_entropy: None, grad_compared: Tensor | None
    ) -> tuple[Any, ...]:
        hidden, weight, bias, targets = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        features, rows_weight = hidden.to(ctx.dtype), weight[: ctx.num_rows].to(ctx.dtype)
        grad_hidden = torch.zeros_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        grad_bias = torch.zeros_like(bias) if needs_bias else None
        for start in range(0, len(targets), ctx.chunk_tokens):
            rows = slice(start, start + ctx.chunk_tokens)
            logits = chunk_logits(features[rows], rows_weight, bias)
            logits = keep_likeliest(logits, ctx.top_k, ctx.top_p, targets[rows])
            grad = None
            if grad_compared is not None:
                grad = _through_comparison(ctx.compare, rows, logits, grad_compared[rows])
            if grad_logprobs is not None:
                other = _through_logprobs(logits, targets[rows], grad_logprobs[rows])
                grad = other if grad is None else grad.add_(other)
            del logits  # or four chunks would be in memory
            if grad is None:
                continue
            if grad_bias is not None:
                grad_bias += grad.sum(0)
            grad = grad.to(ctx.dtype)
            with torch.autocast(grad.device.type, enabled=False):
                if grad_hidden is not None:
                    grad_hidden[rows] = grad @ rows_weight
                if grad_weight is not None:
                    _add_product(grad_weight[: ctx.num_rows], grad.t(), features[rows])
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        return grad_hidden, grad_weight, grad_bias, *[None] * 6


def _gather(values: Tensor, targets: Tensor) -> Tensor:
    """(n, V), (n,) -> (n,)."""
    return values.gather(1, targets[:, None]).squeeze(1)


# Probabilities are made by softmax, never by exp: on a CPU an exp that underflows, as nearly all do
# of a peaked distribution, takes thirty times as long as one that does not.


def _statistics(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of each row, (n,), of logits (n, V)."""
    logprobs = logits.log_softmax(1)
    entropy = -logits.softmax(1).mul_(logprobs).sum(1)
    return _gather(logprobs, targets), entropy


def _through_logprobs(logits: Tensor, targets: Tensor, grad: Tensor) -> Tensor:
    """`grad · (onehot(target) - softmax(logits))`, (n, V)."""
    probabilities = logits.softmax(1)
    F.threshold(probabilities, SMALLEST_PROBABILITY, 0.0, inplace=True)
    return probabilities.mul_(-grad[:, None]).scatter_add_(1, targets[:, None], grad[:, None])


def _through_comparison(compare: Compare, rows: slice, logits: Tensor, grad: Tensor) -> Tensor:
    """`grad · d compare / d logits`, (n, V)."""
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        (result,) = torch.autograd.grad(compare(rows, leaf), leaf, grad)
    return F.hardshrink(result, SMALLEST_PROBABILITY)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """`total += left @ right` with a float32 total, in place where the types allow it."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)
