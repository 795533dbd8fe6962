"""`brim serve` in a thread of the tests, a client for it, and a question that takes time."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from brim.models import LanguageModel
from brim.serve.app import Service
from brim.serve.batching import Row, Worker
from brim.serve.checks import bind
from brim.serve.run import identify, make_server
from brim.serve.settings import ServeConfig

_OPENER = build_opener(ProxyHandler({}))


def ask(
    url: str,
    body: Any = None,
    *,
    key: str | None = None,
    content_type: str = "application/json",
    timeout: float = 60,
) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Return status, body and headers of a GET, or of a POST of JSON or bytes."""
    headers = {"Content-Type": content_type} if body is not None else {}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    try:
        with _OPENER.open(Request(url, data, headers), timeout=timeout) as answer:
            return answer.status, json.load(answer), dict(answer.headers)
    except HTTPError as error:
        with error:
            return error.code, json.load(error), dict(error.headers)


@dataclass
class Served:
    """A server; `stopping` has it refuse requests as one that was told to stop."""

    model: LanguageModel
    worker: Worker
    url: str = ""
    key: str | None = None
    stopping: bool = False

    def post(self, path: str, **body: Any) -> tuple[int, dict[str, Any]]:
        status, answer, _ = ask(f"{self.url}{path}", {"model": "tiny", **body}, key=self.key)
        return status, answer

    def refused(self, path: str, **body: Any) -> tuple[int, str]:
        """Status and message of a request that is not answered."""
        status, answer = self.post(path, **body)
        error = answer["error"]
        assert error["code"] == status >= 400
        assert "\n" not in error["message"]
        return status, error["message"]

    def score(self, prompts: list, completions: list, **body: Any) -> list[dict[str, Any]]:
        status, answer = self.post("/v1/score", prompts=prompts, completions=completions, **body)
        assert status == 200, answer
        return answer["rows"]

    def complete(self, prompt: list, **body: Any) -> list[dict[str, Any]]:
        given = {"temperature": 0, "return_token_ids": True, **body}
        status, answer = self.post("/v1/completions", prompt=prompt, **given)
        assert status == 200, answer
        return answer["choices"]


@contextmanager
def serving(model: LanguageModel, *, key: str | None = None, **settings: Any) -> Iterator[Served]:
    config = ServeConfig(model="folder", name="tiny", **settings)
    worker = Worker(model, batch_tokens=config.batch_tokens, max_jobs=config.limits.queue)
    served = Served(model, worker, key=key)
    service = Service(
        model,
        worker,
        config,
        key=key,
        identity=identify(model, config),
        stopping=lambda: served.stopping,
    )
    listener = bind("127.0.0.1", 0)
    listener.listen(16)
    served.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = make_server(service)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    with worker:
        thread.start()
        try:
            yield served
        finally:
            server.should_exit = True
            thread.join()
            listener.close()


@dataclass(eq=False)
class Gate:
    """A question that keeps the worker busy until it is opened."""

    reached: threading.Event = field(default_factory=threading.Event)
    opened: threading.Event = field(default_factory=threading.Event)
    then: Callable[[], None] = lambda: None

    def room(self, row: Row) -> int:
        return 1

    def overhead(self, batch_tokens: int) -> int | None:
        return None

    def answer(self, model: LanguageModel, rows: list[Row]) -> list[int]:
        self.reached.set()
        self.opened.wait(60)
        self.then()
        return [len(row.prompt) for row in rows]
