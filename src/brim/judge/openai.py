"""Any server that speaks OpenAI's chat completions: vLLM, llama.cpp, OpenAI and many others."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from brim.errors import BrimError, ConfigError, RunError
from brim.judge.asking import RejectedError, TransientError
from brim.judge.store import Reply
from brim.support.http import read_key, retry_after, url_problem

if TYPE_CHECKING:
    import openai

OPENAI_URL = "https://api.openai.com/v1"
OPENAI_KEY = "OPENAI_API_KEY"

# What a request says by default: the likeliest reply, and room for two sentences.
REQUEST: Mapping[str, Any] = {"temperature": 0, "max_tokens": 512}

_OURS = ("model", "messages", "stream", "n")
_TOO_LONG = re.compile(r"context.{0,12}(length|size|window)|too long|maximum.{0,20}tokens", re.I)
_FILTERED = re.compile(r"content.?(filter|policy)|responsible.?ai", re.IGNORECASE)
_MENDS = {
    400: "see what it says; `request` adds a setting, or leaves one out by null",
    401: "the key is missing or wrong; check the variable that api_key_env names",
    402: "the account has no credit left",
    403: "the key may not use this model; check both",
    404: "check model and base_url, which mostly ends in /v1",
}


def openai_identity(model: str, base_url: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that a reply depends on, as JSON values without secrets.

    Args:
        model: as the server calls it.
        base_url: of the server: two servers may have two models of one name.
        request: changes of `REQUEST`; None leaves a setting out.

    Raises:
        ConfigError: a URL that is none or holds a secret; a setting that is not the user's.
    """
    for name in request:
        if name in _OURS:
            raise ConfigError(f"request: {name} is set by the judge itself; leave it out")
    if problem := url_problem(base_url, "api_key_env"):
        raise ConfigError(f"base_url: {problem}")
    changed = {**REQUEST, **request}
    return {
        "backend": "openai",
        "model": model,
        "base_url": base_url.rstrip("/"),
        "request": {name: value for name, value in changed.items() if value is not None},
    }


class OpenAIBackend:
    """A model behind a server, of `openai_identity`.

    The client's own retries are off: `ask_all` repeats requests, and counts each. `api_key_env` is
    None for a server that wants no key; `timeout` is in seconds of one request.

    Raises:
        ConfigError: there is no key in the variable, or the package `openai` is missing.
    """

    batched = False

    def __init__(
        self, identity: Mapping[str, Any], *, api_key_env: str | None, timeout: float
    ) -> None:
        self.identity = identity
        self._key = read_key(api_key_env, "api_key_env") or "none"
        try:
            import openai
        except ImportError:
            raise ConfigError(
                "backend: openai needs the package openai; pip install 'brim-distill[judge]'"
            ) from None
        self._openai = openai
        self._client = openai.AsyncOpenAI(
            api_key=self._key, base_url=identity["base_url"], timeout=timeout, max_retries=0
        )

    async def ask(self, prompts: Sequence[str]) -> list[Reply]:
        """Return the reply to the one prompt; raises as `Backend.ask` does."""
        (prompt,) = prompts
        started = time.monotonic()
        try:
            completion = await self._client.chat.completions.create(
                model=self.identity["model"],
                messages=[{"role": "user", "content": prompt}],
                extra_body=self.identity["request"],
            )
        except self._openai.APIStatusError as error:
            found = self._status(error)
            if isinstance(found, Reply):
                return [found]
            raise found from None
        except self._openai.APITimeoutError:
            raise TransientError("the request timed out") from None
        except self._openai.APIConnectionError as error:
            reason = self._hide(str(error.__cause__ or error))
            raise TransientError(f"no connection: {reason or 'closed'}") from None
        except (self._openai.OpenAIError, ValueError, TypeError):
            raise TransientError("the answer is no chat completion, or half of one") from None
        return [self._reply(completion, time.monotonic() - started)]

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def _reply(self, completion: Any, seconds: float) -> Reply:
        # Servers of all kinds answer here: nothing that the client's types promise need be there.
        choices = getattr(completion, "choices", None) or [None]
        message = getattr(choices[0], "message", None)
        if message is None:
            error = getattr(completion, "error", None)
            raise TransientError(self._hide(str(error))[:200] if error else "it has no choices")
        usage = getattr(completion, "usage", None)
        finish = getattr(choices[0], "finish_reason", None)
        refusal = getattr(message, "refusal", None)
        content = getattr(message, "content", None)
        return Reply(
            text=self._hide(content if isinstance(content, str) else refusal or ""),
            refused=bool(refusal) or finish == "content_filter",
            finish_reason=finish,
            prompt_tokens=getattr(usage, "prompt_tokens", None),
            completion_tokens=getattr(usage, "completion_tokens", None),
            seconds=seconds,
        )

    def _status(
        self, error: openai.APIStatusError
    ) -> Reply | TransientError | RejectedError | BrimError:
        """What an answer other than 200 comes to."""
        status, code = error.status_code, str(error.code or "")
        # A 401 tends to quote a part of the key.
        said = "" if status == 401 else self._hide(error.message).strip().split("\n")[0][:300]
        if status in (400, 413, 422) and _FILTERED.search(f"{code} {said}"):
            return Reply(text=said, refused=True, finish_reason=code or "content_filter")
        if status in (400, 413, 422) and _TOO_LONG.search(f"{code} {said}"):
            return RejectedError(f"too long for the judge: {said}")
        if code == "insufficient_quota":
            return RunError(f"the judge's account has no credit left: {said}")
        if status in (408, 409, 425, 429) or status >= 500:
            wait = retry_after(error.response.headers.get("retry-after"))
            return TransientError(f"status {status}: {said}", wait=wait)
        mend = _MENDS.get(status, "this will not mend by itself")
        return ConfigError(
            f"the judge's server answers {status}{f': {said}' if said else ''}: {mend}"
        )

    def _hide(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key != "none" else text
