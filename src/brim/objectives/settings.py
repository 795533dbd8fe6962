"""What each method can be set to. No torch is imported here: recipes are checked without it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from brim.config.loading import Config
from brim.objectives.method import MethodConfig, Passes, Updates
from brim.objectives.reward import RewardedConfig

Tail = Literal["one_step", "none"]


# Text as it is given; the divergences are in `divergence_settings.py`.


class SeqKDConfig(MethodConfig):
    """Sequence-level distillation: cross-entropy on the teacher's completions."""

    name: Literal["seqkd"] = "seqkd"
    targets: Literal["teacher", "data"] = "teacher"
    """Whose completions are learned: the teacher's, or the data set's own targets, which is
    ordinary supervised training."""

    @property
    def needed_targets(self) -> Literal["teacher", "data"]:
        """Whose completions are learned."""
        return self.targets


# Returns that the teacher's logits induce.


class ClipConfig(Config):
    """Where the learning signal is bounded (the paper's Table 5: [-100, 100])."""

    target: Literal["reward", "return"] = "return"
    """`return` clips the weight of a token, as LLMR's code does; `reward` clips each induced
    (block) reward before they are summed, as the paper's table reads."""
    range: float | None = Field(100.0, gt=0)
    """Bound of the absolute value; null for none."""


class InductionConfig(RewardedConfig):
    """Settings of every method that learns from induced returns; open points of the paper."""

    q_centering: Literal["none", "mean", "max", "logsumexp", "policy"] = "mean"
    """What is subtracted from a state's logits: a state-only baseline, so the expected gradient
    stays (but for `truncated: drop` and `bootstrap`, and where the clip cuts), its variance does
    not. `none` is the paper's Eq 2; `mean` is LLMR's code; `policy` is the student's expected
    Q-value, at the price of one more pass of the student."""
    clip: ClipConfig = ClipConfig()
    """Bound of the learning signal."""
    truncated: Literal["keep", "drop", "bootstrap"] = "keep"
    """Completions cut at the length limit: `keep` ends the return at the last action
    (Algorithm 1), `drop` leaves them out (LLMR's code), `bootstrap` gives the last action the
    reward of Eq 2, less the teacher's best value of the state behind the cut, which is not
    clipped with the rewards."""
    num_generations: int = Field(1, ge=1)
    """Completions of each prompt; a step has `trainer.rollout_batch_size` times as many."""

    @property
    def whole_distribution(self) -> str | None:
        """Centering by the student's policy."""
        return "q_centering=policy" if self.q_centering == "policy" else None

    @model_validator(mode="after")
    def _bootstrap_is_not_centered_away(self) -> Self:
        if self.truncated == "bootstrap" and self.q_centering in ("max", "policy"):
            raise ValueError(
                f"truncated=bootstrap charges a best value, which q_centering={self.q_centering} "
                "does not leave as it is; choose another of the two"
            )
        return self


class OneStepConfig(InductionConfig):
    """Returns of one-step rewards (Eq 4): K = 1, for which the tail has no meaning."""

    k: ClassVar[int] = 1
    tail: ClassVar[Tail] = "one_step"


# What every run of 0.2.0 said that did not use what is gone: how `k: auto` chose, and phases.
_UNUSED = {
    "adaptive": (None, {"candidates": [1, 2, 4, 8, 16], "smoothing": 0.9, "num_samples": 1.0}),
    "phase": ("aligned",),
}
# What is gone that runs of 0.2.0 used: its setting and value, what to do, and how such a run is
# opened to be evaluated, which it has no effect on.
_GONE = (
    ("k", "auto", "k: auto is gone; brim analyze variance measures which K to set",
     ("k=1", "adaptive=null")),
    ("phase", "average", "phase=average is gone; use the method anchored, which did better",
     ("phase=aligned",)),
)  # fmt: skip


def overrides_of_what_is_gone(settings: Mapping[str, Any]) -> list[str]:
    """Return overrides with which a run can be opened again whose objective had these settings."""
    return [
        f"objective.{override}"
        for key, value, _, overrides in _GONE
        if settings.get(key) == value
        for override in overrides
    ]


class BlockConfig(InductionConfig):
    """Settings of returns over blocks of K steps."""

    k: int = Field(2, ge=1)
    """Steps in a block. With `tail: one_step`, K longer than a completion is K = 1 for it: larger
    is not monotone on short outputs."""
    tail: Tail = "one_step"
    """Last steps that fill no block: one-step rewards (Algorithm 1) or none of them (Eq 7)."""

    @model_validator(mode="before")
    @classmethod
    def _read_runs_of_0_2_0(cls, settings: Any) -> Any:
        if not isinstance(settings, dict):
            return settings
        for key, value, remedy, _ in _GONE:
            if settings.get(key) == value:
                raise ValueError(remedy)
        return {key: v for key, v in settings.items() if v not in _UNUSED.get(key, ())}


class PolicyGradientConfig(InductionConfig):
    """Settings that LLMR and BRIM share."""

    baseline: Literal["none", "mean", "min_variance", "time_mean", "leave_one_out"] = "none"
    """What is subtracted from the clipped returns. `mean`: their mean over the tokens of the whole
    rollout batch. `min_variance`: the number that makes the variance of the output layer's
    gradient least. `time_mean`: at each step, the mean of the other completions. `leave_one_out`:
    the mean of the prompt's other completions (`num_generations` > 1). The paper has none for
    LLMR and BRIM."""
    immediate: Literal["sampled", "expected"] = "sampled"
    """How a token's own Q-value counts: as sampled, or as its expectation under the student, which
    is differentiated exactly and leaves only the future to sampling; the clip and the baseline
    are then the future's. The expected gradient stays (but for `truncated: drop`, and where the
    clip cuts); its variance is mostly smaller, not always."""
    rollout_reuse: int = Field(1, ge=1)
    """Updates on each rollout batch; from the second on tokens are weighted by π now / π then."""
    sync_every: int = Field(1, ge=1)
    """Steps between copies of the student into the policy that writes."""
    max_importance_weight: float | None = Field(2.0, ge=1)
    """Bound of π now / π then for reused or old rollouts; null for none."""

    @model_validator(mode="after")
    def _leave_one_out_of_several(self) -> Self:
        if self.baseline == "leave_one_out" and self.num_generations < 2:
            raise ValueError(
                "baseline=leave_one_out compares completions of one prompt; set num_generations "
                "to 2 or more"
            )
        return self

    @property
    def whole_distribution(self) -> str | None:
        """The centering, or the expectation of the own step."""
        own = "immediate=expected" if self.immediate == "expected" else None
        return super().whole_distribution or own

    @property
    def updates(self) -> Updates:
        """As many as the rollouts are reused."""
        return Updates(num_epochs=self.rollout_reuse, sync_every=self.sync_every)

    def passes(self) -> Passes:
        """Return the passes of a step; the student reads reused and old rollouts once more."""
        updates, stale = self.rollout_reuse, int(self.sync_every > 1)
        once_more = (self.baseline == "min_variance", self.q_centering == "policy")
        return Passes(
            generations=self.num_generations,
            written=1.0,
            teacher_reads=1,
            student_reads=sum(once_more) + (stale or updates > 1),
            updates=updates,
            compared=updates if self.immediate == "expected" else 0,
            copies=stale,
            writers=stale,
        )


class LLMRConfig(PolicyGradientConfig, OneStepConfig):
    """LLMR (Li et al. 2024): one-step induced rewards, REINFORCE. BRIM with K = 1."""

    name: Literal["llmr"] = "llmr"


class BRIMConfig(PolicyGradientConfig, BlockConfig):
    """BRIM: returns induced over blocks of K steps."""

    name: Literal["brim"] = "brim"


class AnchoredConfig(RewardedConfig):
    """Advantages whose critic is the teacher: its best value less the regrets still to come."""

    name: Literal["anchored"] = "anchored"
    lambda_: float = Field(0.0, ge=0, le=1, alias="lambda")
    """Decay of what later tokens add to an advantage. 1 has no bias and all the noise; 0 trusts
    `remaining_regret` wholly: best or level in trials, but not by text (`per_token: false`) from a
    student far from its teacher."""
    remaining_regret: Literal["time_mean", "learned", "none"] = "time_mean"
    """The regrets that a state still has before it: `time_mean` is their mean over the batch's
    other completions at the same step (the prompt's own others, where `num_generations` is above
    1); `learned` multiplies it by what a head on the student's hidden states says of the state;
    `none` is the critic of a student without regrets, which overrates long texts."""
    expected_regrets: bool = True
    """Count for each later state the regret that the student expects there, in place of the one
    that it had: no bias and less noise, for one more pass of the student."""
    immediate: Literal["expected", "sampled"] = "expected"
    """How the token itself counts: by the expectation over all tokens, which is differentiated
    exactly, or as it was sampled, which needs two numbers a token of the teacher."""
    per_token: bool = True
    """Minimize the regret per token in place of that of the text, of which a shorter one has less:
    each regret counts less the mean over the tokens of the batch's other completions."""
    clip: ClipConfig = ClipConfig()
    """Bound of an advantage (`target: return` only)."""
    truncated: Literal["keep", "drop"] = "keep"
    """Completions cut at the length limit: nothing follows (`keep`), or they are left out."""
    num_generations: int = Field(1, ge=1)
    """Completions of each prompt; a step has `trainer.rollout_batch_size` times as many."""

    def passes(self) -> Passes:
        """Return the passes of a step; the student reads where regrets are expected or learned."""
        learned = self.remaining_regret == "learned"
        return Passes(
            generations=self.num_generations,
            written=1.0,
            teacher_reads=1,
            student_reads=self.expected_regrets + learned,
            compared=int(self.immediate == "expected"),
            critic="shared" if learned else None,
        )

    @property
    def whole_distribution(self) -> str | None:
        """The expectations, of the own step and of regrets."""
        if self.immediate == "expected":
            return "immediate=expected"
        return "expected_regrets=true" if self.expected_regrets else None

    @property
    def q_centering(self) -> Literal["max", "policy"]:
        """Advantages do not depend on it; by policy, the best value is the expected regret."""
        return "policy" if self.expected_regrets else "max"

    @model_validator(mode="after")
    def _no_block_rewards(self) -> Self:
        if self.clip.target == "reward":
            raise ValueError("clip.target=reward has no meaning for advantages; set it to return")
        return self

    @model_validator(mode="after")
    def _no_learned_share_per_token(self) -> Self:
        if self.per_token and self.remaining_regret == "learned":
            raise ValueError(
                "remaining_regret=learned is not per token; set it to time_mean, or per_token=false"
            )
        return self


class PPOConfig(InductionConfig):
    """Settings that both kinds of PPO share."""

    num_epochs: int = Field(4, ge=1)
    """Passes over each rollout batch."""
    num_minibatches: int = Field(4, ge=1)
    """Updates of a pass, each on an equal part of the rows."""
    epsilon: float = Field(0.2, gt=0, lt=1)
    """π now / π then counts within [1 - ε, 1 + ε] only."""
    kl_coefficient: float = Field(0.0, ge=0)
    """Each token is charged this much times log π - log π of the student at the start of training,
    of which a copy is kept; 0 for no charge and no copy."""
    normalize_advantages: bool = True
    """Shift and scale the advantages of a rollout batch to mean 0 and standard deviation 1; without
    it `ppo_brim`'s advantage is the clipped return, with no baseline. The paper does not say."""
    target_kl: float | None = Field(None, gt=0)
    """End a step's updates once the KL between the policy that wrote and the one now, as estimated
    on an update's tokens, exceeds it; null for never."""

    @property
    def updates(self) -> Updates:
        """`num_epochs` passes of `num_minibatches` updates."""
        return Updates(self.num_epochs, self.num_minibatches)

    @property
    def compares_policies(self) -> bool:
        """Always: the clipped surrogate is made of ratios."""
        return True

    def passes(self) -> Passes:
        """Return the passes of a step; a copy of the start reads where there is a charge."""
        charged = int(self.kl_coefficient > 0)
        return Passes(
            generations=self.num_generations,
            written=1.0,
            teacher_reads=1,
            student_reads=1 + (self.q_centering == "policy"),
            copy_reads=charged,
            updates=self.num_epochs,
            minibatches=self.num_minibatches,
            copies=charged,
        )


class PPOLLMRConfig(PPOConfig, OneStepConfig):
    """PPO on one-step rewards with a critic."""

    name: Literal["ppo_llmr"] = "ppo_llmr"
    critic: Literal["shared", "separate", "anchored"] = "shared"
    """A value head on the student's hidden states, or on those of a copy that learns apart; or,
    without one, the teacher's best value less the mean regrets to come of the batch's other
    completions at the same step (of the prompt's own others with `num_generations` above 1)."""
    gae_lambda: float = Field(0.95, ge=0, le=1)
    """Decay of later TD errors in an advantage: 1 sums all rewards, 0 trusts the critic wholly."""
    discount: float = Field(1.0, gt=0, le=1)
    """Factor of each later reward; Eq 2 is made for 1."""
    value_coefficient: float = Field(0.1, gt=0)
    """Weight of the critic's loss, whose values are in units of `clip.range`."""
    value_clip_range: float | None = Field(0.2, gt=0)
    """How far a value may move from the one at the rollout, in units of `clip.range`; null for no
    limit."""

    @model_validator(mode="after")
    def _critic_has_a_unit(self) -> Self:
        if self.critic == "anchored" and self.clip.target == "reward":
            raise ValueError(
                "critic=anchored clips advantages, and no rewards: set clip.target=return"
            )
        if self.critic != "anchored" and (self.clip.range is None or self.clip.target == "reward"):
            raise ValueError(
                "the critic counts returns in units of clip.range, so it must bound returns: set "
                "clip.target=return, and clip.range to about the largest return that you expect"
            )
        return self

    @model_validator(mode="after")
    def _anchored_critic_learns_nothing(self) -> Self:
        fields = type(self).model_fields
        fixed = ("discount", "value_coefficient", "value_clip_range")
        changed = [name for name in fixed if getattr(self, name) != fields[name].default]
        changed += ["truncated"] if self.truncated == "bootstrap" else []
        if self.critic == "anchored" and changed:
            raise ValueError(
                f"critic=anchored takes no {changed[0]}: nothing is learned, texts end where they "
                "are cut, and best values cancel without discount only; leave it out"
            )
        return self

    def passes(self) -> Passes:
        """Return the passes of a step, with the critic if it learns."""
        return replace(super().passes(), critic=None if self.critic == "anchored" else self.critic)


class PPOBRIMConfig(PPOConfig, BlockConfig):
    """PPO with the K-step return as the advantage, without a critic."""

    name: Literal["ppo_brim"] = "ppo_brim"
