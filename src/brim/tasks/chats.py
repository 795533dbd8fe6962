"""Chats: the messages of a row, the turns of the assistant in them, and the tools it may call."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from brim.tasks.cells import Row, RowError, checked_json, checked_text, kind_of, value_of

Turns = Literal["last", "all"]
Messages = tuple[Mapping[str, Any], ...]
Turn = tuple[Messages, str | None]
"""The messages before a reply, and the reply; None where there is none yet."""

_KEYS = ("role", "content", "name", "tool_calls", "tool_call_id")


def read_turns(row: Row, name: str, turns: Turns) -> list[Turn]:
    """Return the turns of a chat that are to be learned: the last one, or each of the assistant's.

    A reply is a message of the assistant's with something before it, and without tool calls, whose
    text is the chat template's. The last turn has no reply where the chat ends with another one's
    message.

    Raises:
        RowError: the column holds no chat, or no message to answer.
    """
    messages, what = _messages(row, name), f'field "{name}"'
    is_reply = [message["role"] == "assistant" for message in messages]
    first = 1 if turns == "all" else max(len(messages) - 1, 1)
    replies = [i for i in range(first, len(messages)) if is_reply[i]]
    texts = [i for i in replies if "tool_calls" not in messages[i]]
    found: list[Turn] = [(messages[:i], str(messages[i]["content"])) for i in texts]
    if messages and not is_reply[-1]:
        found.append((messages, None))
    if not found:
        why = "tool calls as replies, which are no text to learn" if replies else ""
        raise RowError(f"{what} has {why or 'no message to answer'}")
    return found


def read_tools(row: Row, name: str) -> tuple[Mapping[str, Any], ...]:
    """Return the tools of a row: a list of objects, or that as JSON text; null for none.

    Raises:
        RowError: the column is missing, or holds something else.
    """
    value, what = value_of(row, name), f'field "{name}"'
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RowError(f"{what} is text that is no JSON", f": {error}") from None
    return tuple(_objects([] if value is None else value, what, "tools"))


def _objects(value: object, what: str, kind: str) -> list[Mapping[str, Any]]:
    if not isinstance(value, list):
        found = "text" if isinstance(value, str) else kind_of(value)
        raise RowError(f"{what} is {found}, not a list of {kind}")
    if not all(isinstance(item, Mapping) for item in value):
        raise RowError(f"an item of {what} is not an object")
    return list(checked_json(value, what))


def _messages(row: Row, name: str) -> Messages:
    value, what = value_of(row, name), f'field "{name}"'
    if value is None:
        raise RowError(f"{what} is null")
    if not isinstance(value, list):
        found = "text" if isinstance(value, str) else kind_of(value)
        raise RowError(f"{what} is {found}, not a list of messages")
    return tuple(_message(item, f"a message of {what}") for item in value)


def _message(item: object, what: str) -> dict[str, Any]:
    if not isinstance(item, Mapping):
        raise RowError(f"{what} is not an object")
    # A table gives each message every key that any message of the data set has.
    given = {key: value for key, value in item.items() if value is not None}
    if others := sorted(given.keys() - set(_KEYS)):
        raise RowError(f'{what} has the key "{others[0]}"', f"; only {', '.join(_KEYS)}")
    message: dict[str, Any] = {"role": checked_text(given.get("role"), f"the role of {what}")}
    calls = _objects(given.get("tool_calls", []), f"the tool_calls of {what}", "calls")
    content = given.get("content")
    # A call has its text in `tool_calls`, and a tool may return nothing.
    bare = (calls and content in (None, "")) or (message["role"] == "tool" and content == "")
    message["content"] = "" if bare else checked_text(content, f"the content of {what}")
    for key in ("name", "tool_call_id"):
        if key in given:
            message[key] = checked_text(given[key], f"the {key} of {what}")
    return {**message, "tool_calls": calls} if calls else message
