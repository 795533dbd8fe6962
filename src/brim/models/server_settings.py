"""What a recipe says about a teacher behind a server; without torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from brim.config.loading import Config, Incidental
from brim.models.settings import ModelSettings, TokenizerSettings
from brim.support.http import url_problem


class RequestsConfig(Config):
    """Requests to a teacher's server. Nothing here changes results."""

    concurrency: int = Field(8, ge=1)
    """Requests at a time, of each process."""
    timeout: float = Field(300.0, gt=0)
    """Seconds without a byte after which a request is sent again."""
    max_retries: int = Field(8, ge=0)
    """How often a request that failed is sent again before the run stops, to be resumed."""
    tokens: int = Field(4096, ge=1)
    """Tokens of a request, prompts included: rows are sent as soon as they make up one."""


class ServedModel(ModelSettings):
    """A model to load or build, or one behind a server that others started."""

    sources: ClassVar[tuple[str, ...]] = ("path", "build", "server")
    loaded: ClassVar[tuple[str, ...]] = ()

    server: Annotated[str | None, Incidental] = None
    """URL of a server such as `http://localhost:8000`, see the docs page on servers. A resumed run
    may give another one."""
    model: str | None = None
    """What the server calls the model."""
    key_env: Annotated[str | None, Incidental] = None
    """Environment variable that holds the server's key; null for none."""
    api: Literal["auto", "vllm", "sglang", "brim"] = "auto"
    """What the server speaks; `auto` asks it. SGLang's was never run."""
    requests: Annotated[RequestsConfig, Incidental] = RequestsConfig()
    """How it is asked."""
    tokenizer: TokenizerSettings | None = None
    """Tokenizer to train, where the model is built from scratch; beside `server` the one to load
    (`path`), null for that of the student's `path`."""

    @field_validator("server")
    @classmethod
    def _url_without_secrets(cls, url: str | None) -> str | None:
        if url is None:
            return None
        if problem := url_problem(url, "key_env"):
            raise ValueError(problem)
        return url.rstrip("/").removesuffix("/v1")

    @model_validator(mode="after")
    def _served_or_loaded(self) -> Self:
        if (self.server is None) != (self.model is None):
            raise ValueError("server and model go together; give both or none")
        names: tuple[str, ...] = ("key_env", "api", "requests")
        beside = "is for a model behind a server (server); leave it out"
        if self.server is not None:
            names = ("revision", "trust_remote_code", "dtype", *self.loaded)
            beside = "is for a model in this process; leave it out beside server"
        for name in names:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} {beside}")
        return self

    @model_validator(mode="after")
    def _tokenizer_where_none_is_loaded(self) -> Self:
        if self.server is None and (self.build is None) != (self.tokenizer is None):
            raise ValueError(
                "a teacher from scratch (build) needs a tokenizer, a loaded one has it"
            )
        if self.tokenizer and (self.server is None) != (self.tokenizer.path is None):
            raise ValueError(
                "tokenizer.path is for a model behind a server (server), which needs it; one from "
                "scratch (build) has its tokenizer trained"
            )
        return self
