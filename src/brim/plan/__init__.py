"""A run on paper: what it will do and what it takes, without weights, data or network."""

from brim.plan.planning import ModelPlan, Plan, StagePlan, plan
from brim.plan.render import as_dict, as_text

__all__ = ["ModelPlan", "Plan", "StagePlan", "as_dict", "as_text", "plan"]
