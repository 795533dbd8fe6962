"""What a model can do with the rows of a split, found before training starts.

A row may be of no use at all: its chat is refused by the template, its target spells out the token
that ends it, it has more tokens than the model has positions. And a text may be spelled with other
characters than its own: T5's vocabulary has no `<`, no brace and no line break.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from brim.errors import DataError, ModelError
from brim.examples import Example
from brim.models.encoding import Spelling
from brim.models.language_model import LanguageModel

_BLOCK = 512  # rows that are tokenized together
_NUM_SAMPLES = 3
_BEFORE, _SHOWN = 12, 40  # characters of a sample: before the first difference, and in all


@dataclass(slots=True)
class RowReport:
    """What was found in a split.

    Attributes:
        unusable: from a row's number to why no model can use it.
        num_unknown: rows with a token that stands for whatever the vocabulary lacks.
        num_changed: rows with a text that does not come back from its tokens as it was.
        num_misspelled: rows with either.
        samples: of the first three of these: the row's number, the text from shortly before the
            first difference, and the same of what comes back.
    """

    num_rows: int
    unusable: dict[int, str] = field(default_factory=dict)
    num_unknown: int = 0
    num_changed: int = 0
    num_misspelled: int = 0
    samples: list[tuple[int, str, str]] = field(default_factory=list)

    def count(self, row: int, spellings: Sequence[Spelling]) -> None:
        """Add what became of a row's texts."""
        unknown = any(spelling.unknown for spelling in spellings)
        changed = [(text, back) for text, back, _ in spellings if text != back]
        self.num_unknown += unknown
        self.num_changed += bool(changed)
        self.num_misspelled += unknown or bool(changed)
        if changed and len(self.samples) < _NUM_SAMPLES:
            self.samples.append((row, *_difference(*changed[0])))

    def summary(self, places: Sequence[str]) -> str:
        """How much cannot be spelled, with the samples and the places they are from."""
        samples = (
            f"; {place}: {text!r} comes back as {back!r}"
            for place, (_, text, back) in zip(places, self.samples, strict=True)
        )
        return (
            f"{self.num_misspelled:,} of {self.num_rows:,} rows "
            f"({self.num_misspelled / self.num_rows:.1%}) have text that the tokenizer cannot "
            f"spell: {self.num_unknown:,} with unknown tokens, {self.num_changed:,} that do not "
            f"come back as they were{''.join(samples)}"
        )


def inspect_rows(
    models: Sequence[LanguageModel],
    examples: Sequence[Example],
    *,
    max_prompt_tokens: int | None,
    max_tokens: int,
    advance: Callable[[int], None] = lambda rows: None,
) -> RowReport:
    """Encode and decode every prompt and reference once, as training and evaluation will.

    The models share the tokenizer, and may have chat templates and numbers of positions of their
    own. `advance` receives the number of rows that were read since the last call.

    Raises:
        ModelError: there are chats and a tokenizer has no chat template.
    """
    report = RowReport(len(examples))
    # Of models that render chats alike and have as many positions one is enough.
    different = {(m.tokenizer.chat_template, m.num_positions): m for m in models}.values()
    for start in range(0, len(examples), _BLOCK):
        block = examples[start : start + _BLOCK]
        for model in different:
            for row, reason in _unusable(model, block, max_prompt_tokens, max_tokens):
                report.unusable.setdefault(start + row, reason)
        usable = [row for row in range(len(block)) if start + row not in report.unusable]
        spellings = _spellings(models[0], [block[row] for row in usable])
        for row, found in zip(usable, spellings, strict=True):
            report.count(start + row, found)
        advance(len(block))
    return report


def _unusable(
    model: LanguageModel,
    examples: Sequence[Example],
    max_prompt_tokens: int | None,
    max_tokens: int,
) -> Iterator[tuple[int, str]]:
    """Rows that would end a step or an evaluation, by what these do with them."""
    encoder, limit = model.encoder, max_prompt_tokens
    try:
        prompts, _ = encoder.prompts(examples, limit)
        pairs = [(example, text) for example in examples for text in example.references]
        encoder.completions([example for example, _ in pairs], [text for _, text in pairs])
    except DataError as error:
        if len(examples) == 1:
            yield 0, str(error)
            return
        for row, example in enumerate(examples):
            for _, reason in _unusable(model, [example], limit, max_tokens):
                yield row, reason
        return
    for row, ids in enumerate(prompts):
        try:
            model.check_room(len(ids), max_tokens)
        except ModelError as error:
            yield row, str(error)


def _spellings(model: LanguageModel, examples: Sequence[Example]) -> Iterator[list[Spelling]]:
    """Of each example, what becomes of its prompt and its references."""
    prompts = model.encoder.spell([model.encoder.render(example) for example in examples])
    references = [text for example in examples for text in example.references]
    targets = iter(model.encoder.spell(references, as_targets=True))
    for example, prompt in zip(examples, prompts, strict=True):
        yield [prompt, *(next(targets) for _ in example.references)]


def _difference(text: str, back: str) -> tuple[str, str]:
    """Both from shortly before the first character in which they differ."""
    differ = (i for i, (a, b) in enumerate(zip_longest(text, back)) if a != b)
    start = max(next(differ) - _BEFORE, 0)
    return _shorten(text, start), _shorten(back, start)


def _shorten(text: str, start: int) -> str:
    before, behind = "…" * (start > 0), "…" * (len(text) > start + _SHOWN)
    return before + text[start : start + _SHOWN] + behind
