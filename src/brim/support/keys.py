"""Keys of servers, which are read from the environment and never stored or shown."""

from __future__ import annotations

import os

from brim.errors import ConfigError


def read_key(name: str, *, setting: str) -> str:
    """Return the key in the environment variable `name`.

    Args:
        name: of the variable.
        setting: that names it, for messages.

    Raises:
        ConfigError: the variable is not set, or holds what no header can carry.
    """
    key = os.environ.get(name, "").strip()
    if not key:
        raise ConfigError(
            f"{setting}: the environment variable {name} is not set; put the key into it "
            "(it is never stored or shown)"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError(f"{setting}: what {name} holds is no key: it has other characters")
    return key
