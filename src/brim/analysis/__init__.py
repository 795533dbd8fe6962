"""Analyses of a run: variance for bias by K or λ, and how far Theorem 1's assumption holds."""

from brim.analysis.estimators import KS, LAMBDAS
from brim.analysis.results import Theorem1Analysis, VarianceAnalysis
from brim.analysis.subjects import AnalyzedModel, find_students, open_recipe, open_run
from brim.analysis.theorem1 import analyze_theorem1
from brim.analysis.variance import analyze_variance
from brim.analysis.write import write_analysis

__all__ = [
    "KS",
    "LAMBDAS",
    "AnalyzedModel",
    "Theorem1Analysis",
    "VarianceAnalysis",
    "analyze_theorem1",
    "analyze_variance",
    "find_students",
    "open_recipe",
    "open_run",
    "write_analysis",
]
