"""Prompt templates: plain text with named fields, `Translate to Dutch: {en}`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping

from brim.errors import ConfigError

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


class Template:
    """Text in which `{name}` stands for a column; `{{` and `}}` stand for braces.

    A name is a column's name and nothing else: no attributes, indices, conversions or formats as
    `str.format` has them, so a template cannot reach anything but the row. Braces in the row's own
    text stay as they are. `fields` are the names, in order of first use.

    Raises:
        ConfigError: a brace without its partner, a field without a name, or no field at all.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._literals = [""]
        self._names: list[str] = []
        end = 0
        for piece in _PIECE.finditer(text):
            self._literals[-1] += text[end : piece.start()]
            end = piece.end()
            token, name = piece[0], piece[1]
            if token in ("{{", "}}"):
                self._literals[-1] += token[0]
            elif name:
                self._names.append(name)
                self._literals.append("")
            elif name == "":
                raise ConfigError(f"prompt template {text!r}: {{}} has no name; write {{column}}")
            else:
                raise ConfigError(
                    f"prompt template {text!r}: single {token!r} at character {piece.start() + 1}; "
                    f"write {token * 2!r} for a brace"
                )
        self._literals[-1] += text[end:]
        self.fields = tuple(dict.fromkeys(self._names))
        if not self.fields:
            raise ConfigError(
                f"prompt template {text!r} names no column, so that every prompt would be the "
                "same; write {column} where the row's text goes"
            )

    def check(self, columns: Iterable[str]) -> None:
        """Check that each field is one of the columns.

        Raises:
            ConfigError: one is not; the text names the columns and the nearest one.
        """
        check_columns(self.fields, columns, f"prompt template {self.text!r}")

    def render(self, row: Mapping[str, str]) -> str:
        """Return the template with each field replaced by the row's text."""
        pairs = zip(self._names, self._literals[1:], strict=True)
        return self._literals[0] + "".join(row[name] + literal for name, literal in pairs)

    def longest(self, row: Mapping[str, str]) -> tuple[int, int] | None:
        """Return where the row's longest text is in what `render` makes: `Example.field`.

        The first one of equally long ones; None where the template is a field and nothing else, so
        that the row's text is itself the prompt.
        """
        if self._literals == ["", ""]:
            return None
        first = max(range(len(self._names)), key=lambda i: len(row[self._names[i]]))
        before = zip(self._literals, self._names[:first], strict=False)
        start = sum(len(literal) + len(row[name]) for literal, name in before)
        start += len(self._literals[first])
        return start, start + len(row[self._names[first]])


def check_columns(names: Iterable[str], columns: Iterable[str], where: str) -> None:
    """Check that the names are among the columns; `where` opens the error's text.

    Raises:
        ConfigError: one is not; the text names the columns and the nearest one.
    """
    columns = list(columns)
    for name in names:
        if name not in columns:
            raise ConfigError(f"{where}: no column {name!r}{describe_columns(name, columns)}")


def describe_columns(name: str, columns: Iterable[str]) -> str:
    """Return the end of an error about a missing column: what there is, and what was meant."""
    columns = list(columns)
    for mark in ";,\t|":
        if len(columns) == 1 and name in columns[0].split(mark):
            return (
                f"; the only column is {columns[0]!r}, so the delimiter looks like {mark!r}; "
                "write commas in a .csv file and tabs in a .tsv file"
            )
    near = difflib.get_close_matches(name, columns, n=1)
    shown = ", ".join(repr(column) for column in columns[:20])
    more = f" and {len(columns) - 20} more" if len(columns) > 20 else ""
    guess = f"; did you mean {near[0]!r}?" if near else ""
    return f"; columns: {shown or 'none'}{more}{guess}"
