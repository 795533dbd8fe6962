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
from brim.judge.openai import OPENAI_KEY, OPENAI_URL, OpenAIBackend, openai_identity
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
from brim.judge.store import Reply, Store
from brim.judge.summary import Answers, Bias, Disagreement, Summary, pair_score, summarize, wilson

__all__ = [
    "CRITERIA",
    "KINDS",
    "OPENAI_KEY",
    "OPENAI_URL",
    "VARIANTS",
    "Answers",
    "Backend",
    "Bias",
    "Disagreement",
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
    "imitates_prompt",
    "load_templates",
    "one_line",
    "openai_identity",
    "pair_score",
    "parse_verdict",
    "query_key",
    "summarize",
    "wilson",
]
