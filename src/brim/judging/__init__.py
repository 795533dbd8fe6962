"""Judging two run directories by a large model."""

from brim.judging.contest import (
    NUM_PAIRS,
    Contest,
    Judge,
    default_out,
    estimate,
    first_prompt,
    open_contest,
    read_request,
)
from brim.judging.pairs import KIND_OF_TASK, names_of
from brim.judging.render import summary_lines
from brim.judging.running import judge_runs

__all__ = [
    "KIND_OF_TASK",
    "NUM_PAIRS",
    "Contest",
    "Judge",
    "default_out",
    "estimate",
    "first_prompt",
    "judge_runs",
    "names_of",
    "open_contest",
    "read_request",
    "summary_lines",
]
