"""Prompts that have too many tokens: one text inside loses its end, and what is around it stays."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from brim.examples import Example


def cut_fields(
    examples: Sequence[Example],
    lengths: Sequence[int],
    max_tokens: int,
    *,
    tokenizer: PreTrainedTokenizerBase,
    encode: Callable[[Sequence[Example]], list[list[int]]],
) -> list[list[int] | None]:
    """Ids of prompts whose field has lost so much of its end that they fit, and no token more.

    The field is `Example.field`; of a chat it is the longest message, the system's left aside. A
    shortened prompt is tokenized as a whole, so its ids are those of a prompt whose field was that
    short from the first. A field ends where one of its tokens did (or, of a tokenizer that does not
    tell where they are, anywhere), and never inside a character. A message keeps at least a token.

    Args:
        examples: N rows whose prompts are too long.
        lengths: how many tokens each prompt has.
        max_tokens: how many it may have.
        tokenizer: says where the tokens of a field end.
        encode: from examples to the ids of their whole prompts.

    Returns:
        The ids of each prompt; None where there is no field, or the rest alone is too long.
    """
    if not examples:
        return []
    texts = [_field_of(example) for example in examples]
    searches = [
        _Search(example, text, stops, max_tokens, length)
        for example, text, stops, length in zip(
            examples, texts, _stops(texts, tokenizer), lengths, strict=True
        )
    ]
    while searching := [search for search in searches if search.goes_on]:
        for search, ids in zip(searching, encode([s.guess() for s in searching]), strict=True):
            search.learn(ids)
    return [search.ids for search in searches]


@dataclass(frozen=True, slots=True)
class _Stops:
    """Where a text may be cut.

    Attributes:
        number: of the last stop, which is the end of the text; stop 0 is its beginning.
        a_token: how many stops there are to a token.
        at: from the number of a stop, not the last one, to that of the characters before it.
    """

    number: int
    a_token: float
    at: Callable[[int], int]


@dataclass(slots=True)
class _Search:
    """Looks for the last stop at which the field of a prompt can end.

    Attributes:
        example: the prompt.
        text: its field.
        stops: those of the field.
        max_tokens: of the prompt.
        length: of the prompt at the stop `high`, in tokens; too long.
        ids: of the prompt at the stop `low`, the longest one known to fit.
    """

    example: Example
    text: str
    stops: _Stops
    max_tokens: int
    length: int
    ids: list[int] | None = field(default=None, init=False)
    low: int = field(init=False)
    high: int = field(init=False)
    tried: int = field(init=False)

    def __post_init__(self) -> None:
        # An empty message is one that chat templates may refuse, or leave out.
        self.low = 0 if self.example.messages else -1
        self.high = self.stops.number

    @property
    def goes_on(self) -> bool:
        full = self.ids is not None and len(self.ids) == self.max_tokens
        return self.high - self.low > 1 and not full

    def guess(self) -> Example:
        """The prompt cut where the number of tokens suggests it."""
        if self.ids is None:
            stop = self.high - math.ceil((self.length - self.max_tokens) * self.stops.a_token)
        else:
            stop = self.low + int((self.max_tokens - len(self.ids)) * self.stops.a_token)
        self.tried = min(max(stop, self.low + 1), self.high - 1)
        return _with_field(self.example, self.text[: self.stops.at(self.tried)])

    def learn(self, ids: list[int]) -> None:
        """Take note of the ids of the guess."""
        if len(ids) > self.max_tokens:
            self.high, self.length = self.tried, len(ids)
        else:
            self.low, self.ids = self.tried, ids


def _stops(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[_Stops]:
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)
    if encoded.encodings is not None:
        return [_token_ends(*pair) for pair in zip(encoded.encodings, texts, strict=True)]
    return [
        _Stops(len(text), len(text) / max(len(ids), 1), lambda stop: stop)
        for text, ids in zip(texts, encoded.input_ids, strict=True)
    ]


def _token_ends(encoding: Encoding, text: str) -> _Stops:
    def at(stop: int) -> int:
        # The tokens of a character's bytes all end where the character does.
        span = encoding.token_to_chars(stop - 1) if stop else (0, 0)
        return at(stop - 1) if span is None else span[1]

    # Spaces at the end may be in no token of the field, and in one of the prompt.
    rest = at(len(encoding)) < len(text)
    return _Stops(len(encoding) + rest, 1.0, at)


def _field_of(example: Example) -> str:
    """The text that may lose its end; empty where none may."""
    place = _longest_message(example)
    if place is not None:
        return example.messages[place]["content"]
    start, end = example.field or (0, 0)
    return example.prompt[start:end]


def _with_field(example: Example, text: str) -> Example:
    place = _longest_message(example)
    if place is not None:
        message = {**example.messages[place], "content": text}
        messages = (*example.messages[:place], message, *example.messages[place + 1 :])
        return replace(example, messages=messages)
    start, end = example.field or (0, 0)
    return replace(example, prompt=example.prompt[:start] + text + example.prompt[end:])


def _longest_message(example: Example) -> int | None:
    # The system's says what to do with the others.
    places = [i for i, message in enumerate(example.messages) if message["role"] != "system"]
    return max(places, key=lambda i: len(example.messages[i]["content"]), default=None)
