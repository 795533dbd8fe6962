"""Objects of JSON as rows: one a line, or the items of an array, which is never held whole."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from brim.errors import DataError
from brim.tasks.cells import NumberedRow, Row, RowError
from brim.tasks.raw_files import RawFile, open_raw

_CHUNK_BYTES = 2**20
_SPACE = re.compile(r"[ \t\n\r]*")
# What is behind an error by more than this was no value that the next chunk would have completed,
# as `tru` or `\\u00` may be.
_LONGEST_TOKEN = 16
_IN_NUMBERS = "0123456789.eE+-"  # and the end of what was read, "", is in any text


def parse_row(text: str) -> Row | RowError:
    """Return the object that a line is, or why it is none."""
    try:
        value = _DECODER.decode(text)
    except RowError as problem:
        return problem
    except json.JSONDecodeError as error:
        return RowError("broken JSON", f": {error.msg} at character {error.pos + 1}")
    except (ValueError, RecursionError) as error:
        return RowError("broken JSON", f": {error}")
    return _row(value, "line")


def is_array(path: Path) -> bool:
    """Return whether a file holds an array: its first character is a bracket."""
    with open_raw(path) as file:
        return _Text(file).mark(0) == "["


def array_rows(file: RawFile, max_length: int) -> Iterator[NumberedRow]:
    """Yield the items of the array that a file holds, numbered from 0.

    In memory is about one of them, of at most `max_length` characters.

    Raises:
        DataError: the file holds no array, or one that breaks off: the items behind a fault cannot
            be found.
    """
    text, number = _Text(file), 0
    if text.take(0) != "[":
        raise text.fault(0, "not an array")
    between = text.take(0) if text.mark(0) == "]" else ","
    while between == ",":
        yield number, text.item(number, max_length)
        number += 1
        between = text.take(number)
    if between != "]":
        raise text.fault(number, "no comma before it" if between else "the array has no end")
    if text.mark(number):
        raise text.fault(number, "text behind the end of the array")


class _Text:
    """The text of a file from where it was read to, with what is known of it ahead."""

    def __init__(self, file: RawFile) -> None:
        self._file = file
        decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self._decode = decoder.decode
        self._text, self._at, self._ended = "", 0, False

    def fault(self, number: int, what: str) -> DataError:
        return DataError(f"{self._file.path}[{number}]: broken JSON: {what}; mend the file")

    def mark(self, number: int) -> str:
        """The next character that is no white space, or "" at the end."""
        while True:
            space = _SPACE.match(self._text, self._at)
            self._at = space.end() if space else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._read_on(number)

    def take(self, number: int) -> str:
        """The same, and it is behind from here on."""
        character = self.mark(number)
        self._at += len(character)
        return character

    def item(self, number: int, max_length: int) -> Row | RowError:
        """The value that begins at the next character."""
        self.mark(number)
        while (found := self._try(number)) is None:
            if len(self._text) - self._at > max_length:
                raise self.fault(number, f"an item longer than {max_length / 2**20:g} MiB")
            self._read_on(number)
        value, end = found
        written, self._at = self._text[self._at : end], end
        if not written.isascii():
            try:
                written.encode()
            except UnicodeEncodeError as error:
                byte = ord(written[error.start]) - 0xDC00
                return RowError("invalid UTF-8", f": 0x{byte:02x}")
        return value if isinstance(value, RowError) else _row(value, "item")

    def _try(self, number: int) -> tuple[Any, int] | None:
        """The value and where it ends; None where it goes on behind what was read."""
        try:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except RowError as problem:
                value, end = problem, _PLAIN_DECODER.raw_decode(self._text, self._at)[1]
        except json.JSONDecodeError as error:
            opened = error.msg.startswith("Unterminated string")
            if self._ended or not (opened or error.pos > len(self._text) - _LONGEST_TOKEN):
                place = f"at character {error.pos - self._at + 1} of it"
                raise self.fault(number, f"{error.msg} {place}") from None
            return None
        except (ValueError, RecursionError) as error:
            raise self.fault(number, str(error)) from None
        goes_on = isinstance(value, int | float) and self._text[end : end + 1] in _IN_NUMBERS
        return None if goes_on and not self._ended else (value, end)

    def _read_on(self, number: int) -> None:
        rest = self._text[self._at :]
        # As much again as there is, so that a long item is tried a few times only.
        data = self._file.read(max(_CHUNK_BYTES, len(rest)), f"[{number}]")
        self._ended = not data
        self._text, self._at = rest + self._decode(data, self._ended), 0


def _row(value: object, what: str) -> Row | RowError:
    if not isinstance(value, dict):
        return RowError("not a JSON object", f'; each {what} must be one, as in {{"prompt": "…"}}')
    return value


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RowError("key given twice", f": {twice!r}")
    return row


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys)
_PLAIN_DECODER = json.JSONDecoder()
