"""Our side of a real connection, against a server that does all that servers do."""

import email.utils
import logging
import random
import time
import traceback

import pytest
from judge_server import KEY, KEY_NAME, Fault, always_a, preferred

from brim.errors import ConfigError, RunError
from brim.judge import Limits
from brim.judge.asking import MAX_FAILURES_IN_A_ROW, Question, ask_all
from brim.judge.openai import OpenAIBackend, openai_identity, retry_after
from brim.judge.prompts import parse_verdict
from brim.judge.store import Store

QUICK = Limits(concurrency=4, backoff=0.01, max_backoff=0.05, timeout=5, max_retries=4)


def questions(num, prefix="prompt"):
    return {
        f"key {i}": Question(
            f"key {i}",
            lambda i=i: f"{prefix} {i}",
            lambda reply: parse_verdict(reply.text, noun="summary", refused=reply.refused),
        )
        for i in range(num)
    }


@pytest.fixture
def ask(server, tmp_path):
    """`ask(num)` asks so many questions; gives the outcome and the stored replies."""
    server.judge = always_a

    def run(num=6, limits=QUICK, key_name=KEY_NAME, request=None, said=None):
        identity = openai_identity("judge", server.url, request or {})
        asked = questions(num)
        with Store(tmp_path / "s.sqlite") as store:
            backend = OpenAIBackend(identity, api_key_env=key_name, timeout=limits.timeout)
            say = (lambda text: None) if said is None else said.append
            outcome = ask_all(asked, backend, store, limits, say=say)
            return outcome, store.get(asked)

    return run


def test_every_question_is_asked_once(ask, server):
    outcome, replies = ask(20)
    assert not outcome.failed
    assert outcome.num_requests == server.num_requests == 20
    assert set(server.tries.values()) == {1}
    reply = replies["key 0"]
    assert reply.text == always_a("")
    assert (reply.prompt_tokens, reply.completion_tokens) == (100, 10)
    assert reply.finish_reason == "stop"
    assert server.keys == {f"Bearer {KEY}"}
    outcome, again = ask(20)
    assert (outcome.num_requests, server.num_requests) == (0, 20)
    assert again == replies


def test_a_request_says_what_was_asked_for(ask, server):
    ask(1, request={"max_tokens": None, "max_completion_tokens": 99, "seed": 3})
    (body,) = server.bodies
    assert body == {
        "model": "judge",
        "messages": [{"role": "user", "content": "prompt 0"}],
        "temperature": 0,
        "max_completion_tokens": 99,
        "seed": 3,
    }


FAULTS = {
    "429": Fault(429, body='{"error": {"message": "slow down"}}'),
    "500": Fault(500, body="<html>oops</html>"),
    "503": Fault(503),
    "408": Fault(408),
    "hang": Fault(hang=30.0),
    "a byte now and then": Fault(trickle=True),
    "reset": Fault(reset=True),
    "half a JSON": Fault(cut=True),
    "no JSON": Fault(body="hello", headers={"Content-Type": "text/plain"}),
    "empty choices": Fault(body='{"id": "1", "object": "chat.completion", "choices": []}'),
    "null choices": Fault(body='{"choices": null, "error": {"message": "overloaded"}}'),
    "no message": Fault(body='{"choices": [{"index": 0}]}'),
    "a list": Fault(body="[]"),
    "a number": Fault(body="3"),
}


def test_what_may_mend_is_tried_again(ask, server):
    faults = list(FAULTS.values())
    server.fault = lambda prompt, n: faults[int(prompt.split()[1])] if n <= 2 else None
    outcome, replies = ask(len(faults), Limits(concurrency=len(faults), backoff=0.01, timeout=2))
    assert not outcome.failed
    assert len(replies) == len(faults)
    assert set(server.tries.values()) == {3}
    assert set(server.answered.values()) == {1}


def test_all_faults_at_once(ask, server):
    draw = random.Random(0)
    faults = [fault for fault in FAULTS.values() if not (fault.hang or fault.trickle)]
    server.fault = lambda prompt, n: draw.choice(faults) if draw.random() < 0.5 else None
    outcome, replies = ask(40, Limits(concurrency=8, backoff=0.001, max_backoff=0.01, timeout=5))
    assert len(replies) + len(outcome.failed) == 40
    assert sum(server.answered.values()) == len(replies)
    assert set(server.answered.values()) == {1}
    server.fault = lambda prompt, n: None
    outcome, replies = ask(40)
    assert len(replies) == sum(server.answered.values()) == 40
    assert set(server.answered.values()) == {1}


def test_what_does_not_mend_is_failed_after_its_retries(ask, server):
    server.fault = lambda prompt, n: FAULTS["503"] if prompt == "prompt 1" else None
    outcome, replies = ask(4)
    assert set(outcome.failed) == {"key 1"}
    assert "503" in outcome.failed["key 1"]
    assert server.tries["prompt 1"] == QUICK.max_retries + 1
    assert set(replies) == {"key 0", "key 2", "key 3"}


@pytest.mark.parametrize("name", ["hang", "a byte now and then"])
def test_the_time_limit_is_of_the_whole_request(ask, server, name):
    server.fault = lambda prompt, n: FAULTS[name]
    started = time.monotonic()
    outcome, _ = ask(1, Limits(timeout=0.2, max_retries=1, backoff=0.01))
    assert time.monotonic() - started < 5
    assert outcome.failed["key 0"] in ("no answer within 0.2 s", "the request timed out")


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured_by_all(ask, server, form):
    wait = 0.5 if form == "seconds" else 2.0

    def fault(prompt, n):
        if prompt == "prompt 0" and n == 1:
            when = email.utils.formatdate(time.time() + wait, usegmt=True)  # whole seconds
            return Fault(429, {"Retry-After": str(wait) if form == "seconds" else when})
        return None

    server.fault = fault
    ask(2, Limits(concurrency=1, backoff=0.01))
    least = wait if form == "seconds" else wait - 1
    assert server.times[1] - server.times[0] >= least - 0.02
    assert server.num_requests == 3


def test_a_server_that_wants_hours_is_left_alone(ask, server):
    server.fault = lambda prompt, n: Fault(429, {"Retry-After": "7200"})
    with pytest.raises(RunError, match="left alone for 7200 s"):
        ask(4)
    assert server.num_requests <= QUICK.concurrency


def test_retry_after_is_read_in_both_forms():
    assert retry_after(None) is None
    assert retry_after("2.5") == 2.5
    assert retry_after("-3") == 0
    far = "Wed, 21 Oct 2015 07:2822200222+0000"
    for nonsense in ("soon", "nan", "inf", "", "Wed, 99 Foo 2026", far):
        assert retry_after(nonsense) is None
    ahead = retry_after(email.utils.formatdate(time.time() + 90, usegmt=True))
    assert 85 < ahead <= 90
    assert retry_after(email.utils.formatdate(time.time() - 90, usegmt=True)) == 0


WORDS = {400: "`request`", 401: "api_key_env", 403: "may not use", 404: "base_url"}


@pytest.mark.parametrize("status", WORDS)
def test_what_will_not_mend_stops_at_once_with_one_line(ask, server, status):
    server.fault = lambda prompt, n: Fault(status, body='{"error": {"message": "no\\nway"}}')
    with pytest.raises(ConfigError) as caught:
        ask(50)
    assert WORDS[status] in str(caught.value)
    assert str(status) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert set(server.tries.values()) == {1}
    assert server.num_requests <= QUICK.concurrency


def test_an_empty_account_stops_at_once(ask, server):
    body = '{"error": {"message": "pay", "code": "insufficient_quota"}}'
    server.fault = lambda prompt, n: Fault(429, body=body)
    with pytest.raises(RunError, match="no credit left"):
        ask(50)
    assert server.num_requests <= QUICK.concurrency


def test_answers_under_way_are_kept_when_others_stop_the_run(ask, server):
    def judge(prompt):
        time.sleep(0.2)
        return always_a(prompt)

    server.judge = judge
    server.fault = lambda prompt, n: Fault(404) if prompt == "prompt 3" else None
    with pytest.raises(ConfigError):
        ask(50)
    server.fault = lambda prompt, n: None
    ask(4)
    assert set(server.answered.values()) == {1}


def test_a_server_that_is_gone_is_not_asked_for_ever(ask, server):
    server.fault = lambda prompt, n: Fault(503)
    limits = Limits(concurrency=2, max_retries=1, backoff=0.001)
    with pytest.raises(RunError, match="start again when the server is well"):
        ask(200, limits)
    assert server.num_requests <= 2 * (MAX_FAILURES_IN_A_ROW + 2)


def test_no_server_at_all_is_told(tmp_path, server):
    identity = openai_identity("judge", "http://127.0.0.1:9", {})
    limits = Limits(max_retries=0)
    with Store(tmp_path / "s.sqlite") as store:
        backend = OpenAIBackend(identity, api_key_env=None, timeout=5)
        outcome = ask_all(questions(1), backend, store, limits)
    assert "no connection" in outcome.failed["key 0"]


TOO_LONG = [
    (400, {"message": "This model's maximum context length is 4096 tokens.", "code": 400}),
    (400, {"message": "x", "code": "context_length_exceeded"}),
    (400, {"message": "the request exceeds the available context size"}),
    (413, {"message": "prompt is too long"}),
]


@pytest.mark.parametrize(("status", "error"), TOO_LONG)
def test_a_prompt_that_is_too_long_fails_alone_and_once(ask, server, status, error):
    body = str({"error": error}).replace("'", '"').replace('model"s', "model's")
    server.fault = lambda prompt, n: Fault(status, body=body) if prompt == "prompt 2" else None
    outcome, replies = ask(5)
    assert set(outcome.failed) == {"key 2"}
    assert "too long" in outcome.failed["key 2"]
    assert len(replies) == 4
    assert server.num_requests == 5


REFUSALS = [
    {"message": {"role": "assistant", "content": None, "refusal": "I will not."}},
    {"message": {"role": "assistant", "content": ""}, "finish_reason": "content_filter"},
]


@pytest.mark.parametrize("choice", REFUSALS)
def test_a_refusal_is_a_reply_and_is_not_asked_for_again(ask, server, choice):
    server.judge = lambda prompt: choice
    for _ in range(2):
        outcome, replies = ask(2)
        assert not outcome.failed
        assert [reply.refused for reply in replies.values()] == [True, True]
    assert server.num_requests == 2


def test_a_filter_in_front_of_the_model_is_a_refusal(ask, server):
    body = '{"error": {"message": "filtered", "code": "content_filter"}}'
    server.fault = lambda prompt, n: Fault(400, body=body)
    outcome, replies = ask(2)
    assert not outcome.failed
    assert all(reply.refused for reply in replies.values())


@pytest.mark.parametrize("content", [None, "", [{"type": "text"}]])
def test_an_empty_answer_is_kept_as_it_is(ask, server, content):
    server.judge = lambda prompt: {"message": {"content": content}, "finish_reason": "length"}
    _, replies = ask(1)
    assert replies["key 0"].text == ""
    assert replies["key 0"].finish_reason == "length"
    assert not replies["key 0"].refused


def test_so_many_at_the_same_time_and_no_more(ask, server):
    def judge(prompt):
        time.sleep(0.05)
        return always_a(prompt)

    server.judge = judge
    ask(12, Limits(concurrency=3))
    assert server.most_busy == 3


def test_so_many_a_minute_and_no_more(ask, server):
    ask(6, Limits(concurrency=6, rpm=1200))  # 50 ms each
    assert server.times[-1] - server.times[0] >= 0.2


def test_a_loop_that_runs_already_is_no_obstacle(ask):
    import asyncio

    async def notebook():
        return ask(3)

    _, replies = asyncio.run(notebook())
    assert len(replies) == 3


def test_a_bug_of_ours_is_not_hidden(ask, server, monkeypatch):
    monkeypatch.setattr(Store, "put", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ask(3)


ECHO = '{"error": {"message": "bad key ' + KEY + ' in Authorization", "code": "x"}}'


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500])
def test_the_key_is_shown_nowhere(ask, server, status, caplog, capfd, tmp_path):
    caplog.set_level(logging.DEBUG)
    server.judge = lambda prompt: preferred(f"B {KEY}")
    server.fault = lambda prompt, n: Fault(status, body=ECHO) if prompt == "prompt 1" else None
    said = []
    try:
        text = str(ask(3, said=said))
    except ConfigError:
        text = traceback.format_exc()
    text += caplog.text + "".join(said) + "".join(capfd.readouterr())
    assert server.keys == {f"Bearer {KEY}"}
    assert KEY not in text
    assert "Bearer" not in text
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes()


def test_without_a_named_variable_no_key_is_sent(ask, server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    ask(1, key_name=None)
    assert server.keys == {"Bearer none"}


@pytest.mark.parametrize("value", ["", "  ", "two words", "kéy", "a\nb", "a\x7fb"])
def test_a_variable_without_a_key_is_told_and_not_shown(server, monkeypatch, value):
    monkeypatch.setenv(KEY_NAME, value)
    with pytest.raises(ConfigError, match=KEY_NAME) as caught:
        OpenAIBackend(openai_identity("m", server.url, {}), api_key_env=KEY_NAME, timeout=1)
    assert not value.strip() or value not in str(caught.value)
    monkeypatch.delenv(KEY_NAME)
    with pytest.raises(ConfigError, match="is not set"):
        OpenAIBackend(openai_identity("m", server.url, {}), api_key_env=KEY_NAME, timeout=1)


@pytest.mark.parametrize(
    "url", ["http://u:pw@host/v1", "http://u@host", "http://host/v1?key=pw", "https://h/v1#pw"]
)
def test_a_url_with_a_secret_is_refused_without_showing_it(url):
    with pytest.raises(ConfigError, match="api_key_env") as caught:
        openai_identity("m", url, {})
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://host", "http://", "http://["])
def test_a_url_that_is_none_is_refused(url):
    with pytest.raises(ConfigError, match="^base_url: "):
        openai_identity("m", url, {})


@pytest.mark.parametrize("name", ["model", "messages", "stream", "n"])
def test_some_settings_are_not_the_users(name):
    with pytest.raises(ConfigError, match=f"^request: {name}"):
        openai_identity("m", "http://host/v1", {name: 1})


def test_a_missing_package_is_told(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with pytest.raises(ConfigError, match=r"brim-distill\[judge\]"):
        OpenAIBackend(openai_identity("m", "http://host/v1", {}), api_key_env=None, timeout=1)
