"""Files of bytes, plain or compressed, whose faults are errors of one line."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, cast

from brim.errors import DataError, first_line

COMPRESSED = (".gz", ".zst")
"""Endings of compressed files."""


class RawFile:
    """An open file; `place` says in errors how far it was read, as `:17` does."""

    def __init__(self, path: Path, raw: IO[bytes], file: IO[bytes]) -> None:
        self.path = path
        self._raw, self._file = raw, file

    def position(self) -> int:
        """Return how many bytes were read, of the compressed file where it is one."""
        return self._raw.tell()

    def readline(self, limit: int, place: str) -> bytes:
        """Return a line with its end, or its first bytes; nothing at the end of the file."""
        try:
            return self._file.readline(limit)
        except Exception as error:  # of three libraries
            raise self._fault(error, place) from None

    def read(self, size: int, place: str) -> bytes:
        """Return so many bytes; fewer, or none, at the end of the file."""
        try:
            return self._file.read(size)
        except Exception as error:
            raise self._fault(error, place) from None

    def _fault(self, error: Exception, place: str) -> DataError:
        """What a failed read is to the user: a file of the system's, or a damaged archive."""
        if isinstance(error, OSError) and error.errno is not None:
            return DataError(f"{self.path}: cannot read: {error.strerror or error}")
        kind = "zstd" if self.path.name.lower().endswith(".zst") else "gzip"
        what = f"{self.path}{place}: damaged {kind} file"
        return DataError(f"{what}: {first_line(error)}; fetch it again")


@contextmanager
def open_raw(path: Path) -> Iterator[RawFile]:
    """Open a file for the block, decompressed by its ending.

    Raises:
        DataError: it cannot be opened.
    """
    with ExitStack() as stack:
        try:
            raw: IO[bytes] = stack.enter_context(path.open("rb"))
        except OSError as error:
            raise DataError(f"{path}: cannot read: {error.strerror or error}") from None
        name, file = path.name.lower(), raw
        if name.endswith(".gz"):
            file = cast("IO[bytes]", stack.enter_context(gzip.open(raw)))
        elif name.endswith(".zst"):
            # Imported here because it takes a tenth of a second that other files do not need.
            import pyarrow as pa

            stream = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd")
            file = stack.enter_context(io.BufferedReader(stream))
        yield RawFile(path, raw, file)


def file_identity(path: Path) -> list[Any]:
    """Return path, size and time of the last change, as JSON values."""
    status = path.stat()
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]
