"""Lock files: one process at a time works in a place. The system lets go when a process ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from brim.errors import RunError
from brim.support.files import disk_errors

# A process that only looks whether a lock is held has it for less than this.
_LOOK_SECONDS = 0.1


def acquire(path: Path, busy: str | None = None) -> FileLock:
    """Take a lock, its folder made if need be; whoever has taken it calls `release`.

    Args:
        path: the lock file.
        busy: what to raise if another process holds it; None to wait until it is free.

    Raises:
        RunError: another process holds it, or the file cannot be written.
    """
    lock = FileLock(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=-1 if busy is None else _LOOK_SECONDS)
        except Timeout:
            raise RunError(str(busy)) from None
    return lock


@contextmanager
def hold(path: Path, busy: str | None = None) -> Iterator[None]:
    """Hold a lock while the block runs; see `acquire`."""
    lock = acquire(path, busy)
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
