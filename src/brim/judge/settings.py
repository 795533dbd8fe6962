"""Who judges what: the settings of `brim judge`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from brim.config.loading import Config
from brim.judge.prompts import CRITERIA, Kind


class Limits(Config):
    """How a judge is asked."""

    concurrency: int = Field(8, ge=1)
    """Requests at the same time; of a local judge, prompts that are answered together."""
    rpm: float | None = Field(None, ge=0.01)
    """Requests a minute, tries included; null for as many as there can be."""
    timeout: float = Field(60.0, gt=0)
    """Seconds of one request, from its beginning to the whole answer."""
    max_retries: int = Field(5, ge=0)
    """Further tries of a query."""
    backoff: float = Field(1.0, ge=0)
    """Seconds before the second try, doubled for each one more, times a random number between ½
    and 1½."""
    max_backoff: float = Field(60.0, ge=0)
    """The longest of these waits, before the random number."""


class JudgeConfig(Config):
    """Who judges which two systems, and by which prompts."""

    a: Path | None = None
    """The system whose win rate is asked for, a directory with `predictions/SPLIT.jsonl`; the first
    one of the command line replaces it."""
    b: Path | None = None
    """The other system, on the same examples."""
    split: str = Field("test", pattern=r"train|validation|test(\.[\w-]+)?")
    """Whose predictions."""
    model: str
    """As the server calls it; of a local judge a folder, run directory or hub name."""
    backend: Literal["openai", "local"] = "openai"
    """`openai` for any server with OpenAI's interface, `local` for a model in this process."""
    base_url: str | None = None
    """Of the server; null for OpenAI's own."""
    api_key_env: str | None = None
    """Environment variable with the key; null for OPENAI_API_KEY with OpenAI's own server, and for
    no key with others."""
    request: dict[str, Any] = Field({})
    """Settings of a request to change, such as `max_tokens: 1024`; null leaves one out."""
    limits: Limits = Limits()
    """How many requests, and how often."""
    criteria: tuple[str, ...] = CRITERIA
    """Names of templates."""
    kind: Kind | None = None
    """Whose templates of the paper; null for what the runs' task says."""
    prompts: Path | None = None
    """YAML file of templates to use instead of the paper's."""
    keep_lines: bool = False
    """Candidates keep their line breaks, and can then imitate the prompt's lines."""
    # All win rates of the paper's Table 3 are multiples of 1/2000: 500 pairs, four queries each.
    max_examples: int | None = Field(500, ge=1)
    """Judge so many examples, chosen by `seed`; null for all. More of them include the fewer."""
    seed: int = Field(0, ge=0)
    """Of the choice of examples."""
    store: Path | None = None
    """File of the answers, which other comparisons may share; null for OUT/verdicts.sqlite."""

    @field_validator("request")
    @classmethod
    def _is_json(cls, request: dict[str, Any]) -> dict[str, Any]:
        json.dumps(request, allow_nan=False)
        return request

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        for name in ("base_url", "api_key_env"):
            if self.backend == "local" and getattr(self, name) is not None:
                raise ValueError(f"{name}: is of servers; leave it out for a local judge")
        if self.kind is not None and self.prompts is not None:
            raise ValueError("kind: is of the paper's templates; leave it out with `prompts`")
        return self
