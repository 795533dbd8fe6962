"""Reading the data of a task as training will, and measuring it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from brim.config.loading import Config
from brim.errors import DataError
from brim.examples import Example
from brim.tasks import Files, ReadTask, Split, Task
from brim.tasks.base import Progress

if TYPE_CHECKING:
    from brim.models import Encoder

MEASURED = 2000
"""Examples of a split, evenly spaced, whose lengths are measured."""


class Limits(Config):
    """Token limits, as a recipe's `decoding` has them."""

    max_prompt_tokens: int | None = None
    """Longer prompts are cut; null for no limit."""
    max_tokens: int | None = None
    """Longer targets are cut; null for no limit."""


class DataConfig(Config):
    """What is looked at where no recipe says so."""

    task: Files = Files()
    """The data."""
    decoding: Limits = Limits()
    """What is cut."""


@dataclass(frozen=True, slots=True)
class Shown:
    """An example as it is read: its prompt and target, with their lengths in `Preview.unit`."""

    id: str
    prompt: str
    target: str | None
    prompt_length: int
    target_length: int | None
    prompt_cut: bool = False
    target_cut: bool = False


@dataclass(slots=True)
class SplitPreview:
    """What is known of a split.

    Attributes:
        name: the split.
        num_examples: all of them, less bad rows.
        num_measured: those that the following are of.
        prompts: lengths of prompts before any is cut.
        targets: lengths of first references.
        cut_prompts: how many are longer than they may be.
        cut_targets: likewise.
        unusable: why rows cannot be used by the model: as many reasons as rows.
        shown: some of them, evenly spaced.
    """

    name: Split
    num_examples: int
    num_measured: int = 0
    prompts: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    cut_prompts: int = 0
    cut_targets: int = 0
    unusable: list[str] = field(default_factory=list)
    shown: list[Shown] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Preview:
    """What the data of a task is.

    Attributes:
        unit: of lengths: `tokens`, or `characters` without a tokenizer.
        splits: those that the task has.
        skipped: by source, its bad rows by reason.
        first_bad: by source, the error of the first of them.
    """

    unit: str
    splits: tuple[SplitPreview, ...]
    skipped: Mapping[str, Mapping[str, int]]
    first_bad: Mapping[str, str]


def preview(
    task: Task,
    encoder: Encoder | None = None,
    *,
    max_prompt_tokens: int | None = None,
    max_tokens: int | None = None,
    num_shown: int = 10,
    on_progress: Progress | None = None,
) -> Preview:
    """Read the data of a task as training will, and show some of it.

    Args:
        task: whose data.
        encoder: what the model reads the text with; None to show and measure the text alone.
        max_prompt_tokens: longer prompts are cut; None for no limit.
        max_tokens: longer targets are cut; None for no limit.
        num_shown: how many examples of the first split are shown, evenly spaced.
        on_progress: called as files are read.

    Raises:
        DataError: the data is missing, empty, or all of its rows are bad.
        ConfigError: the settings do not fit the data.
        ModelError: there are chats and the tokenizer has no chat template.
    """
    splits: list[SplitPreview] = []
    skipped: dict[str, Mapping[str, int]] = {}
    first_bad: dict[str, str] = {}
    lenient = task.model_copy(update={"on_bad_row": "skip"}) if isinstance(task, ReadTask) else task
    with TemporaryDirectory(prefix="brim-data-") as folder:
        for name in task.splits():
            if isinstance(task, ReadTask) and not (
                task.sources()[name] or task.fractions().get(name)
            ):
                continue
            examples = lenient.load(name, cache_dir=Path(folder), on_progress=on_progress)
            facts = getattr(examples, "provenance", {})
            source = str(facts.get("source", ""))
            if facts.get("skipped") and source not in skipped:
                skipped[source] = facts["skipped"]
                first_bad[source] = _first_bad(task, name, Path(folder))
            found = SplitPreview(name, len(examples))
            _measure(found, _some(examples, MEASURED), encoder, max_prompt_tokens, max_tokens)
            if not splits:
                for example in _some(examples, num_shown):
                    found.shown += _show(example, encoder, max_prompt_tokens, max_tokens)
            splits.append(found)
    unit = "characters" if encoder is None else "tokens"
    return Preview(unit, tuple(splits), skipped, first_bad)


def _first_bad(task: Task, split: Split, folder: Path) -> str:
    try:
        task.model_copy(update={"on_bad_row": "error"}).load(split, cache_dir=folder)
    except DataError as error:
        return str(error)
    return ""


def _some(examples: Sequence[Example], number: int) -> list[Example]:
    """So many of them, evenly spaced, or all."""
    count = min(number, len(examples))
    return [examples[i * len(examples) // count] for i in range(count)]


def _measure(
    found: SplitPreview,
    examples: Sequence[Example],
    encoder: Encoder | None,
    max_prompt_tokens: int | None,
    max_tokens: int | None,
) -> None:
    """Put the lengths of these examples into what is known of their split."""
    found.num_measured = len(examples)
    for example in examples:
        try:
            prompt, target = _lengths(example, encoder)
        except DataError as error:
            found.unusable.append(str(error))
            continue
        found.prompts.append(prompt)
        found.cut_prompts += encoder is not None and prompt > (max_prompt_tokens or prompt)
        if target is not None:
            found.targets.append(target)
            found.cut_targets += encoder is not None and target > (max_tokens or target)


def _lengths(example: Example, encoder: Encoder | None) -> tuple[int, int | None]:
    """The lengths of a prompt and of its target, with the end that it gets."""
    texts = example.references[:1]
    if encoder is None:
        return len(example.text), len(texts[0]) if texts else None
    ((ids,), _) = encoder.prompts([example], None)
    targets = encoder.completions([example] if texts else [], texts)
    return len(ids), len(targets[0]) if targets else None


def _show(
    example: Example,
    encoder: Encoder | None,
    max_prompt_tokens: int | None,
    max_tokens: int | None,
) -> Iterator[Shown]:
    """The example as the model reads it; nothing where it cannot."""
    target = example.references[0] if example.references else None
    try:
        lengths = _lengths(example, encoder)
    except DataError:
        return
    if encoder is None:
        yield Shown(example.id, example.text, target, *lengths)
        return
    ((ids,), num_cut) = encoder.prompts([example], max_prompt_tokens)
    cut = target is not None and (lengths[1] or 0) > (max_tokens or lengths[1] or 0)
    if target is not None and cut:
        (tokens,) = encoder.completions([example], [target])
        target = encoder.texts([tokens[:max_tokens]])[0]
    prompt = encoder.tokenizer.decode(ids, skip_special_tokens=False)
    yield Shown(example.id, str(prompt), target, *lengths, num_cut > 0, cut)
