"""Rows of the user's data: which columns make an example, and which rows cannot be one."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from textwrap import shorten
from typing import Any, Literal, Protocol

from brim.errors import DataError
from brim.examples import Example
from brim.support.numerals import REFERENCE_ANSWERS
from brim.tasks.base import Progress
from brim.tasks.templates import Template, check_columns, describe_columns

Row = Mapping[str, object]
OnBadRow = Literal["error", "skip"]

_ROWS_PER_REPORT = 1000
_ROWS_TO_LOOK_AT = 1000  # for a column that the first row lacks


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


class Source(Protocol):
    """Rows of data that can be read again and again.

    Errors call it by its `name`; ids of its rows begin with its `label`.
    """

    name: str
    label: str

    def identity(self) -> list[Any]:
        """Return JSON values that change when the rows do."""

    def columns(self) -> tuple[str, ...] | None:
        """Return the names of the columns, where the whole source has the same ones."""

    def where(self, number: int) -> str:
        """Return what errors call a row."""

    def rows(self, columns: Sequence[str]) -> Iterator[NumberedRow]:
        """Yield each row with its number, in order: those of `columns` that it has, or more.

        Raises:
            DataError: the source cannot be read to its end.
        """

    def position(self) -> tuple[int, int]:
        """Return how much of the source was read, and how much there is."""


@dataclass(frozen=True)
class Columns:
    """Which columns of a row become which part of an example.

    Attributes:
        template: renders the prompt; None where `messages` is given.
        messages: column with a list of `{role, content}` objects.
        targets: columns with the references: text, or a list of texts; of several, some may be
            null. Without any, a last message of the assistant's is the reference.
        optional_target: a row may lack its target, or hold null.
        id: column with the row's id, text or a whole number; None for the row's number.
        optional_id: a row may lack its id, or hold null: it has its number then.
        metrics: what is measured; where one of them compares answers, each reference must have one.
        teacher: column with the name of the teacher that scores the row; None for none.
    """

    template: Template | None
    messages: str | None = None
    targets: tuple[str, ...] = ()
    optional_target: bool = False
    id: str | None = None
    optional_id: bool = False
    metrics: tuple[str, ...] = ()
    teacher: str | None = None

    @property
    def required(self) -> tuple[str, ...]:
        """Columns that every row must have."""
        prompt = self.template.fields if self.template else (self.messages,)
        targets = () if self.optional_target else self.targets
        row_id = None if self.optional_id else self.id
        return tuple(name for name in (*prompt, *targets, row_id, self.teacher) if name)

    @property
    def used(self) -> tuple[str, ...]:
        """Columns that are read where there are any."""
        own = () if self.id is None else (self.id,)
        return tuple(dict.fromkeys((*self.required, *self.targets, *own)))

    def has_id(self, row: Row | RowError) -> bool:
        """Return whether a row's id is its own, and not its number."""
        if self.id is None or isinstance(row, RowError):
            return False
        return not (self.optional_id and row.get(self.id) is None)

    def example(self, row: Row | RowError, default_id: str) -> Example:
        """Return the example that a row describes.

        Raises:
            RowError: a field is missing or cannot be used; or that is what the row was read as.
        """
        if isinstance(row, RowError):
            raise row
        example_id = _id(row, self.id) if self.id and self.has_id(row) else default_id
        prompt, field = "", None
        messages: tuple[Mapping[str, str], ...] = ()
        reply: tuple[str, ...] = ()
        if self.template:
            texts = {
                name: _checked_text(_value(row, name), f'field "{name}"')
                for name in self.template.fields
            }
            prompt, field = self.template.render(texts), self.template.longest(texts)
        elif self.messages:
            messages, reply = _messages(row, self.messages)
        references = tuple(self._references(row))
        if reply and self.targets:
            raise RowError(
                f'field "{self.messages}" ends with the assistant\'s message',
                ", which would be the target, but a target column is set too",
            )
        for text in references or reply:
            self._check_answer(text)
        teacher = None
        if self.teacher:
            teacher = _checked_text(_value(row, self.teacher), f'field "{self.teacher}"')
        return Example(example_id, prompt, references or reply, messages, field, teacher=teacher)

    def _references(self, row: Row) -> Iterator[str]:
        found = [self.optional_target or _value(row, name) is not None for name in self.targets]
        if len(found) > 1 and not any(found):
            names = ", ".join(f'"{name}"' for name in self.targets)
            raise RowError(f"all of the fields {names} are null or empty cells")
        for name in self.targets:
            if row.get(name) is None and (self.optional_target or any(found)):
                continue
            value = _value(row, name)
            if not isinstance(value, list):
                yield _checked_text(value, f'field "{name}"')
            elif not value:
                raise RowError(f'field "{name}" is an empty list')
            else:
                yield from (_checked_text(item, f'an item of field "{name}"') for item in value)

    def _check_answer(self, reference: str) -> None:
        for metric in self.metrics:
            read = REFERENCE_ANSWERS.get(metric)
            if read is not None and read(reference) is None:
                raise RowError(
                    f"a reference has no answer for {metric}",
                    f": {shorten(reference, 60)!r} must be one number, or end in '#### <number>'",
                )


def read_examples(
    source: Source,
    columns: Columns,
    *,
    on_bad_row: OnBadRow,
    skipped: Counter[str],
    on_progress: Progress | None = None,
) -> Iterator[Example]:
    """Yield the examples of a source, each row of it checked.

    `skipped` counts the rows that are left out, by reason; `on_progress` is called now and then.

    Raises:
        ConfigError: the source has not the columns.
        DataError: a bad row, named as `file:line: reason`; or not a single good one.
    """
    names = source.columns()
    if names is not None:
        check_columns(columns.required, names, source.name)
    # Eight bytes of each id: ids may be long, and must all be in memory.
    seen: set[bytes] = set()
    num_rows, first_problem, rows = 0, "", source.rows(columns.used)
    for number, row in rows:
        if on_progress and num_rows % _ROWS_PER_REPORT == 0:
            on_progress(source.name, *source.position())
        num_rows += 1
        try:
            example = columns.example(row, default_id=f"{source.label}:{number}")
            if columns.has_id(row):
                _check_new(example.id, seen)
        except RowError as problem:
            text = f"{source.where(number)}: {problem}"
            if on_bad_row == "error":
                remedy = "mend the row, or leave bad rows out with task.on_bad_row=skip"
                others = islice(rows, _ROWS_TO_LOOK_AT) if problem.column and num_rows == 1 else ()
                has = [problem.column in r for _, r in others if not isinstance(r, RowError)]
                if has and not any(has):
                    remedy = f"none of the first {len(has) + 1} rows has it; use one that they have"
                raise DataError(f"{text}{'' if text.endswith('?') else ';'} {remedy}") from None
            skipped[problem.reason] += 1
            first_problem = first_problem or text
        else:
            yield example
    if on_progress:
        on_progress(source.name, *source.position())
    if num_rows == skipped.total():
        fault = f"all {num_rows} rows are bad, the first: {first_problem}"
        raise DataError(f"{source.name}: empty: {fault if num_rows else 'no rows'}")


def _check_new(example_id: str, seen: set[bytes]) -> None:
    key = hashlib.blake2b(example_id.encode(), digest_size=8).digest()
    if key in seen:
        raise RowError("id given twice", f": {example_id!r}")
    seen.add(key)


def _value(row: Row, name: str) -> object:
    if name not in row:
        raise RowError(f'no field "{name}"', describe_columns(name, row), column=name)
    return row[name]


def _id(row: Row, name: str) -> str:
    value = _value(row, name)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _checked_text(value, f'field "{name}"')


def _checked_text(value: object, what: str) -> str:
    if value is None:
        raise RowError(f"{what} is null or an empty cell")
    if not isinstance(value, str):
        raise RowError(f"{what} is {_kind(value)}, not text")
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


def _kind(value: object) -> str:
    kinds = ((bool, "true or false"), (int | float, "a number"), (list, "a list"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "an object")


def _messages(row: Row, name: str) -> tuple[tuple[Mapping[str, str], ...], tuple[str, ...]]:
    """The messages of the prompt, and the assistant's reply where it is the last message."""
    value = _value(row, name)
    what = f'field "{name}"'
    if value is None:
        raise RowError(f"{what} is null")
    if not isinstance(value, list):
        kind = "text" if isinstance(value, str) else _kind(value)
        raise RowError(f"{what} is {kind}, not a list of messages")
    messages = tuple(_message(item, what) for item in value)
    reply: tuple[str, ...] = ()
    if messages and messages[-1]["role"] == "assistant":
        reply = (messages[-1]["content"],)
        messages = messages[:-1]
    if not messages:
        raise RowError(f"{what} has no message to answer")
    return messages, reply


def _message(item: object, what: str) -> dict[str, str]:
    if not isinstance(item, Mapping):
        raise RowError(f"a message of {what} is not an object")
    # A table gives each message every key that any message of the data set has.
    others = sorted(key for key in item if key not in ("role", "content") and item[key] is not None)
    if others:
        raise RowError(f'a message of {what} has the key "{others[0]}"', "; only role and content")
    return {
        key: _checked_text(item.get(key), f"the {key} of a message of {what}")
        for key in ("role", "content")
    }
