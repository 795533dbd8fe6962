"""Who may ask, what is refused, and that one request's trouble is not another's."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
from serving import ask, serving
from tiny import tiny_language_model

from brim.errors import NonFiniteError
from brim.models.loading import fingerprint_model
from brim.serve.batching import Row, Worker
from brim.serve.scoring import Score

KEY = "a-key-of-the-tests"
SCORE = {"prompts": [[3, 4]], "completions": [[5, 6]]}


def test_health_and_model(servers):
    served = servers("t5")
    assert ask(f"{served.url}/health")[:2] == (200, {"status": "ok"})
    status, answer, _ = ask(f"{served.url}/v1/models")
    assert status == 200
    (model,) = answer["data"]
    assert model["id"] == "tiny"
    assert model["owned_by"] == "brim"
    assert model["sha256"] == fingerprint_model(tiny_language_model("t5"))
    assert model["encoder_decoder"] is True
    assert model["max_model_len"] is None
    (decoder,) = ask(f"{servers('llama').url}/v1/models")[1]["data"]
    assert (decoder["encoder_decoder"], decoder["max_model_len"]) == (False, 64)


@pytest.mark.parametrize("special", [True, False])
def test_text_is_tokenized_by_the_models_tokenizer(servers, special):
    served = servers("t5")
    _, answer = served.post("/tokenize", prompt="w3 w9 what", add_special_tokens=special)
    ids = served.model.tokenizer("w3 w9 what", add_special_tokens=special).input_ids
    assert answer == {"tokens": ids, "count": len(ids), "max_model_len": None}
    assert len(ids) == 3 + special


def test_a_key_is_asked_for(serve):
    served = serve(key=KEY)
    paths = {"/v1/models": None, "/v1/score": {"model": "tiny", **SCORE}}
    for path, body in paths.items():
        for wrong in (None, "another", KEY[:-1], ""):
            status, answer, _ = ask(f"{served.url}{path}", body, key=wrong)
            assert status == 401
            assert KEY not in json.dumps(answer)
        assert ask(f"{served.url}{path}", body, key=KEY)[0] == 200
    assert ask(f"{served.url}/health")[0] == 200


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/v1/score", {**SCORE, "model": "other"}, 404, "'tiny'"),
        ("/v1/nothing", SCORE, 404, "Not Found"),
        ("/v1/models", SCORE, 405, "Method"),
        ("/v1/score", {**SCORE, "completions": [[5], [6]]}, 400, "completions"),
        ("/v1/score", {**SCORE, "prompts": []}, 400, "prompts"),
        ("/v1/score", {**SCORE, "completions": [[]]}, 400, "completions"),
        ("/v1/score", {**SCORE, "completions": [[5, True]]}, 400, "completions.0.1"),
        ("/v1/score", {**SCORE, "completions": [[5, -1]]}, 400, "completions.0.1"),
        ("/v1/score", {**SCORE, "completions": [[5, 44]]}, 400, "token 44"),
        ("/v1/score", {**SCORE, "excluded": [5]}, 400, "token 5"),
        ("/v1/score", {**SCORE, "prompts": [[3, 48]]}, 400, "48"),
        ("/v1/score", {**SCORE, "values": ["worst"]}, 400, "worst"),
        ("/v1/score", {**SCORE, "bootstraps": True}, 400, "bootstrap?"),
        ("/v1/score", {**SCORE, "prompts": [[3] * 64]}, 400, "positions"),
        ("/v1/score", {"prompts": [[3]] * 4, "completions": [[5]] * 4}, 413, "limits.rows"),
        ("/v1/score", {**SCORE, "prompts": [[3] * 200]}, 413, "limits.tokens"),
        ("/v1/score", {**SCORE, "prompts": [[3] * 2000]}, 413, "limits.body"),
        ("/tokenize", {"prompt": 3}, 400, "prompt"),
        ("/tokenize", {"prompt": "a\ud800"}, 400, "'prompt': a text holds half a surrogate"),
        ("/tokenize", {"prompt": "a", "model": "\udfff"}, 400, "'model'"),
        ("/tokenize", {"prompt": "a", "\ud800": 1}, 400, r"'\ud800'"),
        ("/v1/score", {**SCORE, "values": ["\ud800"]}, 400, "'values'"),
        ("/v1/completions", {"prompt": [[3]], "logit_bias": {"\ud800": 1}}, 400, "'logit_bias'"),
    ],
)
def test_wrong_and_large_requests_are_refused_on_one_line(small, path, body, status, says):
    found, message = small.refused(path, **body)
    assert found == status
    assert says in message
    assert small.score(**SCORE)  # and it still answers


@pytest.fixture(scope="module")
def small():
    limits = {"rows": 3, "tokens": 100, "body": 2000}
    with serving(tiny_language_model("llama").eval(), limits=limits) as served:
        yield served


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1]",
        b"\xff\xfe",
        b'{"model": "\xed\xa0\x80"}',
        b'{"model": NaN}',
        b"[" * 1500,
        b'"' + b"x" * 50 + b'"',
    ],
)
def test_what_is_no_request_is_refused(small, body):
    status, answer, _ = ask(f"{small.url}/v1/score", body)
    assert status == 400
    assert "\n" not in answer["error"]["message"]


def test_a_web_page_cannot_ask(small):
    """What a browser sends to another site without asking first has no such content type."""
    body = json.dumps({"model": "tiny", **SCORE}).encode()
    status, answer, _ = ask(f"{small.url}/v1/score", body, content_type="text/plain")
    assert status == 400
    assert "application/json" in answer["error"]["message"]


def test_a_server_that_stops_refuses(serve):
    served = serve()
    served.stopping = True
    assert served.refused("/v1/score", **SCORE)[0] == 503


def test_a_full_queue_says_when_to_come_back(serve, gate):
    served = serve(limits={"queue": 2})
    waiting = served.worker.submit(gate, [Row([3])])
    with ThreadPoolExecutor() as pool:
        second = pool.submit(served.score, **SCORE)
        until(lambda: served.worker.num_jobs == 2)
        status, _, headers = ask(f"{served.url}/v1/score", {"model": "tiny", **SCORE})
        assert status == 429
        assert int(headers["retry-after"]) >= 1
        gate.opened.set()
        assert len(second.result()) == 1
    assert waiting.result() == [1]
    assert len(served.score(**SCORE)) == 1


def test_who_leaves_gives_up_the_place(serve, gate):
    served = serve()
    served.worker.submit(gate, [Row([3])])
    address = urlsplit(served.url)
    body = json.dumps({"model": "tiny", **SCORE})
    with socket.create_connection((address.hostname, address.port)) as client:
        client.sendall(
            f"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        until(lambda: served.worker.num_jobs == 2)
    until(lambda: served.worker.num_jobs == 1)


def test_half_a_request_is_no_trouble(servers, caplog):
    served = servers("llama")
    address = urlsplit(served.url)
    with socket.create_connection((address.hostname, address.port)) as client:
        client.sendall(
            b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 99\r\n\r\n{"
        )
    assert len(served.score(**SCORE)) == 1
    assert caplog.records == []


def until(condition) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_trouble_belongs_to_those_who_asked(gate):
    def fail() -> None:
        raise NonFiniteError("not finite")

    gate.then = fail
    with Worker(tiny_language_model("llama").eval(), batch_tokens=99, max_jobs=9) as worker:
        bad = worker.submit(gate, [Row([3])])
        good = worker.submit(Score(), [Row([3], [4])])
        gate.opened.set()
        with pytest.raises(NonFiniteError):
            bad.result(60)
        assert len(good.result(60)[0].values) == 1


def test_closing_ends_what_waits(gate):
    gate.opened.set()
    worker = Worker(tiny_language_model("llama").eval(), batch_tokens=99, max_jobs=9)
    futures = [worker.submit(Score(), [Row([3], [4])]), worker.submit(gate, [Row([3, 4])])]
    with worker:
        pass
    assert all(future.done() for future in futures)
    assert futures[1].result() == [2]


def test_weights_that_are_no_numbers_are_said(serve):
    served = serve("t5")
    served.model.model.get_output_embeddings().weight.data[5] = float("nan")
    status, message = served.refused("/v1/score", **SCORE)
    assert status == 500
    assert "not finite" in message


def test_many_clients_at_once_get_their_own_answers(servers):
    served = servers("t5")
    alone = {n: served.score([[3 + n] * n], [[5, 6 + n]]) for n in range(1, 9)}
    with ThreadPoolExecutor(8) as pool:
        found = {n: pool.submit(served.score, [[3 + n] * n], [[5, 6 + n]]) for n in alone}
    for n, future in found.items():
        for name in ("taken", "best", "logsumexp", "mean"):
            wanted = pytest.approx(alone[n][0][name], abs=1e-4)
            assert future.result()[0][name] == wanted


def test_a_character_may_be_spelled_as_a_surrogate_pair(servers):
    served = servers("llama")
    body = b'{"model": "tiny", "prompt": "w3 \\ud83d\\ude00 w4"}'
    assert ask(f"{served.url}/tokenize", body)[1]["tokens"] == [3, 2, 4]
