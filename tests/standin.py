"""A server on loopback that answers as vLLM, SGLang or `brim serve` do, by a model in this process.

Each row is read alone, so that its numbers do not depend on what it is sent with.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from brim.examples import Example
from brim.models import LanguageModel
from brim.models.encoding import pad
from brim.types import Batch, Rollout


class StandIn:
    """The model and how the server behaves.

    Attributes:
        faults: what becomes of the next requests for text: `429`, `500`, `hang`, `reset`, `half`.
        requests: bodies of those that were answered.
        hidden: paths that it does not know.
    """

    def __init__(self, model: LanguageModel, kind: str = "vllm", key: str | None = None) -> None:
        self.model, self.kind, self.key = model, kind, key
        self.max_logprobs, self.max_model_len = 20, 256
        self.faults: list[str] = []
        self.requests: list[dict[str, Any]] = []
        self.hidden: set[str] = set()
        self.delay = 0.0
        self.url = ""
        self.lock = threading.Lock()

    # -- what it knows

    def card(self) -> dict[str, Any]:
        known = {"id": "tiny", "object": "model", "owned_by": self.kind, "root": "/models/tiny"}
        if self.kind == "brim":
            known |= {"encoder_decoder": self.model.is_encoder_decoder, "version": "1.0"}
        return known | {"max_model_len": self.max_model_len}

    @torch.no_grad()
    def logits(self, ids: list[int]) -> torch.Tensor:
        """(length, rows of the head), those without a token too."""
        return self.model.model(torch.tensor([ids])).logits[0].float()

    def write(self, ids: list[int], body: dict[str, Any]) -> tuple[list[int], int | None]:
        own, ids = [], list(ids)
        generator = torch.Generator().manual_seed(body.get("seed") or 0)
        for _ in range(body["max_tokens"]):
            logits = self.logits(ids)[-1]
            for token, bias in (body.get("logit_bias") or {}).items():
                logits[int(token)] += bias
            token = int(logits.argmax())
            if body["temperature"]:
                drawn = (logits / body["temperature"]).softmax(0)
                token = int(torch.multinomial(drawn, 1, generator=generator))
            own.append(token)
            ids.append(token)
            if token in body.get("stop_token_ids", ()):
                return own, token
        return own, None

    # -- what it answers

    def completions(self, body: dict[str, Any]) -> dict[str, Any]:
        prompts = body["prompt"]
        if isinstance(prompts, str):
            prompts = [self.tokenize(body)["tokens"]]
        return {"choices": [self.choice(i, ids, body) for i, ids in enumerate(prompts)][::-1]}

    def choice(self, index: int, ids: list[int], body: dict[str, Any]) -> dict[str, Any]:
        own, stop = self.write(ids, body)
        found = {"index": index, "token_ids": own, "stop_reason": stop, "prompt_token_ids": ids}
        if body.get("logprobs") or body.get("prompt_logprobs"):
            states = self.logits([*ids, *own]).log_softmax(1)
        if body.get("logprobs"):
            tops = states[len(ids) - 1 : len(ids) - 1 + len(own)]
            found["logprobs"] = {"top_logprobs": [named(top, body["logprobs"]) for top in tops]}
        if body.get("prompt_logprobs"):
            shown = body["prompt_logprobs"]
            found["prompt_logprobs"] = [
                None,
                *(entries(row, t, shown) for row, t in zip(states, ids[1:], strict=False)),
            ]
        return found

    def generate(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """SGLang's."""
        params, answers = body["sampling_params"], []
        for i, ids in enumerate(body["input_ids"]):
            own, _ = self.write(ids, {**params, "max_tokens": params["max_new_tokens"]})
            states = self.logits([*ids, *own]).log_softmax(1)
            pairs = list(zip(states, [*ids, *own][1:], strict=False))
            taken = [[float(row[token]), token, None] for row, token in pairs]
            meta: dict[str, Any] = {"output_token_logprobs": taken[len(ids) - 1 :]}
            if "top_logprobs_num" in body:
                start, shown = body["logprob_start_len"][i], body["top_logprobs_num"]
                tops = [[[v, t, None] for t, v in top_of(row, shown).items()] for row, _ in pairs]
                meta["input_token_logprobs"] = [[None, ids[0], None], *taken][start : len(ids)]
                meta["input_top_logprobs"] = [None, *tops][start : len(ids)]
                meta["output_top_logprobs"] = tops[len(ids) - 1 :]
            answers.append({"meta_info": meta})
        return answers

    def score(self, body: dict[str, Any]) -> dict[str, Any]:
        """`brim serve`'s."""
        self.model.exclude(i for i in body["excluded"] if i not in self.model.excluded_rows)
        rows = []
        for prompt, completion in zip(body["prompts"], body["completions"], strict=True):
            (ids, mask), (own, counts) = pad([prompt], 0, "right"), pad([completion], 0, "right")
            batch = Batch((Example(id="0", prompt=""),), ids, mask, (0,))
            rollout = Rollout(batch, own, counts, torch.tensor([True]))
            plain, mean, lse = (
                self.model.action_values(rollout, centering=c, bootstrap=body["bootstrap"])
                for c in ("none", "mean", "logsumexp")
            )
            row: dict[str, Any] = {"taken": plain.q_taken[0], "best": plain.q_max[0]}
            row["mean"] = plain.q_taken[0] - mean.q_taken[0]
            row["logsumexp"] = plain.q_taken[0] - plain.logprobs[0]
            row = {name: row[name].tolist() for name in body["values"]}
            if body["bootstrap"]:
                best = plain.bootstrap
                after = {"best": best, "mean": best - mean.bootstrap}
                after["logsumexp"] = best - lse.bootstrap
                row["after"] = {name: float(value) for name, value in after.items()}
            rows.append(row)
        return {"model": "tiny", "rows": rows}

    def tokenize(self, body: dict[str, Any]) -> dict[str, Any]:
        encoded = self.model.tokenizer(body["prompt"], add_special_tokens=False)
        return {"tokens": encoded.input_ids, "count": len(encoded.input_ids)}


def top_of(row: torch.Tensor, shown: int) -> dict[int, float]:
    top = row.topk(shown)
    return dict(zip(top.indices.tolist(), top.values.tolist(), strict=True))


def named(row: torch.Tensor, shown: int) -> dict[str, float]:
    return {f"token_id:{token}": value for token, value in top_of(row, shown).items()}


def entries(row: torch.Tensor, token: int, shown: int) -> dict[str, dict[str, Any]]:
    """The token of the prompt and the likeliest ones, as vLLM shows them."""
    both = {token: float(row[token])} | top_of(row, shown)
    return {str(t): {"logprob": v, "rank": int((row > v).sum()) + 1} for t, v in both.items()}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize, disable_nagle_algorithm = 2**16, True
    standin: StandIn

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        answers = {
            "/v1/models": {"object": "list", "data": [self.standin.card()]},
            "/version": {"version": "0.32.0"},
            "/health": {"status": "ok"},
        }
        self.answer(answers.get(self.path))

    def do_POST(self) -> None:
        if not self.standin.url:  # its connections stay open for a while
            return self.connection.close()
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        standin = self.standin
        functions = {
            "/v1/completions": standin.completions,
            "/generate": standin.generate,
            "/v1/score": standin.score,
            "/tokenize": standin.tokenize,
        }
        function = functions.get(self.path)
        if function is None or self.path in standin.hidden:
            return self.answer(None)
        if self.path != "/tokenize" and standin.faults:
            fault = standin.faults.pop(0)
            if fault == "429":
                return self.answer({"error": {"message": "full"}}, 429, {"Retry-After": "0"})
            if fault == "500":
                return self.answer({"error": "oops"}, 500)
            if fault == "hang":
                time.sleep(1.5)
            if fault == "reset":
                return self.connection.close()
            if fault == "half":
                return self.answer({"choices": [1, 2, 3]}, half=True)
        time.sleep(standin.delay)
        if body.get("prompt_logprobs", 0) > standin.max_logprobs:
            return self.answer({"error": {"message": "more logprobs than --max-logprobs"}}, 400)
        with standin.lock:
            answer = function(body)
            if self.path != "/tokenize":
                standin.requests.append(body)
        return self.answer(answer)

    def answer(
        self, found: Any, status: int = 200, headers: Any = None, half: bool = False
    ) -> None:
        key = self.standin.key
        if key is not None and self.headers.get("Authorization") != f"Bearer {key}":
            found, status = {"error": {"message": f"key {key[:4]}… is wrong"}}, 401
        elif found is None:
            found, status = {"error": {"message": "not found"}}, 404
        content = json.dumps(found).encode()
        try:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if half else content)
        except OSError:  # the client has gone
            pass
        if half:
            self.close_connection = True


@contextmanager
def serving(standin: StandIn, port: int = 0) -> Iterator[str]:
    """Serve while the block runs; gives the URL."""
    handler = type("Handler", (_Handler,), {"standin": standin})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    standin.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield standin.url
    finally:
        standin.url = ""
        server.shutdown()
        server.server_close()
        thread.join()
