import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from brim.errors import RunError
from brim.judge import Reply, Store, query_key
from brim.judge.store import Claim

REPLY = Reply("Preferred: A", False, "stop", 5, 3, 0.25)


def put(store, key, reply=REPLY):
    store.put(key, reply, judge="{}", prompt=f"prompt {key}", verdict="A")


def test_what_is_put_is_there_for_the_next_one(tmp_path):
    path = tmp_path / "deep" / "verdicts.sqlite"
    with Store(path) as store:
        put(store, "k")
        put(store, "odd", Reply("half a \ud83d pair, a \0 and an emoji \U0001f600"))
    with Store(path) as store:
        found = store.get(["k", "odd", "other"])
    assert found["k"] == REPLY
    assert found.keys() == {"k", "odd"}
    assert "emoji \U0001f600" in found["odd"].text


def test_the_first_reply_stays(tmp_path):
    with Store(tmp_path / "s.sqlite") as store:
        put(store, "k")
        put(store, "k", Reply("Preferred: B"))
        assert store.get(["k"])["k"] == REPLY


def test_a_reply_outlives_a_process_that_is_killed(tmp_path):
    path = tmp_path / "s.sqlite"
    code = (
        "import os, sys, pathlib\nfrom brim.judge import Reply, Store\n"
        "store = Store(pathlib.Path(sys.argv[1]))\n"
        "store.claim('unanswered', 3600)\n"
        "store.put('k', Reply('Preferred: A'), judge='{}', prompt='p', verdict='A')\n"
        "os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(path)], timeout=60, check=False)
    assert killed.returncode == -9
    with Store(path) as store:
        assert store.get(["k"])["k"].text == "Preferred: A"
        assert store.claim("k", 60) is Claim.ANSWERED
        assert store.claim("unanswered", 60) is Claim.OURS


def claimed_by(path: Path, owner: str, expires: float) -> None:
    with sqlite3.connect(path) as database:
        database.execute("INSERT INTO claims VALUES ('k', ?, ?)", (owner, expires))


def test_a_question_has_one_owner_until_it_is_given_back_or_late(tmp_path):
    path = tmp_path / "s.sqlite"
    with Store(path) as store:
        host = store._host
        claimed_by(path, f"{host}:{os.getppid()}", 1e18)  # alive
        assert store.claim("k", 60) is Claim.OTHERS
        store.release("k")  # not ours to give
        assert store.claim("k", 60) is Claim.OTHERS
    for owner, expires in [(f"{host}:{os.getppid()}", 1.0), ("elsewhere:1", 1.0)]:
        with Store(path) as store:
            with sqlite3.connect(path) as database:
                database.execute("DELETE FROM claims")
            claimed_by(path, owner, expires)
            assert store.claim("k", 60) is Claim.OURS
            assert store.claim("k", 60) is Claim.OURS
    with Store(path) as store:
        claimed_by(path, "elsewhere:1", 1e18)
        assert store.claim("k", 60) is Claim.OTHERS


def test_claims_are_given_back_at_the_end(tmp_path):
    path = tmp_path / "s.sqlite"
    with Store(path) as store:
        store.claim("k", 3600)
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT count(*) FROM claims").fetchone() == (0,)


def test_many_writers_at_once_lose_nothing(tmp_path):
    path = tmp_path / "s.sqlite"
    failures = []

    def write(name):
        try:
            with Store(path) as store:
                for i in range(10):
                    put(store, f"{name}-{i}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    with Store(path) as store:
        assert len(store.get(f"{name}-{i}" for name in range(4) for i in range(10))) == 40


def test_a_file_that_is_no_store_is_told_in_one_line(tmp_path):
    path = tmp_path / "s.sqlite"
    path.write_text("this is no database, but long enough to look like one" * 20)
    with pytest.raises(RunError, match=r"s\.sqlite: cannot be used") as caught:
        Store(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(RunError, match="cannot write"):
        Store(path / "below" / "s.sqlite")
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as database:
        database.execute("PRAGMA user_version = 7")
    with pytest.raises(RunError, match="another version"):
        Store(other)


def test_a_key_depends_on_judge_and_prompt_and_on_no_order():
    judge = {"model": "m", "request": {"temperature": 0, "max_tokens": 5}}
    same = {"request": {"max_tokens": 5, "temperature": 0}, "model": "m"}
    assert query_key(judge, "p") == query_key(same, "p")
    keys = {
        query_key(judge, "p"),
        query_key(judge, "q"),
        query_key({**judge, "model": "n"}, "p"),
        query_key({**judge, "request": {"temperature": 1, "max_tokens": 5}}, "p"),
        query_key({**judge, "base_url": "http://localhost"}, "p"),
    }
    assert len(keys) == 5
