import sqlite3
import subprocess
import sys

import pytest

from brim.errors import RunError
from brim.judge.prompts import query_key
from brim.judge.store import Reply, Store

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
        "import os, sys, pathlib\nfrom brim.judge.store import Reply, Store\n"
        "store = Store(pathlib.Path(sys.argv[1]))\n"
        "store.put('k', Reply('Preferred: A'), judge='{}', prompt='p', verdict='A')\n"
        "os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(path)], timeout=60, check=False)
    assert killed.returncode == -9
    with Store(path) as store:
        assert store.get(["k"])["k"].text == "Preferred: A"


def test_one_has_it_at_a_time_and_others_may_look(tmp_path):
    path = tmp_path / "s.sqlite"
    with Store(path) as store:
        put(store, "k")
        with pytest.raises(RunError, match=r"s\.sqlite: another process .* store") as caught:
            Store(path)
        assert "\n" not in str(caught.value)
        with Store(path, alone=False) as other:
            assert other.get(["k"])["k"] == REPLY
        put(store, "after")
        with pytest.raises(RunError, match="another process"):  # looking gives nothing away
            Store(path)
    with Store(path) as store:
        assert store.get(["k", "after"]).keys() == {"k", "after"}


def test_a_file_of_the_first_version_is_read(tmp_path):
    path = tmp_path / "s.sqlite"
    with Store(path) as store:
        put(store, "k")
    with sqlite3.connect(path) as database:  # it had leases too, such as of a machine that is gone
        database.execute("CREATE TABLE claims (key TEXT PRIMARY KEY, owner TEXT, expires REAL)")
        database.execute("INSERT INTO claims VALUES ('k', 'elsewhere:1', 1e18)")
    with Store(path) as store:
        assert store.get(["k"])["k"] == REPLY


def test_a_file_that_cannot_be_used_is_given_free_again(tmp_path):
    path = tmp_path / "s.sqlite"
    path.write_text("no database")
    with pytest.raises(RunError, match="cannot be used") as caught:
        Store(path)
    path.unlink()
    with Store(path):
        pass
    del caught


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
