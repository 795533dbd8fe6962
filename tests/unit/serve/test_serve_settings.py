"""Mistakes of `brim serve` are one line, before anything is loaded."""

import socket
import subprocess
import sys

import pytest
from rundirs import unseal, write_run
from tiny import tiny_language_model

import brim.serve.checks as checks
from brim.config.loading import load_config
from brim.errors import ConfigError, RunError
from brim.serve.checks import Place, bind, find_source, prepare
from brim.serve.settings import ServeConfig, is_loopback
from brim.support.http import read_key
from brim.support.seals import seal

KEY_NAME = "BRIM_TEST_SERVE_KEY"


def test_loopback_is_told_from_other_addresses():
    assert all(map(is_loopback, ["127.0.0.1", "127.0.0.9", "::1", "localhost"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "192.168.0.1", "example.org", ""]))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--host", "0.0.0.0"], "key_env"),
        (["host=::"], "key_env"),
        (["--host", "0.0.0.0", "--key-env", KEY_NAME], f"{KEY_NAME} is not set"),
        (["--key-env", KEY_NAME], f"{KEY_NAME} is not set"),
        (["--port", "70000"], "port"),
        (["--dtype", "float8"], "float32, bfloat16"),
        (["--quantization", "torchao:7"], "quantization.bits"),
        (["--quantization", "torchao"], "quantization.bits"),
        (["limits.row=3"], "did you mean limits.rows"),
        (["batch_tokens=0"], "batch_tokens"),
        (["--host", "192.0.2.7", "--key-env", "PATH"], "PATH"),
        ([], "./nowhere: no such directory"),
    ],
)
def test_mistakes_are_one_line(brim_says, monkeypatch, arguments, says):
    monkeypatch.delenv(KEY_NAME, raising=False)
    monkeypatch.setenv("PATH", "no key")
    code, out, err = brim_says("serve", "./nowhere", *arguments)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert says in err


def test_missing_packages_are_named(brim_says, monkeypatch):
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    code, _, err = brim_says("serve", ".")
    assert code == 2
    assert "brim-distill[serve]" in err


def test_a_port_that_is_taken_is_said():
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}: .*choose another"):
            bind("127.0.0.1", port)
    with pytest.raises(ConfigError, match="no-such-host"):
        bind("no-such-host.invalid", 0)


def test_a_port_that_another_took_first_is_said():
    first = Place("x", bind("127.0.0.1", 0), None)
    with first.listener:
        second = Place("x", bind("127.0.0.1", first.listener.getsockname()[1]), None)
        first.listen(1)
        with second.listener, pytest.raises(ConfigError, match="choose another"):
            second.listen(1)


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", socket.gethostname()), ("::1", "[::1]")],
)
def test_the_address_is_one_that_clients_can_use(host, url):
    try:
        listener = bind(host, 0)
    except ConfigError:
        pytest.skip("no such address here")
    with listener:
        port = listener.getsockname()[1]
        assert Place("x", listener, None).url == f"http://{url}:{port}"


def test_what_is_prepared_is_all_that_serving_needs(tmp_path, monkeypatch):
    monkeypatch.setenv(KEY_NAME, " secret ")
    overrides = [f"model={tmp_path}", "port=0", f"key_env={KEY_NAME}"]
    place = prepare(load_config(ServeConfig, None, overrides))
    with place.listener as listener:
        assert place.source == tmp_path
        assert place.key == "secret"
        assert place.url == f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(OSError):  # it does not listen before the model is there
            socket.create_connection(listener.getsockname()[:2], timeout=5)


def test_keys_that_no_header_carries_are_refused(monkeypatch):
    for text in ("", "two words", "ü"):
        monkeypatch.setenv(KEY_NAME, text)
        with pytest.raises(ConfigError, match=KEY_NAME) as refused:
            read_key(KEY_NAME, "key_env")
        assert not text or text not in str(refused.value)


def test_a_run_is_served_by_its_best_checkpoint(tmp_path):
    run = write_run(tmp_path / "run", settings={"task": {"name": "files"}})
    with pytest.raises(RunError, match="no best checkpoint"):
        find_source(str(run))
    tiny_language_model("llama").save(run / "best")
    seal(run / "best", {})
    assert find_source(str(run)) == run / "best"
    (run / "best" / "manifest.json").unlink()
    with pytest.raises(RunError, match="damaged"):
        find_source(str(run))
    assert find_source(str(unseal(run))) == run / "best"
    assert find_source("organization/name") == "organization/name"


def test_settings_are_refused_without_torch():
    code = (
        "import sys; from typer.testing import CliRunner; from brim.cli import app\n"
        "result = CliRunner().invoke(app, ['serve', './nowhere'])\n"
        "assert 'no such directory' in str(result.exception), result\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
