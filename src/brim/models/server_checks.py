"""What is checked of a teacher's server before training, and how its model is known again.

A name says little: a server may have been started with other weights behind it. So the
log-probabilities of a fixed text are kept, and compared within a multiple of what two equal
requests differ by.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from brim.config.loading import config_hash
from brim.errors import ModelError
from brim.models.http import HTTPClient
from brim.models.loading import describe_tokenizer, load_tokenizer
from brim.models.server import ServerTeacher
from brim.models.server_kinds import find_api
from brim.models.server_settings import ServedModel

PROBES = (
    "Hello, world! It's 10:45 a.m.",
    "  two  spaces,\ttabs\tand\nline\n\nbreaks",
    " leading and trailing ",
    "1234567890 3.14159 1,000,000",
    "don't won't I'll we've",
    "ALL CAPS CamelCase snake_case kebab-case",
    "x = [y**2 for y in range(10)];",
    "https://example.org/path?query=value#part",
    "naïve café Zürich Ünïcödé ﬁ",
    "“quotes” — dashes … ellipsis",
    "русский язык",
    "日本語の文章",
    "العربية",
    "हिन्दी",
    "한국어",
    "😀👍🏽 👩‍👩‍👧",
    "e\u0301 \u200b\u00a0 \u2028",
    "a" * 40,
    "antidisestablishmentarianism",
    "\u00ad$€£ ½ ² ∑ ≠",
)

PROBE_TOKENS, PROBE_PROMPT = 192, 16

# Of the mean difference of a log-probability: what another machine, or another batch, may change
# in bfloat16; models that were trained differently are some tenths or more apart.
TOLERANCE = 0.05
TIMES_NOISE = 10.0


def connect(settings: ServedModel, tokenizer_of: Mapping[str, Any]) -> ServerTeacher:
    """Return the teacher behind a server.

    Args:
        settings: of the teacher.
        tokenizer_of: arguments of `load_tokenizer`.

    Raises:
        BrimError: the server is away, refuses the key, or has no such model; there is no tokenizer.
    """
    assert settings.server is not None
    assert settings.model is not None
    client = HTTPClient(settings.server, settings.key_env, settings.requests)
    api = find_api(client, settings.model, settings.api)
    tokenizer, generation = load_tokenizer(**tokenizer_of)
    return ServerTeacher(api, tokenizer, generation, settings.requests)


def check_tokenizer(teacher: ServerTeacher, texts: Iterable[str] = ()) -> bool:
    """Check that the server reads texts as the same tokens.

    Args:
        teacher: with the tokenizer at hand.
        texts: some of the task's, beside `PROBES`.

    Returns:
        Whether the server says how it reads texts at all.

    Raises:
        ModelError: names the first text that it reads otherwise.
    """
    for text in (*PROBES, *texts):
        ours = _ids(teacher.tokenizer, text)
        theirs = teacher.api.tokenize(text)
        if theirs is None:
            return False
        if ours != theirs:
            raise ModelError(
                "teacher and student have different tokenizers: the server reads "
                f"{_shorten(text)!r} as {_shorten(theirs)} and the tokenizer at hand as "
                f"{_shorten(ours)}; give a student, or a teacher.tokenizer.path, of the tokenizer "
                "that the server was started with"
            )
    return True


def describe_served(teacher: ServerTeacher) -> dict[str, Any]:
    """Return what a manifest says of a model behind a server.

    Returns:
        `name`, `api`, and `root`, `version` and `sha256` as far as the server says them; `probe`,
        log-probabilities of a fixed text; `noise`, the mean difference of two equal requests.
    """
    known = {"root": teacher.api.card.get("root"), "version": teacher.api.version()}
    known["sha256"] = teacher.api.card.get("sha256")
    first, second = (_probe(teacher) for _ in range(2))
    return {
        "name": teacher.api.model,
        "api": teacher.api.name,
        **{name: value for name, value in known.items() if isinstance(value, str)},
        "probe": first,
        "noise": _difference(first, second),
    }


def fingerprint_served(teacher: ServerTeacher) -> str:
    """Return what represents the model in hashes: its name, its SHA-256 if known, its tokenizer."""
    rules = describe_tokenizer(teacher.tokenizer)
    sha256 = teacher.api.card.get("sha256")
    return config_hash({"model": teacher.api.model, "sha256": sha256, "tokenizer": rules})


def served_difference(known: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    """Return in what two descriptions by `describe_served` are of different models, or None."""
    for name in ("name", "sha256"):
        if name in known and name in found and known[name] != found[name]:
            return f"its {name} is {found[name]} and was {known[name]}"
    if len(known["probe"]) != len(found["probe"]):
        return "it reads the probe as other tokens"
    difference = _difference(known["probe"], found["probe"])
    allowed = max(TOLERANCE, TIMES_NOISE * max(known["noise"], found["noise"]))
    if difference > allowed:
        return (
            f"its log-probabilities of a fixed text differ by {difference:.3g} in the mean, more "
            f"than the {allowed:.3g} that a server may by itself"
        )
    return None


def _probe(teacher: ServerTeacher) -> list[float]:
    room = min(PROBE_TOKENS, (teacher.num_positions or PROBE_TOKENS + 1) - 1)
    ids = [i for i in _ids(teacher.tokenizer, " ".join(PROBES)) if i in teacher.allowed.tokens]
    ids = [i for i in ids if i not in teacher.eos_token_ids][:room]
    split = min(PROBE_PROMPT, len(ids) // 2)
    [values] = teacher.api.score(
        [ids[:split]],
        [ids[split:]],
        centering=teacher.returns_centering,
        bootstrap=False,
        allowed=teacher.allowed,
    )
    return [round(value, 4) for value in values.logprobs]


def _difference(one: list[float], other: list[float]) -> float:
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / max(len(one), 1)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return ids


def _shorten(what: str | list[int]) -> str:
    text = str(what)
    return text if len(text) <= 60 else f"{text[:57]}..."
