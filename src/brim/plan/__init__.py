"""A run on paper: what it will do and what it takes, without weights, data or network.

>>> import brim
>>> brim.plan("cmudict/brim", trainer={"max_steps": 100})  # doctest: +SKIP
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Unpack

from brim.plan.measure import measure
from brim.plan.plan import Plan, plan
from brim.plan.render import as_dict, as_text
from brim.plan.sweeps import plan_sweep, sweep_as_dict, sweep_as_text
from brim.recipes.given import Recipe, Sections, configure
from brim.support.imports import make_callable

__all__ = [
    "Plan",
    "as_dict",
    "as_text",
    "measure",
    "plan",
    "plan_recipe",
    "plan_sweep",
    "sweep_as_dict",
    "sweep_as_text",
]


def plan_recipe(
    recipe: Recipe = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    devices: int = 1,
    memory_limit: float | None = None,
    **sections: Unpack[Sections],
) -> Plan:
    """Count what a recipe takes, given as `brim.train` takes it; prints as `brim plan` does.

    Data and models are paths or names here; the rest is as `plan`.

    Raises:
        BrimError: settings that cannot be used, and as `plan`.
    """
    found = plan(
        configure(recipe, overrides or {}, sections), devices=devices, memory_limit=memory_limit
    )
    return replace(found, text=as_text(found))


make_callable(__name__, plan_recipe)
