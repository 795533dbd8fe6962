"""Every reply of a judge, kept in SQLite as it arrives, so that nothing is paid for twice."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from brim.errors import RunError
from brim.support.files import hold

_VERSION = 1
_BUSY_SECONDS = 60.0
_TABLES = """
CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY,      -- SHA-256 of judge and prompt
    judge TEXT NOT NULL,       -- model and settings, as JSON
    prompt TEXT NOT NULL,
    text TEXT NOT NULL,        -- the raw reply
    refused INTEGER NOT NULL,  -- the server says so
    finish_reason TEXT,
    verdict TEXT NOT NULL,     -- as read on arrival, for people; brim reads `text` again
    prompt_tokens INTEGER,
    completion_tokens INTEGER,
    seconds REAL NOT NULL,
    created TEXT NOT NULL
);
"""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a judge said.

    Attributes:
        text: raw, may be empty.
        refused: the server says that the judge, or a filter before it, refused.
        finish_reason: as the server calls it; `length` where the reply was cut.
        prompt_tokens, completion_tokens: as the server counts them, if it does.
        seconds: from the request to the reply.
    """

    text: str
    refused: bool = False
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float = 0.0


class Store:
    """Replies by key, in one file, made if need be. A reply is on the disk when `put` returns.

    One process at a time has it, so that nothing is asked twice. The lock is the system's and goes
    with the process, however that ends. `alone=False` only looks into it, while another may have
    it.

    Raises:
        RunError: here and in all methods: the file cannot be used, or another process has it.
    """

    def __init__(self, path: Path, *, alone: bool = True) -> None:
        self.path = path
        busy = f"{path}: another process is judging with it; wait, stop it, or choose another store"
        lock = path.with_name(f"{path.name}.lock")
        self._lock = ExitStack()
        if alone:
            self._lock.enter_context(hold(lock, busy))
        try:
            with self._errors():
                self._database = sqlite3.connect(
                    path,
                    timeout=_BUSY_SECONDS,
                    isolation_level=None,
                    check_same_thread=False,  # one thread after the other, in a notebook
                )
                self._open()
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            with self._errors():
                self._database.close()
        finally:
            self._lock.close()

    def get(self, keys: Iterable[str]) -> dict[str, Reply]:
        """Return the replies that are there."""
        found = {}
        with self._errors():
            for key in keys:
                row = self._database.execute(
                    "SELECT text, refused, finish_reason, prompt_tokens, completion_tokens, seconds"
                    " FROM replies WHERE key = ?",
                    (key,),
                ).fetchone()
                if row is not None:
                    found[key] = Reply(row[0], bool(row[1]), *row[2:])
        return found

    def put(self, key: str, reply: Reply, *, judge: str, prompt: str, verdict: str) -> None:
        """Keep a reply; one that is there already stays."""
        with self._errors():
            self._database.execute(
                "INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    key,
                    judge,
                    _storable(prompt),
                    _storable(reply.text),
                    reply.refused,
                    reply.finish_reason,
                    verdict,
                    reply.prompt_tokens,
                    reply.completion_tokens,
                    round(reply.seconds, 3),
                    datetime.now(UTC).isoformat(timespec="seconds"),
                ),
            )

    def _open(self) -> None:
        version = self._database.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, _VERSION):
            raise RunError(f"{self.path}: written by another version of brim; choose another file")
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")  # a reply is paid for: it must last
        if version == 0:
            self._database.executescript(f"BEGIN IMMEDIATE; {_TABLES} COMMIT")
            self._database.execute(f"PRAGMA user_version = {_VERSION}")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise RunError(
                f"{self.path}: cannot be used as a store of verdicts: {error}; name another file, "
                "on a local disk with space left"
            ) from None


def _storable(text: str) -> str:
    """SQLite's text is UTF-8, which has no half of a surrogate pair."""
    return text.encode(errors="replace").decode()
