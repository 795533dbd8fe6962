"""The values of a row: what is text, and what makes a row unusable."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from brim.tasks.templates import describe_columns

Row = Mapping[str, object]


class RowError(Exception):
    """A row that cannot be used.

    Attributes:
        reason: what the row is counted under, the same text for all rows with this fault; the
            detail, which follows it, is about this one row.
        column: what the row lacks altogether.
    """

    def __init__(self, reason: str, detail: str = "", column: str | None = None) -> None:
        super().__init__(reason + detail)
        self.reason, self.column = reason, column


NumberedRow = tuple[int, Row | RowError]


def value_of(row: Row, name: str) -> object:
    """Return the value of a column.

    Raises:
        RowError: the row has no such column.
    """
    if name not in row:
        raise RowError(f'no field "{name}"', describe_columns(name, row), column=name)
    return row[name]


def checked_text(value: object, what: str) -> str:
    """Return a value that is text which can be read and written.

    Raises:
        RowError: it is not; `what` names it.
    """
    if value is None:
        raise RowError(f"{what} is null or an empty cell")
    if not isinstance(value, str):
        raise RowError(f"{what} is {kind_of(value)}, not text")
    if not value.strip():
        raise RowError(f"{what} is empty")
    if "\0" in value:
        raise RowError(f"{what} has a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code = ord(value[error.start])
        raise RowError(f"{what} has half of a character", f", \\u{code:04x} alone") from None
    return value


def kind_of(value: object) -> str:
    """Return what errors call a value that is no text."""
    kinds = (
        *((bool, "true or false"), (int | float, "a number"), (list, "a list")),
        (bytes, "bytes"),
    )
    return next((name for kind, name in kinds if isinstance(value, kind)), "an object")


def checked_json(value: object, what: str) -> Any:
    """Return a value as JSON has it, less the keys that are null, which tables fill in.

    Raises:
        RowError: it is no JSON; `what` names it.
    """
    try:
        text = json.dumps(_without_nulls(value), ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise RowError(f"{what} is no JSON", f": {error}") from None
    return json.loads(text)


def _without_nulls(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
