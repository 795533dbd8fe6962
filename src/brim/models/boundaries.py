"""Places of a text where a token of a tokenizer begins whatever is written next.

A place is guaranteed by what was written up to it: never by the finished text, for the next
characters may merge across an end of a token ("un" + "happy" may be "unh" + "appy"). Most
tokenizers cut a text into words before anything else, and between words, where there are spaces or
line breaks, nothing merges. Which kinds of characters are such a place, side by side, is found out
by asking the tokenizer; where none is, as without words, a text is in one piece.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

from transformers import PreTrainedTokenizerBase

Boundaries = Callable[[str], Sequence[tuple[int, int]]]
"""From a text to its places: where a token begins, and how many characters must have been written
for that to be certain; both in characters, and both ascending. What it says of so many characters
must not depend on the others."""

# What the rule of a tokenizer is found on: these words before and behind all words and spaces.
_FEW = ("un", "42", "!", "'s")
_WORDS = (
    *_FEW, "I'll", "Happy", "3.5", "x9", "naïve", "日本", "…", "(a)", ",", "👍", "é", "<b>", "_x",
    "##s", "▁", "Ġ", "1,000", "/",
)  # fmt: skip
_SPACES = (" ", "\n", "  ", " \n", "\n ", "\n\n", " \n ")
_BLOCK = 2048  # texts that are tokenized together
_TRIED = 8  # places of a text that are tried, evenly spaced


class SpaceBoundaries:
    """Places between a space or a line break and another character, of kinds that are guaranteed.

    A kind is two classes of characters side by side. It is guaranteed unless a text shows the
    contrary: a word of the tokenizer that lies across such a place, or tokens before the place that
    change with what is written behind it.

    Args:
        tokenizer: whose tokens begin there.
        texts: what the rule is tried on too, beside texts of every kind.

    Attributes:
        kinds: the guaranteed ones, such as `("letter", "space")`; none where the tokenizer has no
            words, or does not say where its tokens are.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: Iterable[str] = ()) -> None:
        others = ("letter", "digit", "other")
        gaps = ("space", "break")
        self.kinds = frozenset([*itertools.product(others, gaps), *itertools.product(gaps, others)])
        if not tokenizer.is_fast:
            self.kinds = frozenset()
        every = itertools.chain(_battery(tokenizer), texts)
        while self.kinds and (block := [*itertools.islice(every, _BLOCK)]):
            self._try(tokenizer, block)

    def __call__(self, text: str) -> list[tuple[int, int]]:
        """Return the places of a text; each is certain once its first character is written."""
        classes = [_class_of(character) for character in text]
        pairs = enumerate(itertools.pairwise(classes), start=1)
        return [(place, place + 1) for place, pair in pairs if pair in self.kinds]

    def _try(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
        """Give up the kinds that do not hold in these texts."""
        cuts = [
            (text, place, stop)
            for text in texts
            for place, known in _some(self(text))
            for stop in {known, len(text)}
            if stop <= len(text)
        ]
        if not cuts:
            return
        found = tokenizer(
            [text[:stop] for text, _, stop in cuts],
            add_special_tokens=False,
            split_special_tokens=True,
            verbose=False,
        ).encodings
        before: dict[tuple[str, int], list[int]] = {}
        broken = set()
        for (text, place, _), encoding in zip(cuts, found, strict=True):
            ids = [
                i
                for i, start in zip(encoding.ids, starts_of(encoding), strict=True)
                if start < place
            ]
            crossed = any(first < place < end for first, end in _words(encoding))
            if crossed or before.setdefault((text, place), ids) != ids:
                broken.add((_class_of(text[place - 1]), _class_of(text[place])))
        self.kinds -= broken


def _some(places: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return places[:: max(len(places) // _TRIED, 1)]


def starts_of(encoding: object) -> list[int]:
    """Return where the tokens of a fast tokenizer's encoding begin, in characters, ascending."""
    offsets = encoding.offsets  # type: ignore[attr-defined]
    return list(itertools.accumulate((start for start, _ in offsets), max))


def _words(encoding: object) -> list[tuple[int, int]]:
    """The characters of each of its words, which are tokenized apart."""
    words: dict[int, tuple[int, int]] = {}
    tokens = zip(encoding.word_ids, encoding.offsets, strict=True)  # type: ignore[attr-defined]
    for number, (start, end) in tokens:
        first, last = words.get(number, (start, end))
        words[number] = min(first, start), max(last, end)
    return list(words.values())


def _battery(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    added = [token.content for token in tokenizer.added_tokens_decoder.values()]
    pieces = [*_WORDS, *added[:64]]
    return [
        f"{one}{space}{other}"
        for one, space, other in itertools.product(pieces, _SPACES, pieces)
        if one in _FEW or other in _FEW
    ]


def _class_of(character: str) -> str:
    if character == " ":
        return "space"
    if character == "\n":
        return "break"
    if character.isspace() or not character.isprintable():
        return "blank"  # read in ways of their own, and no part of any kind
    if character.isalpha():
        return "letter"
    return "digit" if character.isnumeric() else "other"
