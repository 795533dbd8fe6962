"""Some examples with the text of each system."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from brim.report.evidence import Evidence
from brim.report.markdown import escape_markdown, markdown_table
from brim.report.parts import Output

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Samples:
    """Samples and how they were chosen.

    Attributes:
        rows: in the split's order.
        choice: a sentence for the reader.
    """

    rows: tuple[Output, ...]
    choice: str

    def as_markdown(self) -> str:
        """A small table a sample."""
        parts = [self.choice + "\n"]
        for number, sample in enumerate(self.rows, start=1):
            parts.append(f"### {number}. {escape_markdown(sample.id)}\n")
            references = [("reference", text) for text in sample.references]
            rows = [("prompt", sample.prompt), *references, *sample.texts.items()]
            parts.append(markdown_table([("", "text"), *rows]))
        return "\n".join(parts)


def choose_samples(evidence: Sequence[Evidence], num_samples: int) -> Samples:
    """The same samples for the same predictions: half from all examples, half where texts differ.

    Both halves are evenly spaced; the second leaves out what is in the first.
    """
    columns = [system.predictions for system in evidence]
    num_examples = len(columns[0])
    spaced = evenly_spaced(range(num_examples), num_samples // 2)
    differing = [i for i in range(num_examples) if len({column[i].text for column in columns}) > 1]
    more = evenly_spaced([i for i in differing if i not in spaced], num_samples - len(spaced))
    rows = [
        Output(
            id=columns[0][i].id,
            prompt=columns[0][i].prompt,
            references=columns[0][i].references,
            texts={
                system.label: column[i].text
                for system, column in zip(evidence, columns, strict=True)
            },
            numbers={
                system.label: {"return": value}
                for system, column in zip(evidence, columns, strict=True)
                if (value := column[i].teacher_return) is not None
            },
        )
        for i in sorted([*spaced, *more])
    ]
    choice = (
        f"{len(spaced)} examples evenly spaced over all {num_examples:,} of the split, and "
        f"{len(more)} over the {len(differing):,} where the texts of the systems differ."
    )
    return Samples(tuple(rows), choice)


def evenly_spaced(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of the items, from the first to the last."""
    count = min(count, len(items))
    return [items[i * (len(items) - 1) // max(count - 1, 1)] for i in range(count)]
