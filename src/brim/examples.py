"""A row of data, which knows nothing of models: reading data needs no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

# Some chat templates (Llama 3.2, SmolLM3, gpt-oss) write today's date. Prompts must be the same
# when a run is resumed or evaluated later, so they get the day that Llama 3.2 has by default.
TODAY = datetime(2024, 7, 26)


@dataclass(frozen=True, slots=True)
class Target:
    """A completion to learn, as the tokens of the model that wrote it.

    Attributes:
        token_ids: its actions; the last one ends the text, unless it was cut.
        truncated: cut at the length limit of its writer, so that it has no end to learn.
    """

    token_ids: tuple[int, ...]
    truncated: bool


@dataclass(frozen=True, slots=True)
class Example:
    """One row of data.

    Attributes:
        id: unique within its split; shows in predictions, samples and error messages.
        prompt: the rendered prompt, or "" where `messages` is given.
        references: acceptable answers, the first one the training target; empty for a prompt
            without a target, which reinforcement learning can use and evaluation cannot.
        messages: a chat, rendered by the tokenizer's chat template: `role` and `content`, which are
            text, and where there are any `name`, `tool_calls` and `tool_call_id`.
        field: the characters of `prompt`, first and behind the last, that lose their end where the
            prompt is too long, as an article inside an instruction does; None for a prompt that
            is one piece, and for a chat, which loses the end of its longest message.
        target: the first reference as the tokens that a model wrote, which are learned as they are;
            None for text, which is tokenized and given an end.
        teacher: the name of the teacher that scores it, where there are several to choose from.
        tools: what the assistant of a chat may call, as the chat template takes it.
    """

    id: str
    prompt: str
    references: tuple[str, ...] = ()
    messages: tuple[Mapping[str, Any], ...] = ()
    field: tuple[int, int] | None = None
    target: Target | None = None
    teacher: str | None = None
    tools: tuple[Mapping[str, Any], ...] = ()

    @property
    def text(self) -> str:
        """The prompt as a person reads it: a chat as `role: content` lines, calls as JSON."""
        lines = (
            f"{message['role']}: {message['content'] or _calls(message)}"
            for message in self.messages
        )
        return self.prompt or "\n".join(lines)


def _calls(message: Mapping[str, Any]) -> str:
    calls = message.get("tool_calls")
    return json.dumps(calls, ensure_ascii=False) if calls else ""
