"""JSON over HTTP with a server that may be busy, slow, or gone for a while."""

from __future__ import annotations

import json
import random
import threading
from typing import Any
from urllib.parse import urlsplit

import httpx2

from brim.errors import AwayError, BrimError, ConfigError, ModelError
from brim.models.server_settings import RequestsConfig
from brim.support.http import read_key, retry_after

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds between two tries, doubled each time
# A server that asks for a longer pause than this is left to another start.
LONGEST_ASKED = 600.0

_TRANSIENT = (408, 409, 425, 429)
_MENDS = {
    401: "the key is missing or wrong; check the variable that teacher.key_env names",
    403: "the key may not use this model; check teacher.key_env and teacher.model",
    404: "check teacher.model and teacher.server",
    413: "lower teacher.requests.tokens, or raise the server's limit",
}
_SHOWN = 300  # characters of what a server says


class _TransientError(Exception):
    """No answer this time; `wait` is the pause in seconds that the server asks for."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class HTTPClient:
    """Requests to one server, from any thread.

    What may pass is tried again, with longer and longer pauses: no connection, a time limit, half
    of an answer, and the statuses 408, 409, 425, 429 and 5xx, whose Retry-After is heeded.

    Args:
        url: of the server, without the path.
        key_env: the environment variable with the key, which is sent as a bearer token and never
            shown; None for no key.
        settings: limits.

    Raises:
        ConfigError: the variable holds no key.
    """

    def __init__(self, url: str, key_env: str | None, settings: RequestsConfig) -> None:
        self.url, self._settings, self._key = url, settings, read_key(key_env, "teacher.key_env")
        self._closed = threading.Event()
        self._jitter = random.Random()
        limits = httpx2.Limits(
            max_connections=settings.concurrency, max_keepalive_connections=settings.concurrency
        )
        # What the environment says of proxies is not for a server on this machine.
        local = urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")
        self._client = httpx2.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=settings.timeout,
            limits=limits,
            trust_env=not local,
        )

    def get(self, path: str) -> Any:
        """Return the JSON at a path; see `post`."""
        return self._ask("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Return the JSON that answers this one.

        Raises:
            AwayError: the server stays away, or the client was closed.
            ConfigError: it refuses the key, or knows no such model or path.
            ModelError: it refuses the request.
        """
        return self._ask("POST", path, body)

    def close(self) -> None:
        """Close the connections; requests that wait for another try fail at once."""
        self._closed.set()
        self._client.close()

    def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        tries = self._settings.max_retries + 1
        for number in range(tries):
            try:
                return self._ask_once(method, path, body)
            except _TransientError as error:
                problem = error
            if number + 1 == tries:
                break
            wait = min(FIRST_WAIT * 2**number, LONGEST_WAIT) * self._jitter.uniform(0.5, 1.0)
            if problem.wait is not None:
                if problem.wait > LONGEST_ASKED:
                    break
                wait = max(wait, problem.wait)
            if self._closed.wait(wait):
                raise AwayError(f"{self.url}: the connection was closed") from None
        raise AwayError(
            f"teacher.server: {self.url} gives no answer ({problem}), tried {number + 1} times; "
            "start the server again: the same command resumes from the last step that is saved"
        )

    def _ask_once(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        try:
            answer = self._client.request(method, self.url + path, json=body)
        except httpx2.TimeoutException:
            raise _TransientError("the time limit of a request passed") from None
        except httpx2.UnsupportedProtocol as error:
            raise ConfigError(f"teacher.server: {self.url}: {self._hide(str(error))}") from None
        except httpx2.TransportError as error:
            raise _TransientError(
                f"no connection: {self._hide(str(error)) or type(error).__name__}"
            ) from None
        status = answer.status_code
        if status == 200:
            try:
                return json.loads(answer.content)
            except ValueError:
                raise _TransientError("its answer is no JSON, or half of it") from None
        said = self._said(answer)
        if status in _TRANSIENT or status >= 500:
            raise _TransientError(
                f"status {status}{said}", retry_after(answer.headers.get("retry-after"))
            )
        raise self._final(status, said, path)

    def _final(self, status: int, said: str, path: str) -> BrimError:
        """What an answer comes to that will not change by itself."""
        where = f"teacher.server: {self.url}{path} answers {status}"
        if status in _MENDS:
            return ConfigError(f"{where}{said}; {_MENDS[status]}")
        return ModelError(f"{where}{said}; see what it says, and how the server was started")

    def _said(self, answer: httpx2.Response) -> str:
        if answer.status_code == 401:  # it tends to quote a part of the key
            return ""
        try:
            found = json.loads(answer.content)
            error = found.get("error", found)
            text = error.get("message", error) if isinstance(error, dict) else error
        except (ValueError, AttributeError):
            text = answer.text
        line = " ".join(self._hide(str(text)).split())[:_SHOWN]
        return f" ({line})" if line else ""

    def _hide(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text
