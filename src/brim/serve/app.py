"""The routes: who may ask, what is refused, and how answers are waited for."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from http import HTTPStatus
from queue import Full
from typing import Any, TypeVar

import torch
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from brim.config.loading import Config, make_config
from brim.errors import BrimError, ConfigError, ModelError
from brim.models import Decoding, LanguageModel
from brim.seeding import derive_seed
from brim.serve.answers import completion_answer, score_answer, scored_row
from brim.serve.batching import Question, Row, Worker
from brim.serve.requests import CompletionRequest, ScoreRequest, TokenizeRequest
from brim.serve.scoring import Score, Text, Write
from brim.serve.settings import Limits, ServeConfig

RETRY_AFTER_SECONDS = 1

_ConfigT = TypeVar("_ConfigT", bound=Config)
_Handler = Callable[[Request], Awaitable[Response]]


@dataclass
class RefusedError(Exception):
    """A request that is not answered, with an HTTP status and one line."""

    status: int
    message: str


# Errors that a client can do something about; others are bugs, which uvicorn logs.
EXPLAINED = (
    RefusedError,
    BrimError,
    HTTPException,
    ClientDisconnect,
    Full,
    torch.OutOfMemoryError,
)


class Service:
    """The handlers of a model's routes.

    Args:
        model: which the worker owns; here its tokenizer is used, and what it says of itself.
        worker: answers.
        settings: of the server.
        key: that requests must carry; None for none.
        identity: what identifies the weights, see `describe_model`.
        stopping: whether new requests are refused.
    """

    def __init__(
        self,
        model: LanguageModel,
        worker: Worker,
        settings: ServeConfig,
        *,
        key: str | None,
        identity: Mapping[str, Any],
        stopping: Callable[[], bool],
    ) -> None:
        self._model, self._worker, self._settings = model, worker, settings
        self._limits: Limits = settings.limits
        self._name = settings.served_name
        self._authorization = None if key is None else f"Bearer {key}".encode()
        self._identity, self._stopping = identity, stopping
        self._num_rows = model.model.get_input_embeddings().num_embeddings
        never = {*model.excluded_rows, *model.encoder.unshared}
        self._writable = frozenset(model.tokenizer.get_vocab().values()) - never

    def app(self) -> Starlette:
        """Return the ASGI application."""
        routes: list[tuple[str, str, _Handler]] = [
            ("GET", "/v1/models", self.models),
            ("POST", "/tokenize", self.tokenize),
            ("POST", "/v1/score", self.score),
            ("POST", "/v1/completions", self.complete),
        ]
        return Starlette(
            routes=[
                Route("/health", self.health, methods=["GET"]),
                *(Route(path, self._guarded(handler), methods=[m]) for m, path, handler in routes),
            ],
            exception_handlers=dict.fromkeys(EXPLAINED, _explain),
        )

    async def health(self, request: Request) -> Response:
        """Say that the server is there; to anyone who can connect."""
        return JSONResponse({"status": "ok"})

    async def models(self, request: Request) -> Response:
        """Say which model is served."""
        return JSONResponse({"object": "list", "data": [self._identity]})

    async def tokenize(self, request: Request) -> Response:
        """Tokenize a text by the model's tokenizer."""
        asked = await self._read(request, TokenizeRequest)
        special = asked.add_special_tokens
        ids = self._model.tokenizer(asked.prompt, add_special_tokens=special, verbose=False)
        tokens = list(ids.input_ids)
        limit = self._model.num_positions
        return JSONResponse({"tokens": tokens, "count": len(tokens), "max_model_len": limit})

    async def score(self, request: Request) -> Response:
        """Value the tokens of completions."""
        asked = await self._read(request, ScoreRequest)
        excluded = frozenset(asked.excluded)
        rows = [Row(*pair) for pair in zip(asked.prompts, asked.completions, strict=True)]
        forced = len(self._model.rules.forced_start)
        self._check_rows(rows, [len(row.completion) + asked.bootstrap + forced for row in rows])
        self._check_written("completions", [row.completion for row in rows], excluded)
        question = Score(excluded & self._writable, after=asked.bootstrap)
        numbers = await self._answer(request, question, rows)
        return JSONResponse(score_answer(asked, self._name, numbers))

    async def complete(self, request: Request) -> Response:
        """Continue prompts."""
        asked = await self._read(request, CompletionRequest)
        question = self._writing(asked)
        rows = [
            Row(prompt, seed=derive_seed(asked.seed or 0, "generate", i))
            for i, prompt in enumerate(asked.prompt)
        ]
        self._check_rows(rows, [asked.max_tokens] * len(rows))
        if asked.prompt_logprobs is not None:
            if self._model.is_encoder_decoder:
                raise RefusedError(
                    400,
                    "prompt_logprobs: an encoder-decoder does not write prompts; ask /v1/score for "
                    "the numbers of completions",
                )
            self._check_written("prompt", [row.prompt[1:] for row in rows], frozenset())
        texts: list[Text] = await self._answer(request, question, rows)
        numbers: list[Any] = [None] * len(rows)
        top = [n for n in (asked.logprobs, asked.prompt_logprobs) if n is not None]
        if top:
            read = [scored_row(asked, row, text) for row, text in zip(rows, texts, strict=True)]
            numbers = await self._answer(request, Score(top=max(top)), read)
        answer = completion_answer(self._model, asked, self._name, rows, texts, numbers)
        return JSONResponse(answer)

    def _writing(self, asked: CompletionRequest) -> Write:
        """What is asked of each prompt."""
        try:
            excluded = asked.excluded
        except ValueError as error:
            raise RefusedError(400, str(error)) from None
        self._check_left(excluded)
        for name in ("logprobs", "prompt_logprobs"):
            if (getattr(asked, name) or 0) > self._limits.logprobs:
                raise RefusedError(
                    400, f"{name}: at most {self._limits.logprobs} here (limits.logprobs)"
                )
        ends = frozenset(self._model.eos_token_ids)
        stops = ends if asked.stop_token_ids is None else frozenset(asked.stop_token_ids)
        if not ends <= stops:
            raise RefusedError(
                400,
                f"stop_token_ids: must hold the tokens that end this model's texts, {sorted(ends)}",
            )
        sampling = asked.temperature > 0
        decoding = Decoding(
            strategy="sampling" if sampling else "greedy",
            temperature=asked.temperature or 1.0,
            top_k=asked.top_k if sampling and (asked.top_k or 0) > 0 else None,
            top_p=asked.top_p if sampling else None,
            max_tokens=asked.max_tokens,
            batch_tokens=self._settings.batch_tokens,
        )
        return Write(decoding, excluded & self._writable, stops - ends)

    def _check_rows(self, rows: Sequence[Row], rooms: Sequence[int]) -> None:
        """Refuse rows that are too many, too long or not of this model; rooms are in tokens."""
        if len(rows) > self._limits.rows:
            raise RefusedError(
                413, f"{len(rows)} rows, where {self._limits.rows} are possible (limits.rows)"
            )
        for i, (row, room) in enumerate(zip(rows, rooms, strict=True)):
            if len(row.prompt) + room > self._limits.tokens:
                raise RefusedError(
                    413,
                    f"row {i}: {len(row.prompt) + room} tokens, where {self._limits.tokens} are "
                    "possible (limits.tokens)",
                )
            self._model.check_room(len(row.prompt), room)
            if max(row.prompt) >= self._num_rows:
                raise RefusedError(
                    400,
                    f"row {i} of the prompts: no token {max(row.prompt)}; the model has "
                    f"{self._num_rows}",
                )

    def _check_written(
        self, name: str, rows: Sequence[Sequence[int]], excluded: frozenset[int]
    ) -> None:
        """Refuse tokens that the policy does not write: they have no logit."""
        writable = self._check_left(excluded)
        for i, ids in enumerate(rows):
            unknown = set(ids) - writable
            if unknown:
                raise RefusedError(
                    400,
                    f"{name}: row {i} holds token {min(unknown)}, which is excluded or which this "
                    "model never writes",
                )

    def _check_left(self, excluded: frozenset[int]) -> frozenset[int]:
        writable = self._writable - excluded if excluded else self._writable
        if not writable:
            raise RefusedError(400, "all tokens of the model are excluded; leave some")
        return writable

    async def _read(self, request: Request, kind: type[_ConfigT]) -> _ConfigT:
        """The body of a request, which is for the model that is served."""
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            raise RefusedError(400, "the Content-Type must be application/json")
        limit = self._limits.body
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > limit:
                raise RefusedError(413, f"more than {limit} bytes (limits.body); ask for less")
        try:
            text = body.decode("utf-8-sig")
            data = json.loads(text)
            if not isinstance(data, dict):
                raise RefusedError(400, "the body must be a JSON object")
            if "\\u" in text:
                _check_characters(data)
        except (ValueError, RecursionError):
            raise RefusedError(400, "the body is no JSON") from None
        ids = data.get("prompt")
        if isinstance(ids, list) and ids and not isinstance(ids[0], list):
            data["prompt"] = [ids]  # a single one
        asked = make_config(kind, data, "request")
        name = getattr(asked, "model", "")
        if name != self._name:
            raise RefusedError(404, f"model: {name!r} is not served here, {self._name!r} is")
        return asked

    async def _answer(self, request: Request, question: Question, rows: Sequence[Row]) -> Any:
        """The worker's answers; a request whose client has left is given up."""
        future: Future[Any] = self._worker.submit(question, rows)
        waiting = asyncio.wrap_future(future)
        gone = asyncio.create_task(_disconnected(request))
        try:
            await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise ClientDisconnect
            return waiting.result()
        except asyncio.CancelledError:  # a second signal: those that wait are given up
            raise RefusedError(503, "the server is stopping") from None
        finally:
            waiting.cancel()
            gone.cancel()

    def _guarded(self, handler: _Handler) -> _Handler:
        """The handler, for those who have the key while the server runs."""

        async def guarded(request: Request) -> Response:
            if self._stopping():
                raise RefusedError(503, "the server is stopping")
            given = request.headers.get("authorization", "").encode()
            wanted = self._authorization
            if wanted is not None and not hmac.compare_digest(given, wanted):
                raise RefusedError(401, "the key is missing or wrong (Authorization: Bearer KEY)")
            return await handler(request)

        return guarded


def _check_characters(data: Mapping[str, Any]) -> None:
    """Refuse half a surrogate pair, which JSON can spell and neither UTF-8 nor a tokenizer."""
    for name, value in data.items():
        try:
            json.dumps([name, value], ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise RefusedError(
                400, f"{name!a}: a text holds half a surrogate pair, such as \\ud800; remove it"
            ) from None


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _explain(request: Request, error: Exception) -> Response:
    """An error as JSON, with its status."""
    headers = {}
    match error:
        case RefusedError(status=status, message=message):
            pass
        case HTTPException(status_code=status, detail=message):
            pass
        case ConfigError() | ModelError():
            status, message = 400, str(error)
        case Full():
            status, message = 429, "too many requests wait (limits.queue); try again later"
            headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
        case ClientDisconnect():  # never read: its client has left
            status, message = 400, "the client has gone"
        case torch.OutOfMemoryError():
            status, message = 500, "not enough memory for a pass; lower batch_tokens of the server"
        case _:
            status, message = 500, str(error)
    kind = HTTPStatus(status).phrase
    content = {"error": {"message": message, "type": kind, "code": status}}
    return JSONResponse(content, status_code=status, headers=headers)
