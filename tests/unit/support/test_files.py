"""Durable writing: the old text or the new one, and one-line errors."""

import errno
import hashlib
import json
import os
import re
import signal
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brim.errors import RunError
from brim.support.files import (
    atomic_open,
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_jsonl,
    atomic_write_text,
    disk_errors,
    read_json,
    sha256_file,
)


def test_what_is_written_is_read_back(tmp_path):
    atomic_write_bytes(tmp_path / "b", b"\0\xff")
    atomic_write_text(tmp_path / "t", "naïve\n")
    atomic_write_json(tmp_path / "j", {"é": [1, None, 0.1]})
    atomic_write_jsonl(tmp_path / "l", ({"i": i, "text": "a\nb\u2028c"} for i in range(3)))

    assert (tmp_path / "b").read_bytes() == b"\0\xff"
    assert (tmp_path / "t").read_bytes() == "naïve\n".encode()
    assert json.loads((tmp_path / "j").read_text("utf-8")) == {"é": [1, None, 0.1]}
    lines = (tmp_path / "l").read_bytes().split(b"\n")
    assert [json.loads(line) for line in lines[:-1]] == [
        {"i": i, "text": "a\nb\u2028c"} for i in range(3)
    ]
    assert lines[-1] == b""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "j", "l", "t"]


@given(st.binary(max_size=200))
def test_sha256_is_that_of_the_bytes(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("sha") / "file"
    atomic_write_bytes(path, data)
    assert sha256_file(path) == hashlib.sha256(data).hexdigest()


def test_after_an_error_the_old_file_is_there_and_nothing_else(tmp_path):
    path = tmp_path / "results.json"
    atomic_write_text(path, "old")

    def rows():
        yield {"a": 1}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_write_jsonl(path, rows())
    with pytest.raises(ValueError, match="JSON compliant"):
        atomic_write_json(path, {"loss": float("nan")})
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_name_changes_only_after_the_bytes_are_on_the_disk(tmp_path, monkeypatch):
    path = tmp_path / "file"
    atomic_write_text(path, "old")
    seen = []

    def fsync(descriptor):
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        size = os.fstat(descriptor).st_size if kind == "file" else None
        seen.append((kind, size, path.read_text()))

    monkeypatch.setattr(os, "fsync", fsync)
    atomic_write_text(path, "new text")
    assert seen == [("file", 8, "old"), ("folder", None, "new text")]


def test_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_text("")
    atomic_write_text(tmp_path / "atomic", "")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (errno.ENOSPC, "no space left on the device"),
        (errno.EDQUOT, "no space left on the device"),
        (errno.EACCES, "not allowed here"),
        (errno.EROFS, "not allowed here"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_a_disk_that_refuses_is_one_line_that_names_the_file(tmp_path, monkeypatch, code, text):
    path = tmp_path / "weights"
    atomic_write_text(path, "old")

    def refuse(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(RunError) as caught:
        atomic_write_text(path, "new")
    assert str(caught.value).startswith(f"{path}: cannot write: {text}")
    assert "\n" not in str(caught.value)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_device_refuses_the_last_flush(tmp_path):
    """`/dev/full` takes what a buffer holds and refuses it when it is flushed."""
    if not os.path.exists("/dev/full"):
        pytest.skip("/dev/full is a device of Linux")

    def write():
        with atomic_open(tmp_path / "file") as file:
            descriptor = os.open("/dev/full", os.O_WRONLY)
            os.dup2(descriptor, file.fileno())
            os.close(descriptor)
            file.write(b"x")

    with pytest.raises(RunError, match="no space left"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(RunError, match="gone/file: cannot write: No such file or directory"):
        atomic_write_text(tmp_path / "gone" / "file", "text")


@pytest.mark.parametrize("text", [None, "", "{", '{"a": 1'])
def test_json_that_cannot_be_read_names_the_file(tmp_path, text):
    path = tmp_path / "manifest.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RunError, match=r"manifest\.json: "):
        read_json(path)


def test_a_full_disk_says_how_much_is_needed_and_free(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    free = os.statvfs(tmp_path)
    with pytest.raises(RunError) as caught:
        atomic_write_bytes(tmp_path / "weights", bytes(12_345))
    needed, available = re.search(
        r"at least ([\d,]+) bytes needed, ([\d,]+) free\)", str(caught.value)
    ).groups()
    assert int(needed.replace(",", "")) == 12_345
    assert int(available.replace(",", "")) <= free.f_blocks * free.f_frsize


class RustError(Exception):
    """As of safetensors and tokenizers."""


@pytest.mark.parametrize(
    ("error", "is_of_the_disk"),
    [
        (RustError("I/O error: No space left on device (os error 28)"), True),
        (RustError("I/O error: File too large (os error 27)"), True),
        (RustError("No such file or directory (os error 2)"), False),
        (ValueError("28"), False),
        (KeyError("x"), False),
    ],
)
def test_errors_of_native_code_are_read_too(tmp_path, error, is_of_the_disk):
    with pytest.raises(RunError if is_of_the_disk else type(error)), disk_errors(tmp_path / "x"):
        raise error


def test_the_cause_of_an_error_is_read_too(tmp_path):
    full = RustError("No space left on device (os error 28)")
    with pytest.raises(RunError, match="7 bytes needed"), disk_errors(tmp_path / "x", 7):
        raise RuntimeError("writing failed") from full


def test_what_a_killed_process_left_is_removed_by_the_next_write(tmp_path):
    path = tmp_path / "results.json"

    def killed():
        with atomic_open(path) as file:
            file.write(b"half")
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        killed()
    os.waitpid(child, 0)
    [leftover] = tmp_path.iterdir()
    assert leftover.suffix == ".tmp"
    with atomic_open(tmp_path / "other.json") as other:  # alive: not touched
        atomic_write_text(path, "whole")
        assert not leftover.exists()
        assert len(list(tmp_path.iterdir())) == 2
        other.write(b"x")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["other.json", "results.json"]


def test_a_name_that_is_too_long_is_one_short_line(tmp_path):
    with pytest.raises(RunError, match="the name is too long; choose a shorter one") as caught:
        atomic_write_text(tmp_path / ("x" * 300), "")
    assert len(str(caught.value)) < 250
