"""A large model compares what two systems wrote, by the paper's prompts."""

from brim.judge.judging import PairwiseJudging, default_out, estimate, judge_runs, open_judging
from brim.judge.prompts import VARIANTS, Verdict
from brim.judge.render import summary_lines
from brim.judge.settings import JudgeConfig, Limits
from brim.judge.summary import Bias, Disagreement, Summary, summarize

__all__ = [
    "VARIANTS",
    "Bias",
    "Disagreement",
    "JudgeConfig",
    "Limits",
    "PairwiseJudging",
    "Summary",
    "Verdict",
    "default_out",
    "estimate",
    "judge_runs",
    "open_judging",
    "summarize",
    "summary_lines",
]
