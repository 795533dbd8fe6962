"""Kills, Ctrl-C and two processes: no answer is lost, and none is paid for twice."""

import signal
import subprocess
import sys
import threading
import time

import pytest
from judge_server import always_a

from brim.judge.store import Store

NUM_QUESTIONS = 24
ASK = """
import sys
import signal
from pathlib import Path

# Tests that were started in the background ignore it, and so would this process.
signal.signal(signal.SIGINT, signal.default_int_handler)
from brim.judge import Limits
from brim.judge.asking import Question, ask_all
from brim.judge.openai import OpenAIBackend, openai_identity
from brim.judge.store import Store

url, path = sys.argv[1:]
questions = {
    f"key {i}": Question(f"key {i}", lambda i=i: f"prompt {i}", lambda reply: "A")
    for i in range(24)
}
backend = OpenAIBackend(openai_identity("m", url, {}), api_key_env=None, timeout=20)
with Store(Path(path)) as store:
    say = lambda text: print(text, file=sys.stderr, flush=True)
    outcome = ask_all(questions, backend, store, Limits(concurrency=2), say=say)
    assert not outcome.failed
    print(len(store.get(questions)))
"""


def start(server, path):
    return subprocess.Popen(
        [sys.executable, "-c", ASK, server.url, str(path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process):
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert said == f"{NUM_QUESTIONS}\n"


def wait_until_held(server, process):
    while server.busy < 2 or sum(server.answered.values()) < 8:
        assert process.poll() is None
        time.sleep(0.005)


@pytest.fixture
def going_on(server):
    """After eight answers the server keeps all others waiting until this is set."""
    event = threading.Event()

    def judge(prompt):
        if sum(server.answered.values()) >= 8:
            event.wait(60)
        return always_a(prompt)

    server.judge = judge
    yield event
    event.set()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_one_goes_on_and_pays_for_nothing_twice(server, going_on, tmp_path, how):
    path = tmp_path / "verdicts.sqlite"
    process = start(server, path)
    try:
        wait_until_held(server, process)
        process.send_signal(how)
        if how is signal.SIGINT:
            assert "waiting for the answers under way" in process.stderr.readline()
        else:
            process.wait(60)
        going_on.set()
        _, errors = process.communicate(timeout=60)
    finally:
        going_on.set()
        process.kill()
    while server.busy:
        time.sleep(0.01)
    answered = sum(server.answered.values())
    assert 8 <= answered < NUM_QUESTIONS
    with Store(path) as store:
        kept = len(store.get(f"key {i}" for i in range(NUM_QUESTIONS)))
    if how is signal.SIGINT:
        assert "KeyboardInterrupt" in errors
        assert kept == answered
    else:  # two were under way, and nobody was left to take them
        assert answered - 2 <= kept <= answered
    finish(start(server, path))
    assert sum(server.answered.values()) == NUM_QUESTIONS + answered - kept


def test_a_second_process_is_told_of_the_first_and_takes_over_when_it_is_killed(
    server, going_on, tmp_path
):
    path = tmp_path / "verdicts.sqlite"
    first = start(server, path)
    wait_until_held(server, first)
    _, errors = start(server, path).communicate(timeout=60)
    assert "another process is judging with it" in errors
    first.kill()
    first.communicate()
    going_on.set()
    finish(start(server, path))
    assert server.num_requests == NUM_QUESTIONS + 2  # two were under way


NOTEBOOK = (
    ASK.replace("import sys\n", "import asyncio, sys\n", 1).split("with Store")[0]
    + """
def cell():
    say = lambda text: print(text, file=sys.stderr, flush=True)
    try:
        with Store(Path(path)) as store:
            ask_all(questions, backend, store, Limits(concurrency=2), say=say)
    except KeyboardInterrupt:
        say("stopped")

async def notebook():
    # As in a kernel, where Ctrl-C comes to a cell as an exception.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    cell()

asyncio.run(notebook())
"""
)


def test_ctrl_c_in_a_notebook_loses_no_answer_and_sends_no_more(server, going_on, tmp_path):
    path = tmp_path / "verdicts.sqlite"
    process = subprocess.Popen(
        [sys.executable, "-c", NOTEBOOK, server.url, str(path)], stderr=subprocess.PIPE, text=True
    )
    wait_until_held(server, process)
    process.send_signal(signal.SIGINT)
    assert "waiting for the answers under way" in process.stderr.readline()
    going_on.set()
    _, errors = process.communicate(timeout=60)
    assert errors.endswith("stopped\n")
    answered = sum(server.answered.values())
    assert 8 < answered == server.num_requests <= 11  # two at a time
    with Store(path) as store:
        assert len(store.get(f"key {i}" for i in range(NUM_QUESTIONS))) == answered
