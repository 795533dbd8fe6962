"""What is checked before hours of work: the rows of a split, and that two models are a pair.

A row may be of no use at all: its chat is refused by the template, its target spells out the token
that ends it, it has more tokens than the model has positions. And a text may be spelled with other
characters than its own: T5's vocabulary has no `<`, no brace and no line break.

A teacher and its student must read text as the same token ids, and write the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from transformers import PreTrainedTokenizerBase

from brim.errors import DataError, ModelError
from brim.examples import Example
from brim.models.encoding import Spelling
from brim.models.teacher import Teacher
from brim.models.tokenizers import definition

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
    models: Sequence[Teacher],
    examples: Sequence[Example],
    *,
    max_prompt_tokens: int | None,
    max_tokens: int,
    advance: Callable[[int], None] = lambda rows: None,
) -> RowReport:
    """Encode and decode every prompt and reference once, as training and evaluation will.

    The models may have chat templates and numbers of positions of their own, and tokenizers where
    the teacher reads text: what cannot be spelled is counted of the first one. `advance` receives
    the number of rows that were read since the last call.

    Raises:
        ModelError: there are chats and a tokenizer has no chat template.
    """
    report = RowReport(len(examples))
    # Of models that read and render chats alike and have as many positions one is enough.
    different = {
        (repr(m.tokenizer.chat_template), m.num_positions, frozenset(m.tokenizer.get_vocab())): m
        for m in models
    }.values()
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
    model: Teacher,
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


def _spellings(model: Teacher, examples: Sequence[Example]) -> Iterator[list[Spelling]]:
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


# Padding is no part of a text: a pair may differ in its pad token, and in whether there is one.
_SPECIAL_TOKENS = ("eos_token", "bos_token", "unk_token")


_CHOOSE = (
    "choose a pair of one model family, build the student from the teacher's tokenizer, or set "
    "teacher.reads=text"
)


def check_same_tokenizer(teacher: Teacher, student: Teacher) -> None:
    """Refuse a pair that does not read text as the same token ids; compared by content.

    The sizes of the models' heads play no role, nor do chat templates and pad tokens, also one that
    was added to a single one of the two tokenizers.

    Raises:
        ModelError: names the first difference; or one model is an encoder-decoder and the other is
            not, so that they lay out prompts differently.
    """
    kinds = [
        "encoder-decoder" if m.is_encoder_decoder else "decoder-only" for m in (teacher, student)
    ]
    if kinds[0] != kinds[1]:
        raise ModelError(
            f"the teacher is {kinds[0]} and the student {kinds[1]}; choose two models of one "
            "kind, or set teacher.reads=text"
        )
    problem = _tokenizer_difference(teacher.tokenizer, student.tokenizer)
    if problem is not None:
        raise ModelError(f"teacher and student have different tokenizers: {problem}")


def same_tokenizer(teacher: Teacher, student: Teacher) -> bool:
    """Return whether a pair reads text as the same token ids; see `check_same_tokenizer`."""
    try:
        check_same_tokenizer(teacher, student)
    except ModelError:
        return False
    return True


def share_vocabulary(teacher: Teacher, student: Teacher) -> None:
    """Have teacher and student read text as the same token ids and write the same tokens.

    What one of them never writes (`LanguageModel.rules`), neither of them writes from here on: it
    would have no Q-value, or no probability. So it is with a padding token that one of them lacks,
    and with a token for which one has no row.
    Where a text of one of them ends, one of the other ends too.

    Raises:
        ModelError: as `check_same_tokenizer`, or one of them excludes the token that ends a text of
            the other.
    """
    check_same_tokenizer(teacher, student)
    unshared = _added_pads(teacher.tokenizer, student.tokenizer)
    unshared |= teacher.encoder.unshared | student.encoder.unshared
    shared = teacher.rules.excluded | student.rules.excluded | unshared
    ends = [i for i in (*teacher.eos_token_ids, *student.eos_token_ids) if i not in shared]
    for model in (teacher, student):
        model.exclude(shared, unshared=unshared, ends=ends)


def _tokenizer_difference(
    teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase
) -> str | None:
    """The first difference in vocabulary, special tokens or rules, and how to mend it."""
    pads = _added_pads(teacher, student)
    copy = "copy the teacher's tokenizer files over the student's"
    ours, theirs = (_tokens_by_id(tokenizer) for tokenizer in (teacher, student))
    differing = [i for i in sorted(ours.keys() | theirs.keys()) if ours.get(i) != theirs.get(i)]
    differing = [i for i in differing if i not in pads]
    if differing:
        first = differing[0]
        what = _contrast(f"token id {first}", ours.get(first), theirs.get(first))
        if any(i in ours and i in theirs for i in differing):
            return f"{what}; {_CHOOSE}"
        return (
            f"{what}; if they are a base model and its instruct version, {copy} (where its head "
            f"has fewer than {max(ours) + 1} rows, resize_token_embeddings first)"
        )
    special = [name for name in _SPECIAL_TOKENS if getattr(teacher, name) != getattr(student, name)]
    if special:
        tokens = [(name, getattr(teacher, name), getattr(student, name)) for name in special]
        what = ", ".join(_contrast(*token) for token in tokens)
        mend = ", ".join(f"{name} to {'null' if t is None else repr(t)}" for name, t, _ in tokens)
        return (
            f"{what}; if they are a base model and its instruct version, set {mend} in the "
            f"student's tokenizer_config.json, or {copy}"
        )
    parts = [definition(tokenizer, pads) for tokenizer in (teacher, student)]
    for part in sorted(parts[0].keys() & parts[1].keys()):
        if parts[0][part] != parts[1][part]:
            return f"the {part} part of tokenizer.json differs; {_CHOOSE}"
    return None


def _added_pads(
    teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase
) -> frozenset[int]:
    """Ids at which the vocabularies differ by nothing but padding tokens."""
    ours, theirs = (_tokens_by_id(tokenizer) for tokenizer in (teacher, student))
    padding = [
        {None, t.pad_token} - {getattr(t, name) or "" for name in _SPECIAL_TOKENS}
        for t in (teacher, student)
    ]
    return frozenset(
        i
        for i in ours.keys() | theirs.keys()
        if ours.get(i) != theirs.get(i)
        if ours.get(i) in padding[0] and theirs.get(i) in padding[1]
    )


def _tokens_by_id(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    return {i: token for token, i in tokenizer.get_vocab().items()}


def _contrast(what: str, ours: str | None, theirs: str | None) -> str:
    quoted = ["unset" if token is None else repr(token) for token in (ours, theirs)]
    return f"{what} is {quoted[0]} for the teacher and {quoted[1]} for the student"
