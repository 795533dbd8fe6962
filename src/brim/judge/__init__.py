"""A large model compares what two systems wrote, by the paper's prompts; no torch in here."""

from brim.judge.asking import (
    Backend,
    Limits,
    LocalBackend,
    Outcome,
    Question,
    RejectedError,
    TransientError,
    ask_all,
)
from brim.judge.contest import (
    NUM_PAIRS,
    Contest,
    Judge,
    default_out,
    estimate,
    first_prompt,
    open_contest,
    read_request,
)
from brim.judge.openai import OPENAI_KEY, OPENAI_URL, OpenAIBackend, openai_identity
from brim.judge.pairs import KIND_OF_TASK, names_of
from brim.judge.prompts import (
    CRITERIA,
    KINDS,
    Kind,
    Template,
    Verdict,
    imitates_prompt,
    load_templates,
    one_line,
    parse_verdict,
)
from brim.judge.queries import VARIANTS, Pair, Variant, query_key
from brim.judge.render import summary_lines
from brim.judge.run import judge_runs
from brim.judge.store import Reply, Store
from brim.judge.summary import Answers, Bias, Disagreement, Summary, pair_score, summarize, wilson

__all__ = [
    "CRITERIA",
    "KINDS",
    "KIND_OF_TASK",
    "NUM_PAIRS",
    "OPENAI_KEY",
    "OPENAI_URL",
    "VARIANTS",
    "Answers",
    "Backend",
    "Bias",
    "Contest",
    "Disagreement",
    "Judge",
    "Kind",
    "Limits",
    "LocalBackend",
    "OpenAIBackend",
    "Outcome",
    "Pair",
    "Question",
    "RejectedError",
    "Reply",
    "Store",
    "Summary",
    "Template",
    "TransientError",
    "Variant",
    "Verdict",
    "ask_all",
    "default_out",
    "estimate",
    "first_prompt",
    "imitates_prompt",
    "judge_runs",
    "load_templates",
    "names_of",
    "one_line",
    "open_contest",
    "openai_identity",
    "pair_score",
    "parse_verdict",
    "query_key",
    "read_request",
    "summarize",
    "summary_lines",
    "wilson",
]
