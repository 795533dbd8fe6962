"""Every reply of a judge, kept in SQLite as it arrives, so that nothing is paid for twice."""

from __future__ import annotations

import os
import socket
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Self

from brim.errors import RunError

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
CREATE TABLE IF NOT EXISTS claims (
    key TEXT PRIMARY KEY,
    owner TEXT NOT NULL,       -- machine:process
    expires REAL NOT NULL
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


class Claim(Enum):
    """Whose a question is."""

    OURS = "ours"
    OTHERS = "another process is asking it"
    ANSWERED = "answered"


class Store:
    """Replies by key, in one file that several processes of a machine may share.

    A reply is on the disk when `put` returns. A process claims a question before it asks, so that
    no other one asks it at the same time; claims of a process that has died count for nothing.

    Args:
        path: the file; made if need be, and so is its folder.

    Raises:
        RunError: here and in all methods: the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._host = socket.gethostname()
        self._owner = f"{self._host}:{os.getpid()}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{path.parent}: cannot write: {error.strerror}") from None
        with self._errors():
            self._database = sqlite3.connect(
                path,
                timeout=_BUSY_SECONDS,
                isolation_level=None,
                check_same_thread=False,  # one thread after the other, in a notebook
            )
            self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._errors():
            self._database.execute("DELETE FROM claims WHERE owner = ?", (self._owner,))
            self._database.close()

    def get(self, keys: Iterable[str]) -> dict[str, Reply]:
        """The replies that are there."""
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

    def claim(self, key: str, seconds: float) -> Claim:
        """Take a question for so long, or longer if it is ours already."""
        now = time.time()
        with self._transaction() as database:
            if database.execute("SELECT 1 FROM replies WHERE key = ?", (key,)).fetchone():
                return Claim.ANSWERED
            row = database.execute("SELECT owner, expires FROM claims WHERE key = ?", (key,))
            owner, expires = row.fetchone() or (self._owner, now)
            if owner != self._owner and expires > now and self._alive(owner):
                return Claim.OTHERS
            database.execute(
                "INSERT OR REPLACE INTO claims VALUES (?, ?, ?)", (key, self._owner, now + seconds)
            )
            return Claim.OURS

    def release(self, key: str) -> None:
        """Give a question back unanswered."""
        with self._errors():
            self._database.execute(
                "DELETE FROM claims WHERE key = ? AND owner = ?", (key, self._owner)
            )

    def put(self, key: str, reply: Reply, *, judge: str, prompt: str, verdict: str) -> None:
        """Keep a reply."""
        with self._transaction() as database:
            database.execute(
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
            database.execute("DELETE FROM claims WHERE key = ?", (key,))

    def _open(self) -> None:
        version = self._database.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, _VERSION):
            raise RunError(f"{self.path}: written by another version of brim; choose another file")
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")  # a reply is paid for: it must last
        if version == 0:
            self._database.executescript(f"BEGIN IMMEDIATE; {_TABLES} COMMIT")
            self._database.execute(f"PRAGMA user_version = {_VERSION}")

    def _alive(self, owner: str) -> bool:
        """Whether a process may still be at work; of another machine's nothing is known."""
        host, _, pid = owner.rpartition(":")
        if host != self._host:
            return True
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return True

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._errors():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

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
