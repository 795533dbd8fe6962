"""The methods. A new one is a file here, a line in `OBJECTIVES`, a recipe and a page of docs."""

from typing import Annotated

from pydantic import Field

from brim.objectives.base import Objective, Policy
from brim.objectives.policy_gradient import BRIMConfig, LLMRConfig, PolicyGradient
from brim.objectives.seqkd import SeqKD, SeqKDConfig

OBJECTIVES = {"seqkd": SeqKDConfig, "llmr": LLMRConfig, "brim": BRIMConfig}

ObjectiveConfig = Annotated[SeqKDConfig | LLMRConfig | BRIMConfig, Field(discriminator="name")]

__all__ = [
    "OBJECTIVES",
    "BRIMConfig",
    "LLMRConfig",
    "Objective",
    "ObjectiveConfig",
    "Policy",
    "PolicyGradient",
    "SeqKD",
    "SeqKDConfig",
]
