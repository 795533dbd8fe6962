"""Lock files: one process at a time works in a place. The system lets go when a process ends."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from brim.errors import RunError
from brim.support.files import disk_errors

logger = logging.getLogger(__name__)

# A process that only looks whether a lock is held has it for less than this.
_LOOK_SECONDS = 0.1


def acquire(path: Path, busy: str | None = None, *, wait: bool = False) -> FileLock:
    """Take a lock, its folder made if need be; the caller releases it.

    Args:
        path: the lock file.
        busy: what to say if another process holds it; None to wait in silence until it is free.
        wait: log `busy` as a warning and wait, in place of raising it.

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
