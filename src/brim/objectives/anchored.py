"""Teacher-anchored advantages: generalized advantage estimation with the teacher as the critic.

Under Eq 2 the teacher's q is the optimal action value of the induced process, so that
`V*(s) = max_a q(s, a)` and a token's optimal advantage is minus its regret,
`d_t = max_a q(s_t, a) − q(s_t, a_t)`. What a student is worth in a state is `V* − U`, with U the
regrets that it still has before it. With an estimate Û of them, 0 behind the end,

    δ_t = −d_t + Û_t − Û_{t+1}        Â_t = Σ_i λ^i δ_{t+i}

λ = 1 without Û is LLMR with `q_centering: max`; λ = 0 without Û is AggreVaTeD (Sun et al. 2017).
docs/methods/anchored.md has the derivation and what is biased when.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from brim.advantages import gae, time_mean_baseline
from brim.divergences import expected_value
from brim.masking import zero_padding
from brim.models import Decoding, LanguageModel
from brim.objectives.base import (
    Objective,
    Policy,
    add_moments,
    return_metrics,
    return_sums,
    total,
    variance,
)
from brim.objectives.credit import (
    centered_scores,
    clip_credit,
    sum_over_processes,
    warn_of_greedy,
    write_and_score,
)
from brim.objectives.policy_gradient import follow
from brim.objectives.settings import AnchoredConfig
from brim.returns import rewards_to_go
from brim.support.timing import timed
from brim.types import ActionValues, Batch, LossOutput, Rollout


class Anchored(Objective):
    """The policy gradient on advantages over `V* − Û`."""

    settings: AnchoredConfig

    def __init__(self, settings: AnchoredConfig, decoding: Decoding) -> None:
        super().__init__(settings, decoding)
        warn_of_greedy(decoding)

    def collect(
        self, batch: Batch, student: LanguageModel, teacher: LanguageModel | None
    ) -> tuple[Rollout, Mapping[str, Tensor]]:
        """Write, score, and give each token its advantage.

        Raises:
            ValueError: there is no teacher.
        """
        rollout, q = write_and_score(batch, student, teacher, self.settings, self.decoding)
        with timed("credit"):
            return self.assign_credit(rollout, q)

    def assign_credit(
        self, rollout: Rollout, q: ActionValues
    ) -> tuple[Rollout, Mapping[str, Tensor]]:
        """Return the rollout with the advantage of each token, and what is logged of it.

        Args:
            rollout: B completions of at most T tokens.
            q: the teacher's values along it, centered as `settings.q_centering` says.
        """
        settings = self.settings
        exact = rewards_to_go(q.q_taken, q.q_max, rollout.mask)
        rollout = replace(rollout, values=q, returns=exact)
        sums = return_sums(rollout)
        if settings.truncated == "drop":
            rollout = replace(rollout, mask=rollout.mask & ~rollout.truncated[:, None])
        mask = rollout.mask

        taken = zero_padding(q.q_max - q.q_taken, mask)  # d_t
        # By policy centering the best value is max q − E_π q: the regret that the state expects.
        regrets = zero_padding(q.q_max, mask) if settings.expected_regrets else taken
        to_come = -rewards_to_go(-regrets, torch.zeros_like(regrets), mask)
        remaining = self.remaining(to_come, mask)  # Û_1 … Û_{T+1}
        now, following = zero_padding(remaining[:, :-1], mask), remaining[:, 1:]
        if settings.lambda_ == 1:  # the sum telescopes
            advantages = now - to_come
        else:
            advantages = gae(-regrets, -now, mask, lambda_=settings.lambda_)
        if settings.immediate == "expected":  # what is left to sampling is the future
            advantages = settings.lambda_ * F.pad(advantages[:, 1:], (0, 1))
            rollout = replace(rollout, end_values=zero_padding(following, mask))
        else:
            advantages = advantages + (regrets - taken)
        advantages = advantages + centered_scores(rollout, settings)

        sums["clipped"], sums["weighed"] = total(torch.zeros_like(mask)), total(mask)
        advantages = clip_credit(advantages, settings.clip, sums)
        add_moments(sums, "advantage", advantages)
        add_moments(sums, "to_come", to_come)
        add_moments(sums, "unexplained", zero_padding(to_come - now, mask))
        return replace(rollout, advantages=advantages), sums

    def remaining(self, to_come: Tensor, mask: Tensor) -> Tensor:
        """Return Û, the regrets still to be expected, of each step and the one behind the last.

        Args:
            to_come: (B, T), the regrets of each completion from a step on, its own included.
            mask: (B, T) bool.

        Returns:
            (B, T + 1), of other completions than the row's own, so that the baseline Û_t does not
            depend on the row's actions; 0 where no other has a token.
        """
        to_come, mask = F.pad(to_come, (0, 1)), F.pad(mask, (0, 1))
        if self.settings.remaining_regret == "none":
            return torch.zeros_like(to_come)
        found = time_mean_baseline(
            to_come, mask, num_steps=self.decoding.max_tokens + 1, total=sum_over_processes
        )
        group = self.settings.num_generations
        if group == 1:
            return found
        own = torch.stack([to_come, mask.to(to_come.dtype)])
        own = own.reshape(2, -1, group, own.shape[2])
        others, count = (own.sum(2, keepdim=True) - own).flatten(1, 2)
        return torch.where(count > 0, others / count, found)

    def loss(
        self, policy: Policy, rollout: Rollout, teacher: LanguageModel | None = None
    ) -> LossOutput:
        """Return `−Σ_t Â_t log π(a_t | s_t)`, the own step exactly where it is expected.

        Raises:
            ValueError: the rollout has no credit.
        """
        comparison = None
        if self.settings.immediate == "expected":
            if teacher is None or rollout.end_values is None:
                raise ValueError("loss needs the teacher, and a rollout that collect has scored")
            with teacher.evaluating():
                features = teacher.features(rollout).to(rollout.mask.device)
            value = partial(expected_value_of_ending, eos_token_ids=teacher.eos_token_ids)
            comparison = features.comparison(value, rollout.end_values)
        return follow(policy, rollout, self.decoding, comparison=comparison)

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
    ends[list(eos_token_ids)] = 1
    return expected_value(student, values + saved[:, None] * ends)
