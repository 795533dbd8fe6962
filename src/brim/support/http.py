"""What all who ask a server need: a URL without secrets, a key out of sight, when to ask again."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from brim.errors import ConfigError


def url_problem(url: str, key_setting: str) -> str | None:
    """Return why a URL cannot be used, or must not be kept; None where it is fine.

    Args:
        url: of a server.
        key_setting: the setting that names the variable with the key.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
        secret = bool(parts.username or parts.password or parts.query or parts.fragment)
    except ValueError:
        usable = secret = False
    if secret:
        return (
            "must not hold a user name, a password or a query, since it is written into the "
            f"results; put the key into an environment variable and name it by {key_setting}"
        )
    return None if usable else "is no URL such as http://localhost:8000"


def read_key(name: str | None, setting: str) -> str:
    """Return the key in an environment variable, never shown; empty where no variable is named.

    Args:
        name: of the variable.
        setting: that names it.

    Raises:
        ConfigError: the variable holds no key.
    """
    if name is None:
        return ""
    key = os.environ.get(name, "").strip()
    if not key:
        raise ConfigError(
            f"{setting}: the environment variable {name} is not set; put the key into it "
            "(it is never stored or shown)"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError(f"{setting}: what {name} holds is no key: it has other characters")
    return key


def retry_after(value: str | None) -> float | None:
    """Return the seconds to wait, of a header with seconds or an HTTP date; None without either."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            when = parsedate_to_datetime(value)
        except (ValueError, OverflowError):
            return None
        seconds = (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(seconds, 0.0) if seconds < float("inf") else None
