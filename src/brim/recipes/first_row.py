"""Which columns of the user's file are prompt and target, guessed from its first row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from brim.errors import DataError
from brim.tasks.rows import RowError
from brim.tasks.sources import open_source

_PROMPTS = (
    *("prompt", "question", "instruction", "input", "source", "src", "query", "problem"),
    *("document", "article", "text"),
)
_TARGETS = (
    *("target", "answer", "output", "completion", "response", "label", "reference", "tgt"),
    *("summary", "translation", "solution", "chosen"),
)


class FirstRow(NamedTuple):
    """What the first row of a file seems to hold.

    Attributes:
        columns: all of its columns, in order.
        settings: `prompt_column` or `messages_column`, and `target_column`, as a recipe has them.
        has_target: whether there is one, which may be the last message of a chat.
    """

    columns: tuple[str, ...]
    settings: dict[str, str | None]
    has_target: bool

    @property
    def is_chat(self) -> bool:
        """Whether the prompt is a chat, whose template comes with a loaded model."""
        return "messages_column" in self.settings

    @property
    def teaches(self) -> bool:
        """Whether a teacher from scratch, which has no chat template, can learn from it."""
        return self.has_target and not self.is_chat

    def in_words(self) -> str:
        """Return the settings as a line, such as `prompt_column q, no target`."""
        target = self.settings["target_column"]
        prompt = next(f"{key} {value}" for key, value in self.settings.items())
        if target is None:
            return (
                f"{prompt}, {'its last message is the target' if self.has_target else 'no target'}"
            )
        return f"{prompt}, target_column {target}"


def read_first_row(path: str) -> FirstRow:
    """Return what the first row of a file of prompts seems to hold.

    A chat is a list of messages. Otherwise the usual names decide, then the order of the columns.

    Raises:
        DataError: there is no such file, it has no rows, its first row is bad, or has no text.
    """
    if not Path(path).expanduser().is_file():
        raise DataError(f"{path}: no such file; check the path")
    source = open_source(path, "train")
    for number, row in source.rows(source.columns() or ()):
        if isinstance(row, RowError):
            raise DataError(f"{source.where(number)}: {row}; mend the row")
        chats = [name for name, value in row.items() if _is_chat(value)]
        texts = [name for name, value in row.items() if isinstance(value, str)]
        if not chats and not texts:
            raise DataError(f"{source.where(number)}: no column has text; check the file")
        return _guess(row, chats, texts)
    raise DataError(f"{path}: empty: no rows; check the file")


def _guess(row: Mapping[str, Any], chats: list[str], texts: list[str]) -> FirstRow:
    columns = tuple(row)
    targets = [name for name in columns if name in texts or _is_texts(row[name])]
    if chats:
        replied = row[chats[0]][-1]["role"] == "assistant"
        target = None if replied else _by_name(targets, _TARGETS)
        settings = {"messages_column": chats[0], "target_column": target}
        return FirstRow(columns, settings, replied or target is not None)
    # A column with the name of a target is the prompt only where there is no other text.
    likely = [name for name in texts if name.lower() not in _TARGETS] or texts
    prompt = _by_name(likely, _PROMPTS) or likely[0]
    others = [name for name in targets if name != prompt]
    target = _by_name(others, _TARGETS)
    if target is None and len(columns) == 2:
        target = next(iter(others), None)
    settings = {"prompt_column": prompt, "target_column": target}
    return FirstRow(columns, settings, target is not None)


def _by_name(columns: list[str], names: tuple[str, ...]) -> str | None:
    """The column with the first of these names, in whatever case."""
    found = [name for name in columns if name.lower() in names]
    return min(found, key=lambda name: names.index(name.lower()), default=None)


def _is_chat(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(item, Mapping) and "role" in item for item in value)
    )


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(i, str) for i in value)
