"""What requests hold, without torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from pydantic import FailFast, Field, model_validator

from brim.config.loading import Config

# A logit bias from here on down excludes a token.
NEVER = -100.0

Value = Literal["taken", "best", "logsumexp", "mean"]
VALUES: tuple[Value, ...] = get_args(Value)
"""What is said of a token: its logit, the largest one, and two statistics of all of them."""

Id = Annotated[int, Field(ge=0)]
Ids = Annotated[list[Id], Field(min_length=1), FailFast()]
Rows = Annotated[list[Ids], Field(min_length=1), FailFast()]


class TokenizeRequest(Config):
    """A text to be tokenized."""

    model: str
    prompt: str
    add_special_tokens: bool = True


class ScoreRequest(Config):
    """Completions of prompts whose tokens are to be valued."""

    model: str
    prompts: Rows
    completions: Rows
    """One a prompt."""
    values: list[Value] = Field([*VALUES])
    bootstrap: bool = False
    """Whether the states behind the last tokens are valued too."""
    excluded: Annotated[list[Id], FailFast()] = Field([])
    """Tokens that the policy does not write."""

    @model_validator(mode="after")
    def _same_number(self) -> Self:
        if len(self.prompts) != len(self.completions):
            raise ValueError(
                f"completions: {len(self.completions)} for {len(self.prompts)} prompts; give one "
                "for each"
            )
        return self


class CompletionRequest(Config):
    """Prompts to be continued, a part of vLLM's form of OpenAI's request."""

    model: str
    prompt: Rows
    """Token ids of each."""
    max_tokens: int = Field(16, ge=1)
    temperature: float = Field(1.0, ge=0)
    """0 for the likeliest tokens."""
    top_k: int | None = Field(None, ge=-1)
    """0 and -1 for all tokens, as of null."""
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=0)
    stop_token_ids: list[Id] | None = None
    """Null for the tokens that end the model's texts."""
    logit_bias: dict[str, float] = Field({})
    """By token id; only what excludes a token."""
    prompt_logprobs: int | None = Field(None, ge=0)
    """How many tokens are named at each place of the prompt, beside the one that is there."""
    logprobs: int | None = Field(None, ge=0)
    """The same of the text."""
    return_tokens_as_token_ids: bool = False
    return_token_ids: bool = False
    n: Literal[1] = 1
    stream: Literal[False] = False

    @model_validator(mode="after")
    def _seed_of_samples(self) -> Self:
        if self.temperature and self.seed is None:
            raise ValueError(
                "seed: is missing, with which a sample can be drawn again; add it, or "
                "set temperature to 0"
            )
        return self

    @property
    def excluded(self) -> frozenset[int]:
        """Tokens that the bias excludes.

        Raises:
            ValueError: a bias does something else, or its key is no token id.
        """
        for token, bias in self.logit_bias.items():
            if not token.isdecimal():
                raise ValueError(f"logit_bias: {token!r} is no token id")
            if bias > NEVER:
                raise ValueError(
                    f"logit_bias: {bias:g} of token {token}: only {NEVER:g} and less is possible, "
                    "which excludes the token"
                )
        return frozenset(map(int, self.logit_bias))
