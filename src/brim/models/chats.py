"""Chats as the text that a tokenizer's chat template makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from brim.errors import DataError, ModelError
from brim.examples import TODAY, Example

_ANSWER = "answer"

# What templates may call, as it would be if today were `TODAY`. As a macro, for transformers lets
# no caller replace a function.
_DIRECTIVES = {f"%{c}": TODAY.strftime(f"%{c}") for c in "aAbBcdDeFGHIjmMpSTuUVwWxXyYzZ"}
_DATES = "".join(f" | replace({name!r}, {text!r})" for name, text in _DIRECTIVES.items())
_MACRO = "{% macro strftime_now(format) %}{{ format" + _DATES + " }}{% endmacro %}\n"


def render_chat(
    tokenizer: PreTrainedTokenizerBase, example: Example, *, opens_answer: bool = True
) -> str:
    """Return the text of an example's messages, by default up to where the answer begins.

    Today is `TODAY` in every template.

    Raises:
        DataError: the chat template refuses the messages.
        ModelError: the tokenizer has no chat template.
    """
    if tokenizer.chat_template is None:
        raise ModelError(
            f"example {example.id!r} is a chat but the tokenizer has no chat template; "
            "use an instruction-tuned model, or a prompt column instead of messages"
        )
    tools = [dict(tool) for tool in example.tools] or None
    try:
        return tokenizer.apply_chat_template(  # type: ignore[no-any-return]
            [dict(message) for message in example.messages],
            tools=tools,
            chat_template=_dated(tokenizer, tools),
            tokenize=False,
            add_generation_prompt=opens_answer,
        )
    except (jinja2.TemplateError, TypeError, ValueError, LookupError) as error:  # of its code
        raise DataError(
            f"the chat template refuses the messages of example {example.id!r}: {error}"
        ) from error


def _dated(
    tokenizer: PreTrainedTokenizerBase, tools: Sequence[dict[str, Any]] | None
) -> str | None:
    """The chat template, if it asks for the date, with a date that stays."""
    template: str = tokenizer.get_chat_template(tools=tools)
    return _MACRO + template if "strftime_now" in template else None


def behind_answer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what the chat template writes behind an answer; empty where it does not say."""
    question = {"role": "user", "content": "question"}
    chat = Example("", "", messages=(question, {"role": "assistant", "content": _ANSWER}))
    try:
        text = render_chat(tokenizer, chat, opens_answer=False)
    except (DataError, ModelError):
        return ""
    _, answer, behind = text.rpartition(_ANSWER)
    return behind if answer else ""
