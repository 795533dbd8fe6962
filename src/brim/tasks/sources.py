"""Where the user's rows come from: files of lines, read line by line, and tables.

A source yields each row with its number, or what is wrong with it; it never stops at a bad row and
never holds more than one row of a file in memory.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from brim.errors import DataError
from brim.tasks.cells import NumberedRow, RowError
from brim.tasks.json_array import array_rows, is_array, parse_row
from brim.tasks.raw_files import COMPRESSED, RawFile, file_identity, open_raw
from brim.tasks.rows import Source
from brim.tasks.tables import DatasetSource, ParquetSource, StreamedSource, is_saved

MAX_LINE_BYTES = 16 * 2**20
"""A longer line is a bad row: it is a file without line ends, which memory may not hold."""

_KINDS = {".jsonl": "", ".ndjson": "", ".json": "", ".csv": ",", ".tsv": "\t"}
_NAMES = ", ".join([*_KINDS, ".parquet"])
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def open_source(
    text: str,
    split: str,
    *,
    config: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
) -> Source:
    """Return the source that a setting names; where it is `streaming`, a data set is not copied.

    That is a file (.jsonl, .json, .ndjson, .csv, .tsv, each also with .gz or .zst, or .parquet), a
    folder that `datasets` wrote or can read, or the id of a data set on the Hugging Face hub. A
    split of the latter two is named behind a `#`, as in `org/name#validation`; where none is named,
    `split` is read.

    Raises:
        DataError: there is nothing of that name, or it cannot be read.
    """
    path = Path(text).expanduser()
    if path.suffix.lower() == ".parquet" and not path.is_dir():
        return ParquetSource(path)
    if path.is_file() or _suffix(path) in _KINDS:
        return FileSource(path)
    name, _, named_split = text.partition("#")
    name_a_file = f"name a file ({_NAMES}), or a folder that `datasets` can read"
    if not name.strip():
        raise DataError(f"{text!r} has no name; {name_a_file}")
    folder = Path(name).expanduser()
    if folder.is_dir() and not any(folder.iterdir()):
        raise DataError(f"{name}: an empty folder; {name_a_file}")
    if folder.is_dir() or (_HUB_ID.fullmatch(name) and not _looks_local(folder)):
        kind = StreamedSource if streaming and not is_saved(folder) else DatasetSource
        return kind(name, named_split or split, config=config, revision=revision)
    raise DataError(f"{text}: no such file or folder")


def find_file(folder: Path, stem: str) -> Path | None:
    """Return the file of rows of this name in a folder, whatever its ending, or None.

    Raises:
        DataError: there are several.
    """
    endings = [kind + zipped for kind in _KINDS for zipped in ("", *COMPRESSED)]
    found = [path for end in (*endings, ".parquet") if (path := folder / f"{stem}{end}").is_file()]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise DataError(f"{folder}: {names}: which one is it? leave one of them there")
    return found[0] if found else None


def is_file_of_rows(name: str) -> bool:
    """Return whether a name ends as files of rows do, be there such a file or not."""
    path = Path(name)
    return _suffix(path) in _KINDS or path.suffix.lower() == ".parquet"


def _looks_local(path: Path) -> bool:
    """Whether a name that might be the hub's is rather a path that was misspelt."""
    in_folder = len(path.parts) > 1
    return path.parent.is_dir() if in_folder else bool(path.suffix)


def _suffix(path: Path) -> str:
    name = path.name.lower()
    return Path(next((name.removesuffix(e) for e in COMPRESSED if name.endswith(e)), name)).suffix


class FileSource:
    """A file with one row a line (JSONL), a header and rows (CSV, TSV), or a JSON array of rows.

    Any of them may be compressed (.gz, .zst).

    Raises:
        DataError: it is missing, or its ending is none of those.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.name, self.label = path, str(path), path.name
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        if _suffix(path) not in _KINDS:
            kinds = f"{_NAMES}, all but the last also with .gz or .zst"
            raise DataError(f"{path}: cannot tell what is in it; name it {kinds}")
        self._delimiter = _KINDS[_suffix(path)]
        self._is_array = _suffix(path) == ".json" and is_array(path)
        self._position = 0

    def identity(self) -> list[Any]:
        """Return path, size and time of the last change."""
        return file_identity(self.path)

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
        """Return `file:line`, or of an array the row as Python indexes it."""
        return f"{self.path}[{number}]" if self._is_array else f"{self.path}:{number}"

    def rows(self, columns: Sequence[str]) -> Iterator[NumberedRow]:
        """Yield each row, whole, with the number of its first line; blank lines are no rows.

        An empty cell, and one of white space alone, is None. Rows of an array are numbered from 0.

        Raises:
            DataError: the file cannot be read to its end.
        """
        if self._is_array:
            with open_raw(self.path) as file:
                for row in array_rows(file, MAX_LINE_BYTES):
                    self._position = file.position()
                    yield row
            return
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
            first_line = lines.begin_row()
            fields: list[str] | None = []
            problem = None
            try:
                fields = next(reader, None)
            except csv.Error as error:
                problem = RowError("broken CSV", f": {error}{_QUOTES * lines.several}")
            # Commas are in prose too, tabs hardly ever.
            if self._delimiter == "\t" and lines.are_rows("\t", len(header)):
                problem = RowError("open quote", f": a cell goes on over the next row{_QUOTES}")
            found = lines.take_problem()
            if problem and not found:  # not also the rows behind it, which an open quote takes in
                lines.put_back()
            if problem := found or problem:
                yield first_line, problem
            elif fields is None:
                return
            elif len(fields) == len(header):
                cells = (field if field.strip() else None for field in fields)
                yield first_line, dict(zip(header, cells, strict=True))
            elif fields:
                counts = f": {len(fields)}, but the header has {len(header)}"
                yield first_line, RowError("wrong number of columns", counts)


_QUOTES = "; a field that begins with a quote must end with one, and double those inside"


class _Lines:
    """The lines of an open file as text. What is wrong with one is kept until it is asked for."""

    def __init__(self, file: RawFile) -> None:
        self.number = 0
        self.position = file.position
        self._file = file
        self._problem: RowError | None = None
        self._row: list[str] = []  # the lines of it that were read
        self._again: deque[str] = deque()

    def begin_row(self) -> int:
        """Return the number of the next line, with which a row begins."""
        self._row = []
        return self.number + 1

    @property
    def several(self) -> bool:
        """Whether the row has more than one line."""
        return len(self._row) > 1

    def are_rows(self, delimiter: str, columns: int) -> bool:
        """Return whether the row has several lines, of which each could be one by itself.

        Of a single column nothing tells a line of a cell from a row.
        """
        cells = {line.count(delimiter) + 1 for line in self._row}
        return self.several and columns > 1 and cells == {columns}

    def put_back(self) -> None:
        """Have the lines behind the first of the row read again."""
        behind = self._row[1:]
        self.number -= len(behind)
        self._again.extendleft(reversed(behind))

    def take_problem(self) -> RowError | None:
        """What was wrong with the lines since the last call, if anything."""
        problem, self._problem = self._problem, None
        return problem

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._again:
            self.number += 1
            text = self._again.popleft()
        else:
            text = self._next()
        self._row.append(text)
        return text

    def _next(self) -> str:
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
        return self._file.readline(MAX_LINE_BYTES + 1, f":{self.number + 1}")


@contextmanager
def _open_lines(path: Path) -> Iterator[_Lines]:
    with open_raw(path) as file:
        yield _Lines(file)


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
        lines.begin_row()  # which is not read again
        if problem := lines.take_problem():
            yield lines.number, problem
        elif not text.isspace():
            yield lines.number, parse_row(text)
