"""Teacher-anchored advantages: generalized advantage estimation with the teacher as the critic.

Under Eq 2 the teacher's q is the optimal action value of the induced process, so that
`V*(s) = max_a q(s, a)` and a token's optimal advantage is minus its regret,
`d_t = max_a q(s_t, a) − q(s_t, a_t)`. What a student is worth in a state is `V* − U`, with U the
regrets that it still has before it. With an estimate Û of them, 0 behind the end,

    δ_t = −d_t + Û_t − Û_{t+1}        Â_t = Σ_i λ^i δ_{t+i}

Û_t is the mean `M_t` of other completions at the step, or `M_t f(s_t)` with a learned share f ≥ 0.
With `per_token` each d_t is less ρ, the mean regret of a token: then the regret per token, E[Σ d] /
E[length], is what is followed, which does not fall where a text is cut short.
λ = 1 without Û is LLMR with `q_centering: max`; λ = 0 without Û is AggreVaTeD (Sun et al. 2017).
docs/methods/anchored.md has the derivation and what is biased when.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from brim.advantages import gae
from brim.divergences import expected_value
from brim.losses import value_loss
from brim.masking import masked_sum, zero_padding
from brim.models import ActorCritic, LanguageModel, Teacher, evaluating
from brim.objectives.base import (
    Policy,
    add_moments,
    return_metrics,
    return_sums,
    total,
    variance,
)
from brim.objectives.credit import (
    Induced,
    centered_scores,
    clip_credit,
    scored_features,
    sum_over_processes,
)
from brim.objectives.policy_gradient import follow
from brim.objectives.regrets import mean_of_others, mean_per_token, regrets_to_come
from brim.objectives.settings import AnchoredConfig
from brim.objectives.steps import Steps
from brim.returns import rewards_to_go
from brim.types import ActionValues, LossOutput, Rollout

# Of the head's loss beside the policy gradient. AdamW's steps do not depend on it, for no other
# loss reaches the head; small, it hardly counts in the norm by which both gradients are clipped.
HEAD_WEIGHT = 0.01
# The head's output is multiplied by it: AdamW moves a weight by the learning rate, and at one that
# suits a student the head would otherwise need hundreds of steps.
HEAD_UNIT = 10.0


class Anchored(Induced):
    """The policy gradient on advantages over `V* − Û`.

    Attributes:
        critic: holds the student and the head of `remaining_regret: learned`, from `prepare` on.
    """

    settings: AnchoredConfig
    critic: ActorCritic | None = None

    def prepare(self, student: LanguageModel) -> nn.Module:
        """Return the student, with a head on its hidden states if Û is learned."""
        if self.settings.remaining_regret != "learned":
            return student
        self.critic = ActorCritic(student, trunk="detached", unit=HEAD_UNIT)
        return self.critic

    def assign_credit(
        self, rollout: Rollout, q: ActionValues, student: LanguageModel | None = None
    ) -> tuple[Rollout, Mapping[str, Tensor]]:
        """Return the rollout with the advantage of each token, and what is logged of it."""
        settings = self.settings
        exact = rewards_to_go(q.q_taken, q.q_max, rollout.mask)
        rollout = replace(rollout, values=q, returns=exact)
        sums = return_sums(rollout)
        if settings.truncated == "drop":
            rollout = replace(rollout, mask=rollout.mask & ~rollout.truncated[:, None])
        steps = Steps(q, rollout.mask)
        mask = steps.mask

        taken = zero_padding(steps.last(q.q_max - q.q_taken), mask)  # d_t
        # By policy centering the best value is max q − E_π q: the regret that the state expects.
        regrets = zero_padding(q.q_max, mask) if settings.expected_regrets else taken
        to_come = regrets_to_come(regrets, mask)
        means = self.remaining(to_come, mask)  # M_1 … M_{T+1}
        if settings.per_token:  # with the ρ of the row, of which its own regrets are no part
            rate, lengths = self.rate(regrets, steps.lengths), steps.lengths.to(regrets.dtype)
            left = regrets_to_come(lengths, mask)  # tokens
            regrets, taken = (each - rate * lengths for each in (regrets, taken))
            to_come, means = to_come - rate * left, means - rate * self.remaining(left, mask)
        share = steps.first(self.share(rollout))  # f(s_t)
        now = zero_padding(means[:, :-1] * share, mask)  # Û_t
        if settings.lambda_ == 1:  # the sum telescopes
            advantages = now - to_come
        else:
            advantages = gae(-regrets, -now, mask, lambda_=settings.lambda_)
        if settings.immediate == "expected":  # what is left to sampling is the future
            # What an end saves must not depend on the action, as Û_{t+1} does: it is what s_t lets
            # expect of Û_{t+1}. Where the text goes on, the rest of Û_{t+1} is left to sampling.
            ending = zero_padding(means[:, 1:] * share, mask)
            beyond = zero_padding(F.pad(now[:, 1:], (0, 1)) - ending, F.pad(mask[:, 1:], (0, 1)))
            advantages = settings.lambda_ * F.pad(advantages[:, 1:], (0, 1)) - beyond
            rollout = replace(rollout, end_values=ending)
        else:
            advantages = advantages + (regrets - taken)
        advantages = steps.spread(advantages) + centered_scores(rollout, settings)

        to_come, now = steps.spread(to_come), steps.spread(now)
        if self.critic is not None:
            rollout = self._with_targets(rollout, steps.spread(means[:, :-1]), to_come)
        sums["clipped"], sums["weighed"] = total(torch.zeros_like(mask)), total(rollout.mask)
        advantages = clip_credit(advantages, settings.clip, sums)
        add_moments(sums, "advantage", advantages)
        add_moments(sums, "to_come", to_come)
        add_moments(sums, "unexplained", zero_padding(to_come - now, rollout.mask))
        return replace(rollout, advantages=advantages), sums

    def rate(self, regrets: Tensor, lengths: Tensor) -> Tensor:
        """Return ρ, the regret of a token, (B, 1), see `mean_per_token`."""
        return mean_per_token(regrets, lengths)

    def remaining(self, to_come: Tensor, mask: Tensor) -> Tensor:
        """Return M, (B, T + 1), see `mean_of_others`; 0 where nothing is counted on."""
        if self.settings.remaining_regret == "none":
            return torch.zeros_like(F.pad(to_come, (0, 1)))
        return mean_of_others(
            to_come,
            mask,
            max_tokens=self.decoding.max_tokens,
            num_generations=self.settings.num_generations,
        )

    def share(self, rollout: Rollout) -> Tensor:
        """Return f(s_t) ≥ 0, (B, T), by which Û is another than M; 1 where nothing is learned."""
        if self.critic is None:
            return torch.ones((), device=rollout.mask.device).expand(rollout.mask.shape)
        with evaluating(self.critic):
            values = self.critic.student.map(rollout, self.critic.values)
        return (1 + values.detach()).clamp(min=0)

    def _with_targets(self, rollout: Rollout, means: Tensor, to_come: Tensor) -> Rollout:
        """With M and the regrets to come less M, both in units of the batch's regrets to come."""
        mask = rollout.mask
        moments = torch.stack([masked_sum(to_come.square(), mask), mask.sum().to(to_come.dtype)])
        squares, num_tokens = sum_over_processes(moments)
        unit = (squares / num_tokens.clamp(min=1)).sqrt()
        unit = torch.where(unit == 0, 1.0, unit)
        return replace(
            rollout,
            state_values=zero_padding(means, mask) / unit,
            value_targets=zero_padding(to_come - means, mask) / unit,
        )

    def loss(self, policy: Policy, rollout: Rollout, teacher: Teacher | None = None) -> LossOutput:
        """Return `−Σ_t Â_t log π(a_t | s_t)`, the own step exactly where it is expected.

        With a head also `½ Σ_t (M_t f(s_t) − regrets to come)²`, in units of the batch; f is not
        bounded by 0 here, so that no state is without a gradient.

        Raises:
            ValueError: the rollout has no credit.
        """
        comparison = None
        if self.settings.immediate == "expected":
            if teacher is None or rollout.end_values is None:
                raise ValueError("loss needs the teacher, and a rollout that collect has scored")
            value = partial(expected_value_of_ending, eos_token_ids=teacher.eos_token_ids)
            features = scored_features(teacher, rollout)
            comparison = features.comparison(value, rollout.end_values)
        tokens = policy(rollout, distribution=self.decoding.distribution, comparison=comparison)
        out = follow(tokens, rollout)
        means, targets = rollout.state_values, rollout.value_targets
        if tokens.state_values is None or means is None or targets is None:
            return out
        error = value_loss(
            tokens.state_values * means, means, targets, rollout.mask, clip_range=None
        )
        sums = {**out.sums, "anchored/remaining_loss": error.detach()}
        return LossOutput(out.loss + HEAD_WEIGHT * error, sums)

    def describe(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return metrics of the returns, the advantages, and how good Û was as a critic."""
        tokens = max(sums["weighed"], 1.0)
        metrics = {
            **return_metrics(sums),
            "rollout/clipped": sums["clipped"] / tokens,
            "rollout/var_advantage": variance(sums, "advantage", tokens),
            "anchored/regrets_to_come": sums["to_come"] / tokens,
        }
        if (of_regrets := variance(sums, "to_come", tokens)) > 0:
            unexplained = variance(sums, "unexplained", tokens)
            metrics["anchored/explained_variance"] = 1 - unexplained / of_regrets
        return metrics


def expected_value_of_ending(
    student: Tensor, values: Tensor, saved: Tensor, *, eos_token_ids: Sequence[int]
) -> Tensor:
    """Return `Σ_a π(a) (q(a) + saved · 1(a ends the text))`, (n,).

    Args:
        student: (n, V) logits of the policy.
        values: (n, V) Q-values.
        saved: (n,), the regrets that do not come after an end.
        eos_token_ids: the tokens that end a text.
    """
    ends = values.new_zeros(values.shape[1])
    for token in eos_token_ids:  # a list would be sent to the device, of every chunk
        ends[token] = 1
    return expected_value(student, values + saved[:, None] * ends)
