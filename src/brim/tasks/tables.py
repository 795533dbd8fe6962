"""Tables as sources of rows: Parquet files, and data sets of the `datasets` library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from brim.errors import DataError, first_line
from brim.tasks.cells import NumberedRow, RowError
from brim.tasks.raw_files import file_identity

_ROWS_PER_READ = 1000


class ParquetSource:
    """A Parquet file, read a batch of rows at a time.

    Raises:
        DataError: it is missing, or no Parquet file.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.name, self.label = path, str(path), path.name
        self._position = 0
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        # Imported here because it takes a tenth of a second that other files do not need.
        import pyarrow.parquet as pq

        try:
            self._file = pq.ParquetFile(path)
        except Exception as error:  # whatever the library says of the format
            raise DataError(f"{path}: cannot be read as Parquet: {first_line(error)}") from None
        names = self.columns()
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise DataError(f"{path}: has two columns {twice!r}; rename one")

    def identity(self) -> list[Any]:
        """Return path, size and time of the last change."""
        return file_identity(self.path)

    def columns(self) -> tuple[str, ...]:
        """Return the columns of the table."""
        return tuple(self._file.schema_arrow.names)

    def where(self, number: int) -> str:
        """Return the row as Python indexes it."""
        return f"{self.path}[{number}]"

    def rows(self, columns: Sequence[str]) -> Iterator[NumberedRow]:
        """Yield the columns of each row with its number, from 0; others are not read.

        Raises:
            DataError: the file is damaged.
        """
        self._position = 0
        names = [name for name in self.columns() if name in columns]
        batches = self._file.iter_batches(batch_size=_ROWS_PER_READ, columns=names)
        while True:
            try:
                batch = next(batches, None)
            except Exception as error:
                where = self.where(self._position)
                raise DataError(f"{where}: damaged Parquet file: {first_line(error)}") from None
            if batch is None:
                return
            for row in _batch_rows(batch):
                yield self._position, row
                self._position += 1

    def position(self) -> tuple[int, int]:
        """Return rows."""
        return self._position, self._file.metadata.num_rows


def _batch_rows(batch: Any) -> Iterator[Mapping[str, object] | RowError]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:  # before any row of the batch
        for number in range(batch.num_rows):
            try:
                (row,) = batch.slice(number, 1).to_pylist()
            except UnicodeDecodeError as error:
                yield RowError("invalid UTF-8", f": 0x{error.object[error.start]:02x}")
            else:
                yield row


class _OfSplit:
    """What the two ways of reading a data set of `datasets` have in common."""

    def __init__(self, name: str, split: str) -> None:
        self.name, self.label, self._position = f"{name}#{split}", split, 0

    def where(self, number: int) -> str:
        """Return the row as Python indexes it."""
        return f"{self.name}[{number}]"


class DatasetSource(_OfSplit):
    """A data set of the `datasets` library: a folder of this machine, or an id on the hub.

    A slice as in `train[:10%]` is a split where it is not a folder that `save_to_disk` wrote.

    Raises:
        DataError: it cannot be found or read.
    """

    def __init__(
        self, name: str, split: str, *, config: str | None = None, revision: str | None = None
    ) -> None:
        super().__init__(name, split)
        folder = Path(name).expanduser()
        # Imported here because it takes a second that no other task needs.
        import datasets

        try:
            if is_saved(folder):
                data = datasets.load_from_disk(str(folder))
            else:
                path = str(folder) if folder.is_dir() else name
                data = datasets.load_dataset(path, config, split=split, revision=revision)
        except Exception as error:  # whatever the library, the network or a file format says
            raise _refusal(self.name, folder, error) from error
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


class StreamedSource(_OfSplit):
    """A data set of the `datasets` library that is read as it comes, and not downloaded before.

    Raises:
        DataError: it cannot be found or opened, or its split is a slice.
    """

    def __init__(
        self, name: str, split: str, *, config: str | None = None, revision: str | None = None
    ) -> None:
        super().__init__(name, split)
        folder = Path(name).expanduser()
        # Imported here because it takes a second that no other task needs.
        import datasets

        try:
            path = str(folder) if folder.is_dir() else name
            builder = datasets.load_dataset_builder(path, config, revision=revision)
            self._data = builder.as_streaming_dataset(split=split)
        except Exception as error:  # whatever the library, the network or a file format says
            raise _refusal(self.name, folder, error) from error
        self._identity = [self.name, builder.config_id, str(builder.hash)]
        known = (builder.info.splits or {}).get(split)
        self._num_rows = int(known.num_examples or 0) if known else 0

    def identity(self) -> list[Any]:
        """Return the name, and what `datasets` calls this version of its files."""
        return self._identity

    def columns(self) -> tuple[str, ...] | None:
        """Return the columns of the table, where they are known before the first row."""
        names = self._data.column_names
        return None if names is None else tuple(names)

    def rows(self, columns: Sequence[str]) -> Iterator[NumberedRow]:
        """Yield each row with its index.

        Raises:
            DataError: the stream breaks off, or a file in it is damaged.
        """
        self._position, names = 0, self.columns()
        data = self._data
        if names is not None:
            data = data.select_columns([name for name in names if name in columns])
        rows = iter(data)
        while True:
            try:
                row = next(rows, None)
            except Exception as error:  # whatever the library, the network or a file format says
                where = self.where(self._position)
                raise DataError(f"{where}: cannot be read: {first_line(error)}") from error
            if row is None:
                return
            yield self._position, row
            self._position += 1

    def position(self) -> tuple[int, int]:
        """Return rows, 0 for as many as there are where that is not known."""
        return self._position, self._num_rows


def is_saved(folder: Path) -> bool:
    """Return whether `save_to_disk` wrote a folder."""
    return any((folder / file).is_file() for file in ("state.json", "dataset_dict.json"))


def _refusal(name: str, folder: Path, error: Exception) -> DataError:
    said = first_line(error)
    if folder.is_dir():
        hint = "name a file, or a folder that `datasets` can read"
        return DataError(f"{name}: cannot be read: {said}; {hint}")
    return DataError(f"{name}: no file or folder, and on the hub: {said}")
