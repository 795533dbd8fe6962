"""Objectives and runs with the settings that a test names; K is 1 unless it says otherwise."""

from typing import Any

from brim.config.loading import load_config
from brim.models import Decoding, LanguageModel
from brim.objectives.anchored import Anchored
from brim.objectives.credit import score
from brim.objectives.policy_gradient import PolicyGradient
from brim.objectives.ppo import PPO
from brim.objectives.seqkd import SeqKD
from brim.objectives.settings import (
    AnchoredConfig,
    BRIMConfig,
    PPOBRIMConfig,
    PPOLLMRConfig,
    SeqKDConfig,
)
from brim.recipes import find_recipe
from brim.training.settings import RunConfig
from brim.types import ActionValues, Rollout


def configure(recipe: str, *overrides: str) -> RunConfig:
    return load_config(RunConfig, find_recipe(recipe), overrides, search=find_recipe)


def seqkd(decoding: Decoding) -> SeqKD:
    return SeqKD(SeqKDConfig(), decoding)


def policy_gradient(decoding: Decoding, **settings: Any) -> PolicyGradient:
    return PolicyGradient(BRIMConfig(**{"k": 1, **settings}), decoding)


def anchored(decoding: Decoding, **settings: Any) -> Anchored:
    return Anchored(AnchoredConfig(**{"per_token": False, **settings}), decoding)


def ppo_brim(decoding: Decoding, **settings: Any) -> PPO:
    return PPO(PPOBRIMConfig(**{"k": 1, **settings}), decoding)


def ppo_llmr(decoding: Decoding, **settings: Any) -> PPO:
    return PPO(PPOLLMRConfig(**settings), decoding)


def q_of(
    objective: PolicyGradient | PPO | Anchored,
    rollout: Rollout,
    student: LanguageModel,
    teacher: LanguageModel,
) -> ActionValues:
    """What the teacher says of a rollout under the objective's settings."""
    return score(teacher, rollout, student, objective.settings, objective.decoding)
