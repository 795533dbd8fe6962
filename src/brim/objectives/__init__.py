"""The methods. A new one is a file here, a line in `OBJECTIVES`, a recipe and a page of docs."""

from typing import Annotated

from pydantic import Field

from brim.objectives.adaptive_k import AdaptiveK
from brim.objectives.base import Objective, Policy, Updates
from brim.objectives.divergence import Divergence, JSConfig, KLConfig, RKLConfig, TVDConfig
from brim.objectives.policy_gradient import BRIMConfig, LLMRConfig, PolicyGradient
from brim.objectives.ppo import PPOBRIM, PPOLLMR, PPOBRIMConfig, PPOLLMRConfig
from brim.objectives.seqkd import SeqKD, SeqKDConfig

OBJECTIVES = {
    "seqkd": SeqKDConfig,
    "kl": KLConfig,
    "rkl": RKLConfig,
    "js": JSConfig,
    "tvd": TVDConfig,
    "llmr": LLMRConfig,
    "brim": BRIMConfig,
    "ppo_llmr": PPOLLMRConfig,
    "ppo_brim": PPOBRIMConfig,
}

ObjectiveConfig = Annotated[
    SeqKDConfig
    | KLConfig
    | RKLConfig
    | JSConfig
    | TVDConfig
    | LLMRConfig
    | BRIMConfig
    | PPOLLMRConfig
    | PPOBRIMConfig,
    Field(discriminator="name"),
]

__all__ = [
    "OBJECTIVES",
    "PPOBRIM",
    "PPOLLMR",
    "AdaptiveK",
    "BRIMConfig",
    "Divergence",
    "JSConfig",
    "KLConfig",
    "LLMRConfig",
    "Objective",
    "ObjectiveConfig",
    "PPOBRIMConfig",
    "PPOLLMRConfig",
    "Policy",
    "PolicyGradient",
    "RKLConfig",
    "SeqKD",
    "SeqKDConfig",
    "TVDConfig",
    "Updates",
]
