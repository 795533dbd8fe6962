"""Markdown that shows any text as it is."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SPECIAL = re.compile(r"([\\`*_<>|~$&]|\](?=\())")


def escape_markdown(text: str) -> str:
    """One line of Markdown, fit for a table's cell, that renders as `text`, line breaks too."""
    return "<br>".join(_SPECIAL.sub(r"\\\1", line) for line in text.splitlines())


def markdown_sentence(text: str) -> str:
    """A sentence of ours that may hold code between backticks, which is to be copied as it is."""
    pieces = re.split(r"(`[^`\n\r]+`)", text)
    return "".join(p if i % 2 else escape_markdown(p) for i, p in enumerate(pieces))


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is its head, from cells of plain text."""
    head, *body = [f"| {' | '.join(map(escape_markdown, row))} |" for row in rows]
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body, ""])
