"""JSON lines: a file of rows that grows, with a digest of all that is in it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from brim.errors import RunError
from brim.support.files import disk_errors, fsync_directory, read_json, write_sealed_json
from brim.support.seals import beginning_damage, digest_of_beginning

_T = TypeVar("_T")

BAD_ROW = (KeyError, TypeError, ValueError, AttributeError, RecursionError)
"""What Python raises for JSON of another shape than we write, or for half a character."""


class JsonLines:
    """One JSON object a line; rows are appended, and a tail can be cut off.

    Args:
        path: the file; what is in it already counts.
        recorded: keep a record of the file beside it, durable after each `append`, by which
            `repair` knows what a stop left half-written.
    """

    def __init__(self, path: Path, *, recorded: bool = False) -> None:
        self.path = path
        self._record = path.with_suffix(".json") if recorded else None
        self._digest: Any = None  # of what is in the file, once that is known
        self._bytes = 0

    @property
    def record(self) -> dict[str, Any]:
        """Size and SHA-256 of what is in the file; 0 bytes where there is none."""
        self._know()
        return {"bytes": self._bytes, "sha256": self._digest.hexdigest()}

    def append(self, *rows: Mapping[str, Any]) -> None:
        """Write rows behind the end.

        Raises:
            RunError: the file cannot be written.
            ValueError: a number that is not finite, which JSON does not have.
        """
        self._know()
        lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        data = "".join(lines).encode()
        with disk_errors(self.path, len(data)), self.path.open("ab") as file:
            file.write(data)
            if self._record is not None:
                file.flush()
                os.fsync(file.fileno())
        self._digest.update(data)
        self._bytes += len(data)
        if self._record is not None:
            write_sealed_json(self._record, {"record": self.record})

    def rows(
        self,
        parse: Callable[[Any], _T] = lambda row: row,
        *,
        at: Collection[int] | None = None,
        growing: bool = False,
        remedy: str = "mend the line",
    ) -> Iterator[_T]:
        """Yield the rows one after the other; none where there is no file.

        Args:
            parse: makes of a row what is wanted; its usual errors count as damage.
            at: numbers of the wanted rows, from 0; the other lines are not parsed. None for all.
            growing: another process may be writing; an unfinished last line is left out.
            remedy: ends the message about a damaged line.

        Raises:
            RunError: a line is damaged; the text names it.
        """
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for number, line in enumerate(file):
                if (at is not None and number not in at) or (growing and line[-1:] != b"\n"):
                    continue
                try:
                    row = parse(json.loads(line))
                except BAD_ROW as error:
                    raise RunError(
                        f"{self.path}:{number + 1}: damaged: {error!r}; {remedy}"
                    ) from None
                yield row

    def offsets(self) -> npt.NDArray[np.int64]:
        """Return where each whole line begins, in bytes, and where the last of them ends."""
        lengths = [0]
        if self.path.exists():
            with self.path.open("rb") as file:
                lengths += [len(line) for line in file if line.endswith(b"\n")]
        return np.cumsum(lengths, dtype=np.int64)

    def row_at(self, offset: int) -> Any:
        """Return the row whose line begins at `offset`."""
        with self.path.open("rb") as file:
            file.seek(offset)
            return json.loads(file.readline())

    def cut(self, size: int) -> None:
        """Keep the first `size` bytes, of as many at least."""
        if self.path.exists():
            if self._record is not None:  # first: a file that is shorter than it counts as damaged
                sha256 = digest_of_beginning(self.path, size).hexdigest()
                record = {"bytes": size, "sha256": sha256}
                write_sealed_json(self._record, {"record": record})
            with disk_errors(self.path), self.path.open("rb+") as file:
                file.truncate(size)
        self._digest = None

    def cut_after(self, key: str, last: int) -> None:
        """Keep the rows whose `key`, which rises from row to row, is at most `last`.

        Raises:
            RunError: a line before the last one is damaged.
        """
        offsets = self.offsets()
        keep, size = 0, self.path.stat().st_size if self.path.exists() else 0
        for number, keep in enumerate(offsets[:-1].tolist()):
            try:
                if self.row_at(keep)[key] > last:
                    break
            except BAD_ROW:
                if offsets[number + 1] < size:
                    raise RunError(f"{self.path}:{number + 1}: damaged; mend the line") from None
                break
        else:
            keep = int(offsets[-1])
        self.cut(keep)

    def sync(self) -> None:
        """Force the rows to the disk."""
        if self.path.exists():
            with disk_errors(self.path), self.path.open("rb") as file:
                os.fsync(file.fileno())
                fsync_directory(self.path.parent)

    def repair(self) -> str | None:
        """Cut a recorded file back to its record; to nothing, where it is not what was written.

        Returns:
            Why nothing was kept; None where the record is met.

        Raises:
            RunError: the file cannot be written.
        """
        assert self._record is not None
        damage, record = None, {"bytes": 0}
        try:
            if self._record.exists():
                record = read_json(self._record)["record"]
                damage = beginning_damage(self.path, record)
            elif self.path.exists():
                damage = f"has no {self._record.name} beside it"
        except (RunError, KeyError, TypeError) as error:
            damage = f"cannot be compared with {self._record.name} ({error})"
        self.cut(0 if damage else record["bytes"])
        return damage

    def remove(self) -> None:
        """Delete the file and its record."""
        self.path.unlink(missing_ok=True)
        if self._record is not None:
            self._record.unlink(missing_ok=True)

    def _know(self) -> None:
        if self._digest is None:
            self._bytes = self.path.stat().st_size if self.path.exists() else 0
            self._digest = digest_of_beginning(self.path, self._bytes)
