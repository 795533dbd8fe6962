"""The policy-gradient estimate itself: how much of it is signal, and where each K points it.

A prompt's contribution u to the gradient is the loss's gradient of `num_generations` completions of
it, a completion's mean, divided by the mean length in tokens, so that the gradient of a rollout
batch of B prompts is the mean of B of them. (Training divides by the batch's own number of tokens,
which for a large batch is the same.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from brim.analysis.sampling import Estimate, Resamples, Samples
from brim.errors import ConfigError
from brim.metrics.base import Array
from brim.models import SOFTMAX, Comparison, Distribution, LanguageModel
from brim.objectives.base import Objective
from brim.seeding import derive_seed
from brim.types import Rollout, TokenStatistics

# What is reported of: the whole gradient, the same as Adam scales it, the output layer's.
PREFIXES = {"whole": "", "scaled": "scaled_", "output_layer": "output_layer_"}

# Prompts whose gradients at K = 1 say how large each tensor's gradient is.
PILOT = 8


@dataclass(frozen=True)
class Weights:
    """What one way to induce returns makes of the samples, (B, T) each.

    Attributes:
        returns: Ĝ before clipping and baselines.
        advantages: what weighs each token's log-probability in training.
        mask: the tokens that training learns from.
        end_values: what is saved by an end of the text there, of anchored advantages.
    """

    returns: Tensor
    advantages: Tensor
    mask: Tensor
    end_values: Tensor | None = None

    def given(self, part: Rollout, places: Sequence[int]) -> Rollout:
        """These rows of the samples, weighed."""
        ends = None if self.end_values is None else self.end_values[places]
        return replace(
            part, advantages=self.advantages[places], mask=self.mask[places], end_values=ends
        )


@dataclass(frozen=True)
class PromptGradients:
    """Sketches of the gradient of the objective in the trained parameters.

    Attributes:
        sketches: by part (E, P, 2, D) float64: for each of E estimators and P prompts the mean
            contribution of either half of the rounds. `whole` is the gradient; of `scaled` each
            tensor is divided by the root mean square of its entries in single contributions at
            K = 1, as Adam would by and large; `output_layer` is there if that is trained.
        num_rounds: R, over both halves.
    """

    sketches: Mapping[str, Array]
    num_rounds: int


def measure_gradients(
    samples: Samples,
    estimators: Sequence[Weights],
    objective: Objective,
    student: LanguageModel,
    teacher: LanguageModel,
    *,
    output_layer: Sequence[nn.Parameter] = (),
    num_dimensions: int,
    seed: int,
    batch_tokens: int,
    advance: Callable[[int], None] = lambda prompts: None,
) -> PromptGradients:
    """Gradients of `objective.loss`, one forward pass for all estimators and a backward pass each.

    In evaluation mode: dropout is off.

    Args:
        samples: what `student` wrote.
        estimators: what weighs the tokens, for each K or λ.
        objective: what the loss is; it sees the weights, and so need not know K or λ.
        student: the policy; all of its parameters that require a gradient count.
        teacher: for a loss that needs it.
        output_layer: the parameters of the head; with tied embeddings they are those too.
        num_dimensions: D of the sketch.
        seed: of the sketch.
        batch_tokens: tokens of a pass, padding included.
        advance: called with the number of prompts done.

    Raises:
        ConfigError: nothing is learned from any of the samples.
    """
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    mean_length = _mean_length(samples, estimators)
    sizes = [parameter.numel() for parameter in parameters]
    device = parameters[0].device
    sketch = GradientSketch(sizes, num_dimensions=num_dimensions, seed=seed, device=device)

    def contributions(prompt: int, half: int, number: int) -> Iterator[tuple[int, Tensor]]:
        """Sketches by tensor, to be added up, of the first `number` estimators."""
        rows = samples.halves(prompt)[half]
        some = samples.rollout.select(rows)
        for chosen in some.buckets(batch_tokens):
            policy = _EvaluatedOnce(student)
            part, places = some.select(chosen), [rows[i] for i in chosen]
            for i, weights in enumerate(estimators[:number]):
                with torch.enable_grad():
                    loss = objective.loss(policy, weights.given(part, places), teacher).loss
                gradients = torch.autograd.grad(
                    loss, parameters, retain_graph=True, allow_unused=True
                )
                yield i, sketch(gradients) / (-len(rows) * mean_length)

    student.eval()
    pilots = _learned_prompts(samples, estimators[0])[:PILOT]
    factors = _factors(contributions, pilots, parameters, output_layer)
    shape = (len(estimators), samples.num_prompts, 2, num_dimensions)
    sketches = {part: np.zeros(shape) for part in factors}
    for prompt in range(samples.num_prompts):
        for half in range(2):
            for i, by_tensor in contributions(prompt, half, len(estimators)):
                for part, by in factors.items():
                    sketches[part][i, prompt, half] += (by @ by_tensor).numpy()
        advance(1)
    return PromptGradients(sketches, samples.num_rounds)


def _mean_length(samples: Samples, estimators: Sequence[Weights]) -> float:
    """Tokens of a completion that are learned from, the mean over estimators."""
    tokens = sum(int(weights.mask.sum()) for weights in estimators) / len(estimators)
    if not tokens:
        raise ConfigError(
            "objective.truncated=drop: all completions are cut, and nothing is learned from them; "
            "raise decoding.max_tokens, or set it to keep"
        )
    return tokens / len(samples.rollout)


def _learned_prompts(samples: Samples, weights: Weights) -> list[int]:
    learned, prompts = weights.mask.any(dim=1), range(samples.num_prompts)
    return [p for p in prompts if any(learned[rows].any() for rows in samples.halves(p))]


def _factors(
    contributions: Callable[[int, int, int], Iterator[tuple[int, Tensor]]],
    pilots: Sequence[int],
    parameters: Sequence[nn.Parameter],
    output_layer: Sequence[nn.Parameter],
) -> dict[str, Tensor]:
    """What each tensor's sketch is multiplied by in each part, by gradients at K = 1."""
    squares = torch.zeros(len(parameters), dtype=torch.float64)
    for prompt in pilots:
        for half in range(2):
            parts = [part for _, part in contributions(prompt, half, 1)]
            squares += torch.stack(parts).sum(0).square().sum(1)
    sizes = torch.tensor([parameter.numel() for parameter in parameters], dtype=torch.float64)
    factors = {
        "whole": torch.ones_like(squares),
        "scaled": torch.where(squares > 0, (sizes / squares).sqrt(), 0.0),
    }
    heads = {id(parameter) for parameter in output_layer}
    in_head = torch.tensor([id(p) in heads for p in parameters]).double()
    return factors | ({"output_layer": in_head} if in_head.any() else {})


class _EvaluatedOnce:
    """A policy that is evaluated once for all estimators: only the weights of tokens differ."""

    def __init__(self, student: LanguageModel) -> None:
        self._student = student
        self._statistics: TokenStatistics | None = None

    def __call__(
        self,
        rollout: Rollout,
        *,
        distribution: Distribution = SOFTMAX,
        comparison: Comparison | None = None,
    ) -> TokenStatistics:
        if self._statistics is None:
            self._statistics = self._student(
                rollout, distribution=distribution, comparison=comparison
            )
        return self._statistics


@dataclass(frozen=True)
class GradientMoments:
    """Moments of one estimator's gradient, and their kin with those of K = 1; (1 + R,) each.

    All are unbiased. Squares of means are averages over pairs of different prompts, whose
    contributions are independent (a U-statistic), so those can be negative where the truth is near
    zero. A resample's pairs of a prompt with itself are left out too.

    Attributes:
        squared_norm: ‖E g‖².
        variance: tr Var u, of one prompt's contribution: variance_within + that between prompts.
        variance_within: tr of the mean over prompts of Var[u | prompt], the rollouts' noise.
        product: ⟨E g, E g_1⟩ with g_1 that of K = 1.
        squared_bias: ‖E g - E g_1‖², exactly 0 for K = 1.
        reference: ‖E g_1‖².
    """

    squared_norm: Array
    variance: Array
    variance_within: Array
    product: Array
    squared_bias: Array
    reference: Array

    def alignment(self, num_prompts: float) -> Array:
        """`score` as a cosine, by the estimated ‖E g_1‖."""
        return self.score(num_prompts) / np.sqrt(self.reference)

    def score(self, num_prompts: float) -> Array:
        """⟨E g, E g_1⟩ / √(‖E g‖² + tr Var u / B): `alignment` times ‖E g_1‖."""
        expected_square = np.maximum(self.squared_norm, 0) + self.variance / num_prompts
        return self.product / np.sqrt(expected_square)

    def error(self, num_prompts: float) -> Array:
        """Mean squared error of a batch's gradient, ‖E g - E g_1‖² + tr Var u / B."""
        return self.squared_bias + self.variance / num_prompts

    def describe(self, resamples: Resamples, num_prompts: int) -> dict[str, Estimate]:
        """What is reported of them, for batches of `num_prompts`; see `brim.analysis.variance`."""
        with np.errstate(invalid="ignore", divide="ignore"):
            noise = self.variance / num_prompts
            values = {
                "gradient_norm": np.sqrt(self.squared_norm),
                "gradient_batch_norm": np.sqrt(np.maximum(self.squared_norm, 0) + noise),
                "gradient_squared_norm": self.squared_norm,
                "gradient_variance": self.variance,
                "gradient_variance_within": self.variance_within,
                "gradient_snr": self.squared_norm / noise,
                # Of each the root: two negative estimates are no length together.
                "gradient_cosine": self.product
                / (np.sqrt(self.squared_norm) * np.sqrt(self.reference)),
                "gradient_squared_bias": self.squared_bias,
                "gradient_mse": self.error(num_prompts),
                "gradient_alignment": self.alignment(num_prompts),
            }
        found = {name: resamples.interval(value) for name, value in values.items()}
        # Ratios of unbiased estimates: noise can take them where no cosine is.
        cosines = ("gradient_cosine", "gradient_alignment")
        return found | {name: found[name].within(-1, 1) for name in cosines}


def gradient_moments(
    gradients: PromptGradients, part: str, counts: Array, *, reference: int = 0
) -> list[GradientMoments]:
    """Moments of each estimator.

    Args:
        gradients: of P prompts.
        part: `whole`, `scaled` or `output_layer`.
        counts: (1 + R, P), how often each resample holds each prompt.
        reference: which estimator is K = 1.
    """
    sketches = gradients.sketches[part]
    means, num_prompts = sketches.mean(axis=2), sketches.shape[1]
    differences = sketches[:, :, 0] - sketches[:, :, 1]
    # Half the squared difference of two halves is a half's variance; a round's is R/2 times that.
    within = (differences**2).sum(axis=-1) * gradients.num_rounds / 4

    pairs = num_prompts**2 - (counts**2).sum(axis=1)

    def mean_over_pairs(left: Array, right: Array) -> Array:
        """Mean of ⟨left of p, right of q⟩ over p ≠ q, of (P, D) each."""
        products = ((counts @ left) * (counts @ right)).sum(axis=1)
        with np.errstate(invalid="ignore"):  # a resample of one prompt only has no pairs
            average: Array = (products - counts**2 @ (left * right).sum(axis=1)) / pairs
        return average

    base = means[reference]
    norm_of_base = mean_over_pairs(base, base)
    moments = []
    for mean, noise in zip(means, within, strict=True):
        squared_norm = mean_over_pairs(mean, mean)
        inside = counts @ noise / num_prompts
        # The variance of a prompt's mean over R rounds holds an R-th of that within.
        around = counts @ (mean**2).sum(axis=1) / num_prompts - squared_norm
        moments.append(
            GradientMoments(
                squared_norm=squared_norm,
                variance=around + inside * (1 - 1 / gradients.num_rounds),
                variance_within=inside,
                product=mean_over_pairs(mean, base),
                squared_bias=mean_over_pairs(mean - base, mean - base),
                reference=norm_of_base,
            )
        )
    return moments


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
