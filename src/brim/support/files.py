"""Durable files: what is there after a crash is the old text or the new one, never half of it.

And lock files: one process at a time works in a place. The system lets go when a process ends.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import logging
import os
import re
import secrets
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from brim.errors import BrimError, RunError

# Whose processes a temporary file's name speaks of, where several machines share a disk.
_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
# Of this process; another one may have had its number.
_TOKEN = secrets.token_hex(4)

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

SEAL = "sha256"
"""The key under which a JSON object has the SHA-256 of all else in it."""


@contextmanager
def disk_errors(path: Path | str, num_bytes: int | None = None) -> Iterator[None]:
    """Turn refusals of the operating system inside the block into a `RunError` that names `path`.

    `num_bytes` is how much is written there, where that is known.
    """
    try:
        yield
    except Exception as error:
        raise_refusal(error, path, num_bytes)
        raise


def raise_refusal(error: BaseException, path: Path | str, num_bytes: int | None = None) -> None:
    """Raise a one-line `RunError` if an error says that the system cannot write `path`.

    A full disk is also seen in errors of native code, in causes of errors, and where a part of
    `path` was refused. `num_bytes` is how much is written, where that is known.
    """
    if isinstance(error, BrimError) and not num_bytes:
        return
    number = system_error(error)
    if number in FULL:
        text = _why_full(number, Path(path), num_bytes)
    elif not isinstance(error, OSError):
        return
    elif number in (errno.EACCES, errno.EPERM, errno.EROFS):
        text = "not allowed here; change the permissions or write elsewhere"
    elif number == errno.ENAMETOOLONG:
        raise RunError(f"{shorten(path)}: the name is too long; choose a shorter one") from error
    else:
        text = " ".join((error.strerror or str(error)).split())
    raise RunError(f"{path}: cannot write: {text}") from error


def shorten(path: Path | str) -> str:
    """A path for a message; of a very long one beginning and end."""
    text = str(path)
    return text if len(text) <= 160 else f"{text[:70]}…{text[-70:]}"


def system_error(error: BaseException | None) -> int | None:
    """The system's number of an error, or of a full disk that is behind it."""
    if isinstance(error, OSError) and error.errno not in (None, *FULL):
        return error.errno
    while error is not None:
        # Written so by Rust, of which safetensors and tokenizers are made.
        number = re.search(r"\(os error (\d+)\)", str(error))
        found = int(number[1]) if number else getattr(error, "errno", None)
        if found in FULL:
            return found
        error = error.__cause__ or error.__context__
    return None


def _why_full(number: int, path: Path, num_bytes: int | None) -> str:
    folder = next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
    disk = os.statvfs(folder)
    # Names and locks take a block.
    needed = f"at least {num_bytes or disk.f_frsize:,} bytes needed"
    if number == errno.EFBIG:
        return f"larger than files may be here ({needed}); raise the limit (ulimit -f)"
    free = disk.f_bavail * disk.f_frsize
    return f"no space left on the device ({needed}, {free:,} free); free some or write elsewhere"


@contextmanager
def atomic_open(path: Path | str, num_bytes: int | None = None) -> Iterator[BinaryIO]:
    """A binary file to write that takes its place at `path` when the block ends without an error.

    Until then its bytes are in a temporary file beside it; they are on the disk, and so is the
    name, when the block is left. After an error the temporary file is gone and `path` untouched;
    what processes that were killed left of theirs is removed.

    Raises:
        RunError: no space, no permission, no such folder.
    """
    path = Path(path)
    name = f".{path.name}.{_HOST}-{os.getpid()}-{_TOKEN}{secrets.token_hex(4)}.tmp"
    temporary, written = path.with_name(name), 0
    try:
        _remove_leftovers(path)
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync_directory(path.parent)
    except BaseException as error:
        with suppress(OSError):
            written = temporary.stat().st_size
            temporary.unlink()
        raise_refusal(error, path, num_bytes or written + 1)
        raise


def _remove_leftovers(path: Path) -> None:
    """Remove the temporary files of `path` whose processes are gone."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.{_HOST}-*-*.tmp"):
        process, token = leftover.name.removesuffix(".tmp").rsplit("-", 2)[1:]
        if process.isdecimal() and not _is_running(int(process), token[: len(_TOKEN)]):
            leftover.unlink(missing_ok=True)


def _is_running(process: int, token: str) -> bool:
    if process == os.getpid():
        return token == _TOKEN  # or an earlier process had the number
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def fsync_directory(path: Path | str) -> None:
    """Make the names in a folder durable: creations, renames and removals."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write_bytes(path: Path | str, data: bytes) -> None:
    """Write `data` to `path`, durably and as a whole; raises like `atomic_open`."""
    with atomic_open(path, len(data)) as file:
        file.write(data)


def atomic_write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text, durably and as a whole; raises like `atomic_open`."""
    atomic_write_bytes(path, text.encode())


def atomic_write_json(path: Path | str, value: Any) -> None:
    """Write one JSON document, indented, durably and as a whole; raises like `atomic_open`.

    Raises:
        ValueError: a number that is not finite, which JSON does not have.
    """
    atomic_write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_sealed_json(path: Path | str, value: Mapping[str, Any]) -> None:
    """Write one JSON object with `sha256`, that of all the rest; raises like `atomic_write_json`.

    `read_json` compares the two, and returns the rest.
    """
    atomic_write_json(path, {SEAL: sha256_of(value), **value})


def sha256_of(value: Mapping[str, Any]) -> str:
    """SHA-256 of an object as `json.dumps` writes it; the same for the object read again."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def atomic_write_jsonl(path: Path | str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, durably and as a whole; `rows` may be a generator.

    Raises:
        RunError: as `atomic_open`.
        ValueError: a number that is not finite, which JSON does not have.
    """
    with atomic_open(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")


def read_json(path: Path | str, *, sealed_with: str = SEAL) -> Any:
    """Read a JSON file of brim's; one of `write_sealed_json` is compared with its `sha256`.

    `sealed_with` is a key that only sealed objects have, or nothing says that a `sha256` was lost.

    Raises:
        RunError: the file is missing, damaged or cannot be read.
    """
    try:
        value = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from None
    if isinstance(value, dict) and SEAL in value:
        known = value.pop(SEAL)
        if known != sha256_of(value):
            raise RunError(f"{path}: damaged: its content is not that of its {SEAL}")
    elif isinstance(value, dict) and sealed_with in value:
        raise RunError(f"{path}: damaged: its {SEAL} is missing")
    return value


def sha256_file(path: Path | str) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


logger = logging.getLogger(__name__)

# A process that only looks whether a lock is held has it for less than this.
_LOOK_SECONDS = 0.1


def acquire(path: Path, busy: str | None = None, *, wait: bool = False) -> FileLock:
    """Take a lock, its folder made if need be; the caller releases it.

    `busy` says that another process holds it: it is raised or, with `wait`, logged; None to wait in
    silence until it is free.

    Raises:
        RunError: another process holds it.
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=-1 if busy is None else _LOOK_SECONDS)
    except Timeout:
        if not wait:
            raise RunError(str(busy)) from None
        logger.warning("%s", busy)
        lock.acquire()
    return lock


@contextmanager
def hold(path: Path, busy: str | None = None, *, wait: bool = False) -> Iterator[None]:
    """Hold a lock while the block runs; see `acquire`.

    Raises:
        RunError: another process holds it, or its folder cannot be written.
    """
    with disk_errors(path.parent):
        lock = acquire(path, busy, wait=wait)
    try:
        yield
    finally:
        lock.release()


def is_held(path: Path) -> bool:
    """Return whether a process, this one too, holds a lock."""
    if not path.exists():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:  # a folder in which we cannot write
        return False
    lock.release()
    return False
