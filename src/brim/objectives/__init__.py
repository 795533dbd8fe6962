"""The methods by name: a new one is a file, a line in `OBJECTIVES`, a recipe and a page of docs.

Settings are read without torch; the class of a method is imported when it is made.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from brim.objectives import divergence_settings as d
from brim.objectives import settings as s
from brim.objectives.method import MethodConfig

if TYPE_CHECKING:
    from brim.models import Decoding
    from brim.objectives.base import Objective

# The settings of each method, and where its class is.
OBJECTIVES: dict[str, tuple[type[MethodConfig], str]] = {
    "seqkd": (s.SeqKDConfig, "brim.objectives.seqkd:SeqKD"),
    "kl": (d.KLConfig, "brim.objectives.divergence:Divergence"),
    "rkl": (d.RKLConfig, "brim.objectives.divergence:Divergence"),
    "js": (d.JSConfig, "brim.objectives.divergence:Divergence"),
    "tvd": (d.TVDConfig, "brim.objectives.divergence:Divergence"),
    "llmr": (s.LLMRConfig, "brim.objectives.policy_gradient:PolicyGradient"),
    "brim": (s.BRIMConfig, "brim.objectives.policy_gradient:PolicyGradient"),
    "anchored": (s.AnchoredConfig, "brim.objectives.anchored:Anchored"),
    "ppo_llmr": (s.PPOLLMRConfig, "brim.objectives.ppo:PPO"),
    "ppo_brim": (s.PPOBRIMConfig, "brim.objectives.ppo:PPO"),
}

if TYPE_CHECKING:
    ObjectiveConfig = MethodConfig
else:
    _Settings = Union[tuple(settings for settings, _ in OBJECTIVES.values())]  # noqa: UP007
    ObjectiveConfig = Annotated[_Settings, Field(discriminator="name")]


def make_objective(settings: MethodConfig, decoding: Decoding) -> Objective:
    """Return the objective of these settings.

    Args:
        settings: of a method in `OBJECTIVES`.
        decoding: how completions are written, and the token limits of prompts and targets.

    Raises:
        KeyError: the method's name is not in `OBJECTIVES`; add a line.
    """
    _, place = OBJECTIVES[settings.name]
    module, _, name = place.partition(":")
    objective: Objective = getattr(import_module(module), name)(settings, decoding)
    return objective
