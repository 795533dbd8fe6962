"""What is served, where, and to whom: the settings of `brim serve`, without torch."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Literal, Self

from pydantic import Field, model_validator

from brim.config.loading import Config
from brim.models.settings import Quantization


class Limits(Config):
    """What a request may ask for; one that asks for more is refused, not cut."""

    queue: int = Field(64, ge=1)
    """Requests that wait or are under way; further ones are answered with status 429."""
    body: int = Field(16 * 2**20, ge=1)
    """Bytes of a request."""
    rows: int = Field(1024, ge=1)
    """Prompts of a request."""
    tokens: int = Field(32768, ge=1)
    """Tokens of a row, its prompt included."""
    logprobs: int = Field(20, ge=0)
    """Tokens that `logprobs` and `prompt_logprobs` name at each place."""


class ServeConfig(Config):
    """A model, and the address that it answers at."""

    model: str
    """A run directory, whose best checkpoint is served, or a model's folder or hub name."""
    name: str | None = None
    """As requests call it; null for `model` as it is given."""
    host: str = "127.0.0.1"
    """Address to listen at; by default this machine alone can connect."""
    port: int = Field(8472, ge=0, le=65535)
    """Port to listen at; 0 for any that is free."""
    key_env: str | None = None
    """Environment variable with the key that requests must carry; needed beyond this machine."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights."""
    quantization: Quantization | None = None
    """Fewer bits a weight in linear layers, `torchao` or `bitsandbytes`."""
    device: str | None = None
    """Such as `cuda:1`; null for the first accelerator, or the CPU."""
    batch_tokens: int = Field(8192, ge=1)
    """Tokens, padding included, that pass the model at once; a longer row passes alone."""
    limits: Limits = Limits()
    """What is refused."""

    @model_validator(mode="after")
    def _key_beyond_this_machine(self) -> Self:
        if self.key_env is None and not is_loopback(self.host):
            raise ValueError(
                f"key_env: host {self.host} is open to other machines; name an environment "
                "variable that holds a key, or listen at 127.0.0.1"
            )
        return self

    @property
    def served_name(self) -> str:
        """The model as requests call it."""
        return self.name or self.model


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine can connect to an address."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
