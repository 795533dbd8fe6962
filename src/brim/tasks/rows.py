"""Rows of the user's data: which columns make an example, and which rows cannot be one."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from textwrap import shorten
from typing import Any, Literal, Protocol

from brim.errors import DataError
from brim.examples import Example
from brim.support.numerals import REFERENCE_ANSWERS
from brim.tasks.base import Progress, Split
from brim.tasks.cells import NumberedRow, Row, RowError, checked_text, value_of
from brim.tasks.chats import Messages, Turn, Turns, read_tools, read_turns
from brim.tasks.templates import Template, check_columns

OnBadRow = Literal["error", "skip"]

_ROWS_PER_REPORT = 1000
_ROWS_TO_LOOK_AT = 1000  # for a column that the first row lacks


class Source(Protocol):
    """Rows of data that can be read again and again.

    Errors call it by its `name`; ids of its rows begin with its `label`.
    """

    name: str
    label: str

    def identity(self) -> list[Any]:
        """Return JSON values that change when the rows do."""

    def columns(self) -> tuple[str, ...] | None:
        """Return the names of the columns, where the whole source has the same ones."""

    def where(self, number: int) -> str:
        """Return what errors call a row."""

    def rows(self, columns: Sequence[str]) -> Iterator[NumberedRow]:
        """Yield each row with its number, in order: those of `columns` that it has, or more.

        Raises:
            DataError: the source cannot be read to its end.
        """

    def position(self) -> tuple[int, int]:
        """Return how much of the source was read, and how much there is."""


@dataclass(frozen=True)
class Columns:
    """Which columns of a row become which part of an example.

    Attributes:
        template: renders the prompt; None where `messages` is given.
        messages: column with a list of `{role, content}` objects.
        targets: columns with the references: text, or a list of texts; of several, some may be
            null. Of a chat, a last message of the assistant's is the reference where the row has
            none of them.
        optional_target: a row may lack its target, or hold null.
        id: column with the row's id, text or a whole number; None for the row's number.
        optional_id: a row may lack its id, or hold null: it has its number then.
        metrics: what is measured; where one of them compares answers, each reference must have one.
        teacher: column with the name of the teacher that scores the row; None for none.
        references: columns that take the place of `targets` in examples of a split.
        turns: `all` makes an example of each of the assistant's messages in a chat.
        tools: column with the tools that a chat's assistant may call; None for none.
    """

    template: Template | None
    messages: str | None = None
    targets: tuple[str, ...] = ()
    optional_target: bool = False
    id: str | None = None
    optional_id: bool = False
    metrics: tuple[str, ...] = ()
    teacher: str | None = None
    references: Mapping[Split, tuple[str, ...]] = field(default_factory=dict)
    turns: Turns = "last"
    tools: str | None = None

    def required(self, splits: Sequence[Split] = ("train",)) -> tuple[str, ...]:
        """Return the columns that a table of these splits must have."""
        prompt = self.template.fields if self.template else (self.messages,)
        own = self.optional_target or self.messages  # a chat may end with its target
        targets = () if own else [name for split in splits for name in self._targets(split)]
        row_id = None if self.optional_id else self.id
        names = (*prompt, *targets, row_id, self.teacher, self.tools)
        return tuple(dict.fromkeys(name for name in names if name))

    def used(self, splits: Sequence[Split] = ("train",)) -> tuple[str, ...]:
        """Return the columns that are read where there are any."""
        own = () if self.id is None else (self.id,)
        targets = [name for split in splits for name in self._targets(split)]
        return tuple(dict.fromkeys((*self.required(splits), *targets, *own)))

    def has_id(self, row: Row | RowError) -> bool:
        """Return whether a row's id is its own, and not its number."""
        if self.id is None or isinstance(row, RowError):
            return False
        return not (self.optional_id and row.get(self.id) is None)

    def examples(
        self,
        row: Row | RowError,
        default_id: str,
        split_of: Callable[[Example], Split] = lambda example: "train",
        prefix: str = "",
    ) -> tuple[Split, list[Example]]:
        """Return the examples that a row describes, one but for the turns of a chat.

        Args:
            row: the row, or what is wrong with it.
            default_id: of a row without an id of its own.
            split_of: tells the split of the row by its first example, without references.
            prefix: what ids of rows' own begin with.

        Raises:
            RowError: a field is missing or cannot be used; or that is what the row was read as.
        """
        if isinstance(row, RowError):
            raise row
        has_id = self.id is not None and self.has_id(row)
        example_id = prefix + _id(row, self.id or "") if has_id else default_id
        teacher = None
        if self.teacher:
            teacher = checked_text(value_of(row, self.teacher), f'field "{self.teacher}"')
        if self.messages is None:
            assert self.template is not None
            texts = {
                name: checked_text(value_of(row, name), f'field "{name}"')
                for name in self.template.fields
            }
            prompt, span = self.template.render(texts), self.template.longest(texts)
            bare = Example(example_id, prompt, (), (), span, teacher=teacher)
            split = split_of(bare)
            return split, [self._answered(bare, tuple(self._references(row, split)))]
        turns = read_turns(row, self.messages, self.turns)
        tools = read_tools(row, self.tools) if self.tools else ()
        bare = Example(example_id, "", (), turns[0][0], teacher=teacher, tools=tools)
        split = split_of(bare)
        if split in self.references:
            turns = [(turns[-1][0], None)]
        found = []
        for number, (messages, references) in enumerate(self._replies(row, split, turns), 1):
            turn_id = f"{example_id}#{number}" if self.turns == "all" else example_id
            turn = replace(bare, id=turn_id, messages=messages)
            found.append(self._answered(turn, references))
        return split, found

    def _answered(self, example: Example, references: tuple[str, ...]) -> Example:
        for text in references:
            self._check_answer(text)
        return replace(example, references=references)

    def _targets(self, split: Split) -> tuple[str, ...]:
        return self.references.get(split, self.targets)

    def _replies(
        self, row: Row, split: Split, turns: Sequence[Turn]
    ) -> Iterator[tuple[Messages, tuple[str, ...]]]:
        """The messages of each turn with its references: the reply, or else those of columns."""
        has_target = any(row.get(name) is not None for name in self._targets(split))
        if has_target and turns[-1][1] is not None:
            raise RowError(
                f'field "{self.messages}" ends with the assistant\'s message',
                ", which would be the target, but a target column is set too",
            )
        for messages, reply in turns:
            if reply is not None:
                yield messages, (reply,)
            elif has_target or len(turns) == 1:  # or else a message that nothing answers
                yield messages, tuple(self._references(row, split))

    def _references(self, row: Row, split: Split) -> Iterator[str]:
        targets = self._targets(split)
        found = [self.optional_target or value_of(row, name) is not None for name in targets]
        if len(found) > 1 and not any(found):
            names = ", ".join(f'"{name}"' for name in targets)
            raise RowError(f"all of the fields {names} are null or empty cells")
        for name in targets:
            if row.get(name) is None and (self.optional_target or any(found)):
                continue
            value = value_of(row, name)
            if not isinstance(value, list):
                yield checked_text(value, f'field "{name}"')
            elif not value:
                raise RowError(f'field "{name}" is an empty list')
            else:
                yield from (checked_text(item, f'an item of field "{name}"') for item in value)

    def _check_answer(self, reference: str) -> None:
        for metric in self.metrics:
            read = REFERENCE_ANSWERS.get(metric)
            if read is not None and read(reference) is None:
                raise RowError(
                    f"a reference has no answer for {metric}",
                    f": {shorten(reference, 60)!r} must be one number, or end in '#### <number>'",
                )


def read_examples(
    source: Source,
    columns: Columns,
    *,
    on_bad_row: OnBadRow,
    skipped: Counter[str],
    splits: Sequence[Split] = ("train",),
    split_of: Callable[[Example], Split] | None = None,
    prefix: str = "",
    seen: set[bytes] | None = None,
    on_progress: Progress | None = None,
) -> Iterator[tuple[Split, Example]]:
    """Yield the examples of a source with their splits, each row of it checked.

    Args:
        source: where the rows are read.
        columns: what of them makes an example.
        on_bad_row: whether the first bad one is an error.
        skipped: counts the rows that are left out, by reason.
        splits: those that the source is read for.
        split_of: tells a row's split by its prompt; None where there is one.
        prefix: begins every id, where there are several sources.
        seen: the ids of other sources, as `read_examples` keeps them.
        on_progress: called now and then.

    Raises:
        ConfigError: the source has not the columns.
        DataError: a bad row, named as `file:line: reason`; or not a single good one.
    """
    names = source.columns()
    if names is not None:
        check_columns(columns.required(splits), names, source.name)
    # Eight bytes of each id: ids may be long, and must all be in memory.
    seen = set() if seen is None else seen
    split_of = split_of or (lambda example: splits[0])
    num_rows, first_problem, rows = 0, "", source.rows(columns.used(splits))
    for number, row in rows:
        if on_progress and num_rows % _ROWS_PER_REPORT == 0:
            on_progress(source.name, *source.position())
        num_rows += 1
        try:
            default_id = f"{prefix or source.label + ':'}{number}"
            split, examples = columns.examples(row, default_id, split_of, prefix)
            if columns.has_id(row):
                _check_new(examples[0].id, seen)
        except RowError as problem:
            text = f"{source.where(number)}: {problem}"
            if on_bad_row == "error":
                remedy = "mend the row, or leave bad rows out with task.on_bad_row=skip"
                others = islice(rows, _ROWS_TO_LOOK_AT) if problem.column and num_rows == 1 else ()
                has = [problem.column in r for _, r in others if not isinstance(r, RowError)]
                if has and not any(has):
                    remedy = f"none of the first {len(has) + 1} rows has it; use one that they have"
                raise DataError(f"{text}{'' if text.endswith('?') else ';'} {remedy}") from None
            skipped[problem.reason] += 1
            first_problem = first_problem or text
        else:
            for example in examples:
                yield split, example
    if on_progress:
        on_progress(source.name, *source.position())
    if num_rows == skipped.total():
        fault = f"all {num_rows} rows are bad, the first: {first_problem}"
        raise DataError(f"{source.name}: empty: {fault if num_rows else 'no rows'}")


def _check_new(example_id: str, seen: set[bytes]) -> None:
    key = hashlib.blake2b(example_id.encode(), digest_size=8).digest()
    if key in seen:
        raise RowError("id given twice", f": {example_id!r}")
    seen.add(key)


def _id(row: Row, name: str) -> str:
    value = value_of(row, name)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return checked_text(value, f'field "{name}"')
