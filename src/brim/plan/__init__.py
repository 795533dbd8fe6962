"""A run on paper: what it will do and what it takes, without weights, data or network."""

from brim.plan.measure import measure
from brim.plan.plan import ModelPlan, Plan, StagePlan, plan
from brim.plan.render import as_dict, as_text
from brim.plan.sweeps import SweepPlan, plan_sweep, sweep_as_dict, sweep_as_text

__all__ = [
    "ModelPlan",
    "Plan",
    "StagePlan",
    "SweepPlan",
    "as_dict",
    "as_text",
    "measure",
    "plan",
    "plan_sweep",
    "sweep_as_dict",
    "sweep_as_text",
]
