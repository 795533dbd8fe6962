"""Examples in an Arrow file: written in one pass, then memory-mapped, so they need no memory."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from brim.examples import Example
from brim.support.files import atomic_open, disk_errors, read_json
from brim.support.seals import find_damage, seal
from brim.tasks.base import Rows, Split, example_bytes

logger = logging.getLogger(__name__)

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
        ("teacher", pa.string()),
    ]
)


class ArrowWriter:
    """Appends examples to a binary file in Arrow's IPC format, a block at a time."""

    def __init__(self, file: IO[bytes]) -> None:
        self._num_examples = 0
        self._digest = hashlib.sha256()
        self._block: list[dict[str, Any]] = []
        self._block_bytes = 0
        self._file = pa.ipc.new_file(file, _SCHEMA)

    def __len__(self) -> int:
        return self._num_examples

    def append(self, example: Example) -> None:
        """Write an example behind the others."""
        content = example_bytes(example)
        self._digest.update(content)
        self._block.append({name: getattr(example, name) for name in _SCHEMA.names})
        self._block_bytes += len(content)
        self._num_examples += 1
        if self._block_bytes >= BLOCK_BYTES:
            self._flush()

    def close(self) -> str:
        """Write the end of the format; returns the `brim.tasks.base.example_digest` of all."""
        self._flush()
        self._file.close()
        return self._digest.hexdigest()

    def _flush(self) -> None:
        if self._block:
            self._file.write_batch(pa.RecordBatch.from_pylist(self._block, schema=_SCHEMA))
            self._block = []
            self._block_bytes = 0


class ArrowExamples(Rows):
    """Random access to examples in a memory-mapped Arrow file; `provenance` is for `describe`."""

    def __init__(self, path: Path, provenance: Mapping[str, Any]) -> None:
        self.provenance = dict(provenance)
        file = pa.ipc.open_file(pa.memory_map(str(path)))
        self._blocks = [file.get_batch(i) for i in range(file.num_record_batches)]
        self._ends = list(itertools.accumulate(block.num_rows for block in self._blocks))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def row(self, number: int) -> Example:
        """See `Rows.row`."""
        block = bisect.bisect_right(self._ends, number)
        start = self._ends[block - 1] if block else 0
        return _example(self._blocks[block].slice(number - start, 1).to_pylist()[0])


def _example(row: Mapping[str, Any]) -> Example:
    field = None if row["field"] is None else (row["field"][0], row["field"][1])
    references, messages = tuple(row["references"]), tuple(row["messages"])
    teacher = row.get("teacher")  # which a copy of an older version has not
    return Example(row["id"], row["prompt"], references, messages, field, teacher=teacher)


def read_copy(
    folder: Path,
    key: str,
    splits: Sequence[Split],
    split: Split,
    write: Callable[[Mapping[Split, ArrowWriter]], Mapping[Split, Mapping[str, Any]]],
) -> ArrowExamples:
    """Return a split from the copy in a folder; it is made where there is none, or a damaged one.

    Its file is compared with its SHA-256 before it is mapped, for a damaged one can end the
    process.

    Args:
        folder: where copies are kept.
        key: the name of the copy: of all that `write` depends on.
        splits: those that are written together.
        split: the one of them that is wanted.
        write: appends the examples of each split, and returns what is known of each.

    Raises:
        RunError: the copy cannot be written.
    """
    names = {name: f"{key}.{name}.arrow" for name in splits}
    manifest = f"{key}.json"  # written last: what it names is whole
    damage = find_damage(folder, lambda name: name == names[split], manifest=manifest)
    if damage is None and {*read_json(folder / manifest)["files"]} != {*names.values()}:
        damage = f"{manifest} is of something else"
    if damage is not None:
        if (folder / manifest).exists():
            logger.warning("%s: %s; reading the data again", folder, damage)
        with _new_folder(folder):
            with ExitStack() as files:
                writers = {
                    name: ArrowWriter(files.enter_context(atomic_open(folder / file)))
                    for name, file in names.items()
                }
                facts = write(writers)
                hashes = {name: {"sha256": writer.close()} for name, writer in writers.items()}
            known = {name: {**facts[name], **hashes[name]} for name in splits}
            seal(folder, {"splits": known}, files=names.values(), manifest=manifest)
    return ArrowExamples(folder / names[split], read_json(folder / manifest)["splits"][split])


@contextmanager
def _new_folder(folder: Path) -> Iterator[None]:
    """A folder with its parents for the block; those that were made for it go if it fails."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for path in made:
            with suppress(OSError):
                path.rmdir()
        raise
