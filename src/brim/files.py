"""Durable files: what is there after a crash is the old text or the new one, never half of it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from brim.errors import RunError


@contextmanager
def disk_errors(path: Path | str) -> Iterator[None]:
    """Turn the operating system's refusals inside the block into a `RunError` that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            text = "no space left on the device; free some or write elsewhere"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            text = "not allowed here; change the permissions or write elsewhere"
        else:
            text = error.strerror or str(error)
        raise RunError(f"{path}: cannot write: {text}") from error


@contextmanager
def atomic_open(path: Path | str) -> Iterator[BinaryIO]:
    """A binary file to write that takes its place at `path` when the block ends without an error.

    Until then its bytes are in a temporary file beside it; they are on the disk, and so is the
    name, when the block is left. After an error the temporary file is gone and `path` untouched.

    Raises:
        RunError: no space, no permission, no such folder.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    with disk_errors(path):
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        fsync_directory(path.parent)


def fsync_directory(path: Path | str) -> None:
    """Make the names in a folder durable: creations, renames and removals."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write_bytes(path: Path | str, data: bytes) -> None:
    """Write `data` to `path`, durably and as a whole; raises like `atomic_open`."""
    with atomic_open(path) as file:
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


def atomic_write_jsonl(path: Path | str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, durably and as a whole; `rows` may be a generator.

    Raises:
        RunError: as `atomic_open`.
        ValueError: a number that is not finite, which JSON does not have.
    """
    with atomic_open(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")


def read_json(path: Path | str) -> Any:
    """The document of a JSON file that we wrote.

    Raises:
        RunError: the file is missing, damaged or cannot be read.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from None


def read_jsonl(path: Path | str) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file that we wrote, one a line; none where there is no file.

    Raises:
        RunError: a line is damaged; the text names it.
    """
    if not Path(path).exists():
        return
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise RunError(f"{path}:{number}: cannot be read: {error}") from None


def sha256_file(path: Path | str) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
