"""Where the user's rows come from: JSONL and CSV files, read line by line, and `datasets`.

A source yields each row with its number, or what is wrong with it; it never stops at a bad row and
never holds more than one row of a file in memory.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, cast

from brim.errors import DataError
from brim.tasks.rows import NumberedRow, Row, RowError, Source

MAX_LINE_BYTES = 16 * 2**20
"""A longer line is a bad row: it is a file without line ends, which memory may not hold."""

_KINDS = {".jsonl": "", ".ndjson": "", ".json": "", ".csv": ",", ".tsv": "\t"}
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_ROWS_PER_READ = 1000
_NAME_A_FILE = f"name a file ({', '.join(_KINDS)}), or a folder that `datasets` can read"


def open_source(
    text: str, split: str, *, config: str | None = None, revision: str | None = None
) -> Source:
    """Return the source that a setting names.

    That is a file (.jsonl, .json, .ndjson, .csv, .tsv, each also with .gz), a folder that
    `datasets` wrote or can read, or the id of a data set on the Hugging Face hub. A split of the
    latter two is named behind a `#`, as in `org/name#validation`; where none is named, `split` is
    read.

    Raises:
        DataError: there is nothing of that name, or it cannot be read.
    """
    path = Path(text).expanduser()
    if path.is_file() or _suffix(path) in _KINDS:
        return FileSource(path)
    name, _, named_split = text.partition("#")
    if not name.strip():
        raise DataError(f"{text!r} has no name; {_NAME_A_FILE}")
    folder = Path(name).expanduser()
    if folder.is_dir() or (_HUB_ID.fullmatch(name) and not _looks_local(folder)):
        return DatasetSource(name, named_split or split, config=config, revision=revision)
    raise DataError(f"{text}: no such file or folder")


def find_file(folder: Path, stem: str) -> Path | None:
    """Return the file of rows of this name in a folder, whatever its ending, or None.

    Raises:
        DataError: there are several.
    """
    endings = [kind + zipped for kind in _KINDS for zipped in ("", ".gz")]
    found = [path for end in endings if (path := folder / f"{stem}{end}").is_file()]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise DataError(f"{folder}: {names}: which one is it? leave one of them there")
    return found[0] if found else None


def _looks_local(path: Path) -> bool:
    """Whether a name that might be the hub's is rather a path that was misspelt."""
    in_folder = len(path.parts) > 1
    return path.parent.is_dir() if in_folder else bool(path.suffix)


def _suffix(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


class FileSource:
    """A file with one row a line (JSONL) or a header and rows (CSV, TSV), plain or gzipped.

    Raises:
        DataError: it is missing, or its ending is none of those.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.name, self.label = path, str(path), path.name
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        if _suffix(path) not in _KINDS:
            kinds = ", ".join(_KINDS)
            raise DataError(f"{path}: cannot tell what is in it; name it {kinds}, also with .gz")
        self._delimiter = _KINDS[_suffix(path)]
        self._position = 0

    def identity(self) -> list[Any]:
        """Return path, size and time of the last change."""
        status = self.path.stat()
        return [str(self.path.resolve()), status.st_size, status.st_mtime_ns]

    def columns(self) -> tuple[str, ...] | None:
        """Return the header of a CSV file; lines of a JSONL file may have different fields.

        Raises:
            DataError: the header is missing, or names a column twice.
        """
        if not self._delimiter:
            return None
        with _open_lines(self.path) as lines:
            return _read_header(self.path, self._reader(lines), lines)

    def where(self, number: int) -> str:
        """Return `file:line`."""
        return f"{self.path}:{number}"

    def rows(self, columns: Sequence[str]) -> Iterator[NumberedRow]:
        """Yield each row, whole, with the number of its first line; blank lines are no rows.

        An empty cell, and one of white space alone, is None.

        Raises:
            DataError: the file cannot be read to its end.
        """
        with _open_lines(self.path) as lines:
            rows = self._csv_rows(lines) if self._delimiter else _jsonl_rows(lines)
            for row in rows:
                self._position = lines.position()
                yield row

    def position(self) -> tuple[int, int]:
        """Return bytes, of the compressed file where it is one."""
        return self._position, self.path.stat().st_size

    def _reader(self, lines: _Lines) -> Iterator[list[str]]:
        # The limit is the module's own and guards memory; ours does that too. It is never lowered.
        csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))
        return csv.reader(lines, delimiter=self._delimiter, strict=True)

    def _csv_rows(self, lines: _Lines) -> Iterator[NumberedRow]:
        reader = self._reader(lines)
        header = _read_header(self.path, reader, lines)
        while True:
            first_line = lines.number + 1
            fields: list[str] | None = []
            problem = None
            try:
                fields = next(reader, None)
            except csv.Error as error:
                problem = RowError("broken CSV", f": {error}")
            problem = lines.take_problem() or problem
            if problem:
                yield first_line, problem
            elif fields is None:
                return
            elif len(fields) == len(header):
                cells = (field if field.strip() else None for field in fields)
                yield first_line, dict(zip(header, cells, strict=True))
            elif fields:
                counts = f": {len(fields)}, but the header has {len(header)}"
                yield first_line, RowError("wrong number of columns", counts)


class _Lines:
    """The lines of an open file as text. What is wrong with one is kept until it is asked for."""

    def __init__(self, path: Path, raw: IO[bytes], file: IO[bytes]) -> None:
        self.number = 0
        self._path, self._raw, self._file = path, raw, file
        self._problem: RowError | None = None

    def position(self) -> int:
        return self._raw.tell()

    def take_problem(self) -> RowError | None:
        """What was wrong with the lines since the last call, if anything."""
        problem, self._problem = self._problem, None
        return problem

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._read()
        if not line:
            raise StopIteration
        self.number += 1
        if len(line) > MAX_LINE_BYTES:
            self._note(RowError(f"line longer than {MAX_LINE_BYTES / 2**20:g} MiB"))
            while line and not line.endswith(b"\n"):
                line = self._read()
            return "\n"
        if self.number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if b"\0" in line:
            self._note(RowError("NUL byte", f" at byte {line.index(0) + 1} of the line"))
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            byte = f": 0x{line[error.start]:02x} at byte {error.start + 1} of the line"
            self._note(RowError("invalid UTF-8", byte))
            return line.decode(errors="replace")

    def _note(self, problem: RowError) -> None:
        self._problem = self._problem or problem

    def _read(self) -> bytes:
        try:
            return self._file.readline(MAX_LINE_BYTES + 1)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            where = f"{self._path}:{self.number + 1}"
            raise DataError(f"{where}: damaged gzip file: {error}; fetch it again") from None
        except OSError as error:
            raise DataError(f"{self._path}: cannot read: {error.strerror or error}") from None


@contextmanager
def _open_lines(path: Path) -> Iterator[_Lines]:
    with ExitStack() as stack:
        try:
            raw = stack.enter_context(path.open("rb"))
        except OSError as error:
            raise DataError(f"{path}: cannot read: {error.strerror or error}") from None
        compressed = path.name.lower().endswith(".gz")
        file = stack.enter_context(gzip.open(raw)) if compressed else raw
        yield _Lines(path, raw, cast("IO[bytes]", file))


def _read_header(path: Path, reader: Iterator[list[str]], lines: _Lines) -> tuple[str, ...]:
    try:
        header = next((fields for fields in reader if fields), None)
    except csv.Error as error:
        raise DataError(f"{path}:1: the header is broken CSV: {error}") from None
    if problem := lines.take_problem():
        raise DataError(f"{path}:{lines.number}: the header has a fault: {problem}")
    if header is None:
        raise DataError(f"{path}: empty; a CSV file opens with the names of its columns")
    for name in header:
        if header.count(name) > 1 or not name:
            fault = f"names {name!r} twice" if name else "has a column without a name"
            raise DataError(f"{path}:{lines.number}: the header {fault}; rename one")
    return tuple(header)


def _jsonl_rows(lines: _Lines) -> Iterator[NumberedRow]:
    for text in lines:
        if problem := lines.take_problem():
            yield lines.number, problem
        elif not text.isspace():
            yield lines.number, _parse_object(text)


def _parse_object(text: str) -> Row | RowError:
    try:
        value = _DECODER.decode(text)
    except RowError as problem:
        return problem
    except json.JSONDecodeError as error:
        return RowError("broken JSON", f": {error.msg} at character {error.pos + 1}")
    except (ValueError, RecursionError) as error:
        return RowError("broken JSON", f": {error}")
    if not isinstance(value, dict):
        return RowError("not a JSON object", '; each line must be one, as in {"prompt": "…"}')
    return value


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RowError("key given twice", f": {twice!r}")
    return row


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys)


class DatasetSource:
    """A data set of the `datasets` library: a folder of this machine, or an id on the hub.

    A slice as in `train[:10%]` is a split where it is not a folder that `save_to_disk` wrote.

    Raises:
        DataError: it cannot be found or read.
    """

    def __init__(
        self, name: str, split: str, *, config: str | None = None, revision: str | None = None
    ) -> None:
        self.name = f"{name}#{split}"
        self.label = split
        self._position = 0
        folder = Path(name).expanduser()
        if folder.is_dir() and not any(folder.iterdir()):
            raise DataError(f"{name}: an empty folder; {_NAME_A_FILE}")
        # Imported here because it takes a second that no other task needs.
        import datasets

        saved = any((folder / file).is_file() for file in ("state.json", "dataset_dict.json"))
        try:
            if saved:
                data = datasets.load_from_disk(str(folder))
            else:
                path = str(folder) if folder.is_dir() else name
                data = datasets.load_dataset(path, config, split=split, revision=revision)
        except Exception as error:  # whatever the library, the network or a file format says
            said = (str(error).splitlines() or [type(error).__name__])[0]
            problem = f"no file or folder, and on the hub: {said}"
            if folder.is_dir():
                problem = f"cannot be read: {said}; {_NAME_A_FILE}"
            raise DataError(f"{self.name}: {problem}") from error
        if isinstance(data, datasets.DatasetDict):
            if split not in data:
                raise DataError(f"{self.name}: no such split; splits: {', '.join(data)}")
            data = data[split]
        self._data = data.with_format(None)

    def identity(self) -> list[Any]:
        """Return the fingerprint that `datasets` keeps of what is in it."""
        return [self.name, self._data._fingerprint]

    def columns(self) -> tuple[str, ...]:
        """Return the columns of the table."""
        return tuple(self._data.column_names)

    def where(self, number: int) -> str:
        """Return the row as Python indexes it."""
        return f"{self.name}[{number}]"

    def rows(self, columns: Sequence[str]) -> Iterator[NumberedRow]:
        """Yield the columns of each row with its index; others (images, …) are not decoded."""
        self._position = 0
        data = self._data.select_columns([name for name in self.columns() if name in columns])
        for table in data.iter(batch_size=_ROWS_PER_READ):
            for values in zip(*table.values(), strict=True):
                row: Mapping[str, object] = dict(zip(table, values, strict=True))
                yield self._position, row
                self._position += 1

    def position(self) -> tuple[int, int]:
        """Return rows."""
        return self._position, len(self._data)
