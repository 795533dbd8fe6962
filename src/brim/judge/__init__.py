"""A large model compares what two systems wrote, by the paper's prompts."""

from brim.judge.judging import default_out, estimate, judge_runs, open_judging
from brim.judge.prompts import VARIANTS, Verdict
from brim.judge.render import summary_lines
from brim.judge.settings import JudgeConfig, Limits
from brim.judge.summary import Summary, summarize

__all__ = [
    "VARIANTS",
    "JudgeConfig",
    "Limits",
    "Summary",
    "Verdict",
    "default_out",
    "estimate",
    "judge_runs",
    "open_judging",
    "summarize",
    "summary_lines",
]
