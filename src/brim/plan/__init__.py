"""A run on paper: what it will do and what it takes, without weights, data or network."""

from brim.plan.measure import measure
from brim.plan.plan import plan
from brim.plan.render import as_dict, as_text
from brim.plan.sweeps import plan_sweep, sweep_as_dict, sweep_as_text

__all__ = [
    "as_dict",
    "as_text",
    "measure",
    "plan",
    "plan_sweep",
    "sweep_as_dict",
    "sweep_as_text",
]
