"""What analyses find, as plain data: the fields of `variance.json` and of `theorem1.json`.

Each number has an interval over prompts, {value, low, high}; null stands for what is not defined.

`variance.json` is `VarianceAnalysis.as_dict()`:

    kind                  "variance"
    run, split, seed      what was analysed
    num_prompts           P
    num_samples           M
    batch_prompts         B, prompts of one update in training (rollout_batch_size, less in PPO)
    objective             the settings of the gradient: name, q_centering, clip_target, clip_range,
                          truncated, immediate, num_generations; where K is chosen, baseline and
                          `tail`, the one that K is recommended for; where λ is, remaining_regret
                          and expected_regrets
    decoding              strategy, temperature, top_k, top_p, max_tokens
    confidence, num_resamples, num_dimensions (of the gradients' sketch)
    students[]            in the order that they were given in
      label, path         path is null for the student that the objective starts from
      longest             tokens of the longest completion
      numbers             name -> {value, low, high}: length, truncated (share), return (G_1),
                          reverse_kl and forward_kl (nats a token; `sampling.token_divergences`)
      rows[]              {k, tail, active, llmr, numbers}, K = 1 first and once; tail is one_step
                          or none; active is the share of the completions that are longer than K,
                          on which K has an effect; llmr is whether most are not, with the one-step
                          tail: such a K is no choice. Of anchored advantages {lambda, numbers},
                          λ = 1 first
      choice              see `choice.Recommendation`: which K or λ (`k` or `lambda`), and why, by
                          the scaled gradient
      prompts[]           {id, length, variance_first, bias_first}, the latter two lists by row, of
                          K alone; so are …_low and …_high, percentile bootstraps over the
                          prompt's M rollouts (with few rollouts too narrow)

`numbers` of a row; Ĝ's (…_first, …_tokens) are of K alone, and of λ K = 1 stands for λ = 1:

    variance_first        Var[Ĝ_1 | prompt], over the prompt's M rollouts (divided by M - 1), mean
                          over prompts (of the paper's own definition little is left in its text)
    variance_tokens       variance of Ĝ_t over all tokens of all rollouts together (the mean square
                          less the squared mean): training's `rollout/var_return_k`
    mean_weight, variance_weight
                          mean and variance, likewise, of what weighs the tokens in the gradient:
                          after clip and baseline
    bias_first            mean of Ĝ_1 - G_1 over rollouts and prompts, never negative: Eq 25 with
                          its sign mended; exactly 0 for K = 1
    bias_tokens           mean of Ĝ_t - G_t over all tokens: training's `rollout/bias`
    gradient_*            of the whole gradient's sketch; scaled_gradient_* the same with each
                          tensor scaled as Adam would by and large (`gradients.py`);
                          output_layer_gradient_* of the head alone, if it is trained
      …norm               ‖E g‖; null where the unbiased estimate of its square is negative
      …batch_norm         √(E ‖g‖²) of a batch of B prompts
      …squared_norm       ‖E g‖², unbiased, so that it can be negative
      …variance           tr Var of one prompt's contribution; divide by B for a batch
      …variance_within    the part of it that is due to the rollouts of the same prompt
      …snr                ‖E g‖² / (tr Var / B), of a batch; can be negative as ‖E g‖² can
      …cosine             of E g and E g_1 of K = 1, by unbiased estimates; `outside` is true where
                          noise took it out of [-1, 1], to whose end it is put; so with alignment
      …squared_bias       ‖E g - E g_1‖²
      …mse                squared_bias + tr Var / B
      …alignment          root-mean-square cosine of a batch's g with E g_1: `choice`

Baselines are over a round of one batch of the P prompts, `num_generations` completions each, as
they are over a rollout batch in training.

`theorem1.json` is `Theorem1Analysis.as_dict()`:

    kind                 "theorem1"
    run, split, seed, num_prompts, num_samples, q_centering, confidence, num_resamples
    students[]
      label, path, longest
      constants          name -> {value, low, high} over all tokens: var_taken, var_best,
                         var_regret, var_reward; correlation_taken_best; law_constant = var_taken +
                         var_best
      fits[]             {k, law: {c, r2}, refined: {a, b, r2}, growth, predicted, ratio}, each
                         number {value, low, high}: least squares over the remaining lengths,
                         weighted by their tokens; r2 is weighted too and can be negative. `growth`
                         is mean Var Ĝ / mean Var G over the tokens, `predicted` what the law says:
                         the same mean of ⌊(ℓ-1)/K⌋ + 1 over that of ℓ. `ratio` is measured /
                         predicted: 1 if the law held
      lengths[]          {remaining, tokens, variance: {K: number}}, of each remaining length ℓ that
                         at least MIN_TOKENS tokens have
      correlations[]     {distance, tokens, reward, regret}: correlation of r[t] and r[t+distance]
                         of a completion, of all completions together; likewise of d
      positions[]        {position, tokens, mean_regret, var_regret, mean_taken, var_taken}
      verdict            in words

Variances are over all tokens, of all prompts, that have the same ℓ, as the theorem's are. Returns
are centered as the run says and not clipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from brim.analysis.choice import Recommendation
from brim.analysis.sampling import Estimate


class Result:
    """What has plain values, for JSON; fields as in the module's text."""

    def as_dict(self) -> dict[str, Any]:
        """The fields as numbers, texts, lists and mappings."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}  # type: ignore[arg-type]


def _plain(value: Any) -> Any:
    if isinstance(value, Result | Estimate | Recommendation):
        return value.as_dict()
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, tuple) else value


@dataclass(frozen=True)
class Row(Result):
    """What was measured of one estimator, K or λ; of λ, `tail` is "" and `active` 1."""

    value: float
    tail: str
    active: float
    llmr: bool
    numbers: Mapping[str, Estimate]

    @property
    def knob(self) -> str:
        """Which setting `value` is of, `k` or `lambda`."""
        return "k" if self.tail else "lambda"

    def as_dict(self) -> dict[str, Any]:
        """See `Result`; the value is called as the setting is."""
        own = {self.knob: self.value, **super().as_dict()}
        left_out = {"value"} if self.tail else {"value", "tail", "active", "llmr"}
        return {name: value for name, value in own.items() if name not in left_out}


@dataclass(frozen=True)
class StudentVariance(Result):
    """What was measured of one student."""

    label: str
    path: str | None
    longest: int
    numbers: Mapping[str, Estimate]
    rows: tuple[Row, ...]
    choice: Recommendation
    prompts: tuple[Mapping[str, Any], ...] = field(repr=False)

    @property
    def verdict(self) -> str:
        """Which K or λ, in words."""
        return self.choice.text

    def row(self, value: float, tail: str = "") -> Row:
        """The row of an estimator; K = 1 is that of every tail."""
        rows = (row for row in self.rows if row.value == value)
        return next(row for row in rows if value == 1 or row.tail == tail)


@dataclass(frozen=True)
class VarianceAnalysis(Result):
    """All students."""

    run: str
    split: str
    seed: int
    num_prompts: int
    num_samples: int
    batch_prompts: int
    objective: Mapping[str, Any]
    decoding: Mapping[str, Any]
    confidence: float
    num_resamples: int
    num_dimensions: int
    students: tuple[StudentVariance, ...]

    def as_dict(self) -> dict[str, Any]:
        """See `Result`."""
        return {"kind": "variance", **super().as_dict()}


@dataclass(frozen=True)
class Fit(Result):
    """One K against the laws."""

    k: int
    c: Estimate
    c_r2: Estimate
    a: Estimate
    b: Estimate
    refined_r2: Estimate
    growth: Estimate
    predicted: Estimate
    ratio: Estimate

    def as_dict(self) -> dict[str, Any]:
        """See `Result`; the numbers of a law are together."""
        own = super().as_dict()
        law = {"c": own.pop("c"), "r2": own.pop("c_r2")}
        refined = {"a": own.pop("a"), "b": own.pop("b"), "r2": own.pop("refined_r2")}
        return {"k": own.pop("k"), "law": law, "refined": refined, **own}


@dataclass(frozen=True)
class StudentTheorem1(Result):
    """What was measured of one student."""

    label: str
    path: str | None
    longest: int
    constants: Mapping[str, Estimate]
    fits: tuple[Fit, ...]
    lengths: tuple[Mapping[str, Any], ...]
    correlations: tuple[Mapping[str, Any], ...]
    positions: tuple[Mapping[str, Any], ...]
    verdict: str


@dataclass(frozen=True)
class Theorem1Analysis(Result):
    """All students."""

    run: str
    split: str
    seed: int
    num_prompts: int
    num_samples: int
    q_centering: str
    confidence: float
    num_resamples: int
    students: tuple[StudentTheorem1, ...]

    def as_dict(self) -> dict[str, Any]:
        """See `Result`."""
        return {"kind": "theorem1", **super().as_dict()}
