"""`brim serve` as a user starts it: a run's best checkpoint, a key, and how it ends."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

import pytest
from rundirs import write_run
from serving import ask
from tiny import EOS, encoded, tiny_language_model
from torch.testing import assert_close

from brim.models import Decoding, load_model
from brim.models.loading import fingerprint_model
from brim.support.seals import seal

KEY_NAME, KEY = "BRIM_TEST_SERVE_KEY", "a-key-of-the-tests"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", KEY_NAME: KEY}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run directory with the best checkpoint of a T5."""
    run = write_run(tmp_path_factory.mktemp("runs") / "run", settings={"task": {"name": "files"}})
    tiny_language_model("t5").save(run / "best")
    seal(run / "best", {})
    return run


@contextmanager
def serving(run: Path, *arguments: str):
    """The process, and the address that it said."""
    command = [sys.executable, "-m", "brim", "serve", str(run), "--port", "0", "--name", "teacher"]
    process = subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("serving teacher at http://127.0.0.1:"), process.stderr.read()
        yield process, line
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def long_text(url: str, tokens: int):
    """A text that cannot end before its limit; the queue may be full for a moment."""
    body = {
        "model": "teacher",
        "prompt": [[3, 4, EOS]],
        "temperature": 0,
        "max_tokens": tokens,
        "logit_bias": {str(EOS): -100},
        "return_token_ids": True,
    }
    while (found := ask(f"{url}/v1/completions", body, key=KEY))[0] == 429:
        time.sleep(0.01)
    return found


def wait_until_busy(url: str) -> None:
    """Until the one place of the queue is taken, and the worker with it."""
    score = {"model": "teacher", "prompts": [[3, 1]], "completions": [[5]]}
    end = time.monotonic() + 60
    while ask(f"{url}/v1/score", score, key=KEY)[0] != 429:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_run_is_served_and_sigterm_lets_requests_finish(run):
    with serving(run, "--key-env", KEY_NAME, "limits.queue=1") as (process, line):
        assert f"model: teacher, key_env: {KEY_NAME}" in line
        url = line.split()[3]
        assert ask(f"{url}/v1/models")[0] == 401
        (served,) = ask(f"{url}/v1/models", key=KEY)[1]["data"]
        model = load_model(run / "best")
        assert served["sha256"] == fingerprint_model(model)
        assert served["encoder_decoder"] is True

        batch = encoded(model)
        rollout = model.generate(batch, Decoding(strategy="greedy", max_tokens=6))
        body = {
            "model": "teacher",
            "prompts": listed(batch.prompt_ids, batch.prompt_mask),
            "completions": listed(rollout.completion_ids, rollout.mask),
        }
        _, answer, _ = ask(f"{url}/v1/score", body, key=KEY)
        wanted = model.action_values(rollout).q_taken
        for row, values, mask in zip(answer["rows"], wanted, rollout.mask, strict=True):
            assert_close(values.new_tensor(row["taken"]), values[mask], atol=2e-5, rtol=1e-5)

        with ThreadPoolExecutor() as pool:
            request = pool.submit(long_text, url, 1500)
            wait_until_busy(url)
            process.send_signal(signal.SIGTERM)
            status, answer, _ = request.result()
        assert status == 200
        assert len(answer["choices"][0]["token_ids"]) == 1500
        assert process.wait(60) == 0
        assert process.stdout.read() == ""
        assert KEY not in process.stderr.read()
        with pytest.raises(URLError):
            ask(f"{url}/health")


def listed(ids, mask) -> list[list[int]]:
    return [row[kept].tolist() for row, kept in zip(ids, mask, strict=True)]


def test_a_killed_server_is_a_broken_connection(run):
    with serving(run, "limits.queue=1") as (process, line):
        url = line.split()[3]
        with ThreadPoolExecutor() as pool:
            request = pool.submit(long_text, url, 30_000)
            wait_until_busy(url)
            process.kill()
            with pytest.raises((OSError, HTTPException)):
                request.result()
        assert process.wait(60) == -signal.SIGKILL
