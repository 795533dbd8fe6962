"""A run on paper: what it will do and what it takes, without weights, data or network."""

from brim.plan.plan import plan
from brim.plan.render import as_dict, as_text
from brim.plan.sweeps import SweepPlan, plan_sweep, sweep_as_dict, sweep_as_text
from brim.plan.types import ModelPlan, Plan, StagePlan

__all__ = [
    "ModelPlan",
    "Plan",
    "StagePlan",
    "SweepPlan",
    "as_dict",
    "as_text",
    "plan",
    "plan_sweep",
    "sweep_as_dict",
    "sweep_as_text",
]
