"""Examples in an Arrow file: written in one pass, then memory-mapped, so they need no memory."""

from __future__ import annotations

import bisect
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, overload

import pyarrow as pa

from brim.examples import Example
from brim.tasks.base import example_bytes

BLOCK_BYTES = 4 * 2**20
"""About how much a record batch holds, and so what the writer keeps in memory."""

_MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("references", pa.list_(pa.string())),
        ("messages", pa.list_(_MESSAGE)),
        ("field", pa.list_(pa.int64(), 2)),
    ]
)


class ArrowWriter:
    """Writes examples in Arrow's IPC file format, a block at a time.

    Attributes:
        num_examples: how many were added.

    Args:
        sink: a binary file, or a buffer of pyarrow's.
    """

    def __init__(self, sink: IO[bytes] | pa.BufferOutputStream) -> None:
        self.num_examples = 0
        self._digest = hashlib.sha256()
        self._block: list[dict[str, Any]] = []
        self._block_bytes = 0
        self._file = pa.ipc.new_file(sink, _SCHEMA)

    @property
    def sha256(self) -> str:
        """`brim.tasks.base.example_digest` of what was added."""
        return self._digest.hexdigest()

    def add(self, example: Example) -> None:
        """Append an example."""
        content = example_bytes(example)
        self._digest.update(content)
        self._block.append({name: getattr(example, name) for name in _SCHEMA.names})
        self._block_bytes += len(content)
        self.num_examples += 1
        if self._block_bytes >= BLOCK_BYTES:
            self._flush()

    def close(self) -> None:
        """Write what is left and the end of the file; the sink stays open."""
        self._flush()
        self._file.close()

    def _flush(self) -> None:
        if self._block:
            self._file.write_batch(pa.RecordBatch.from_pylist(self._block, schema=_SCHEMA))
            self._block = []
            self._block_bytes = 0


class ArrowExamples(Sequence[Example]):
    """Random access to examples in an Arrow file; a slice is a view of the same file.

    Args:
        source: the file, which is memory-mapped, or a buffer.
        provenance: what `describe` reports of them.
    """

    def __init__(self, source: Path | pa.Buffer, provenance: Mapping[str, Any]) -> None:
        self.provenance = dict(provenance)
        opened = pa.memory_map(str(source)) if isinstance(source, Path) else source
        file = pa.ipc.open_file(opened)
        self._blocks = [file.get_batch(i) for i in range(file.num_record_batches)]
        self._ends = list(itertools.accumulate(block.num_rows for block in self._blocks))
        self._rows = range(self._ends[-1] if self._ends else 0)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> ArrowExamples: ...

    def __getitem__(self, index: int | slice) -> Example | ArrowExamples:
        if isinstance(index, slice):
            return self._view(self._rows[index])
        row = self._rows[index]
        block = bisect.bisect_right(self._ends, row)
        start = self._ends[block - 1] if block else 0
        return _example(self._blocks[block].slice(row - start, 1).to_pylist()[0])

    def __iter__(self) -> Iterator[Example]:
        # The mixin's own stops at IndexError, and would hide one of ours.
        return (self[i] for i in range(len(self)))

    def _view(self, rows: range) -> ArrowExamples:
        view = object.__new__(ArrowExamples)
        view._blocks, view._ends, view._rows = self._blocks, self._ends, rows
        view.provenance = dict(self.provenance)
        if rows != self._rows:
            # It is that of all rows in order.
            view.provenance.pop("sha256", None)
        return view


def _example(row: Mapping[str, Any]) -> Example:
    field = None if row["field"] is None else (row["field"][0], row["field"][1])
    references, messages = tuple(row["references"]), tuple(row["messages"])
    return Example(row["id"], row["prompt"], references, messages, field)
