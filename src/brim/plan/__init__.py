"""A run on paper: what it will do and what it takes, without weights, data or network.

>>> import brim
>>> brim.plan("cmudict/brim", trainer={"max_steps": 100})  # doctest: +SKIP
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Unpack

from brim.plan.measure import measure
from brim.plan.plan import Plan, plan
from brim.plan.render import as_dict, as_text
from brim.plan.sweeps import plan_sweep, sweep_as_dict, sweep_as_text
from brim.recipes.given import Recipe, Sections, configure
from brim.recipes.memory import Kept
from brim.support.imports import make_callable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
    tokenizer: PreTrainedTokenizerBase | None = None,
    **sections: Unpack[Sections],
) -> Plan:
    """Count what a recipe takes, given as `brim.train` takes it; prints as `brim plan` does.

    Args:
        recipe: as of `brim.train`.
        overrides: as of `brim.train`.
        devices: as of `plan`.
        memory_limit: as of `plan`.
        tokenizer: as of `brim.train`.
        sections: as of `brim.train`.

    Raises:
        BrimError: settings that cannot be used, and as `plan`.
    """
    with TemporaryDirectory() as folder:
        kept = Kept(Path(folder), tokenizer, weights=False)
        config = configure(recipe, overrides or {}, sections, kept)
        found = plan(config, devices=devices, memory_limit=memory_limit)
    in_memory = f"{kept.folder}{os.sep}"  # whose folder is gone
    models = (replace(each, name=each.name.replace(in_memory, "")) for each in found.models)
    warnings = (text.replace(in_memory, "") for text in found.warnings)
    found = replace(found, models=tuple(models), warnings=tuple(warnings))
    return replace(found, text=as_text(found))


make_callable(__name__, plan_recipe)
