"""Some examples side by side, and how each text differs from its reference."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, Literal

from brim.report.evidence import Evidence
from brim.report.markdown import escape_markdown, markdown_table

NUM_SAMPLES = 20

Kind = Literal["same", "extra", "missing"]
Piece = tuple[Kind, str]
Change = tuple[Literal["replace", "delete", "insert", "equal"], int, int, int, int]


@dataclass(frozen=True, slots=True)
class Sample:
    """One example with the text of each system.

    Attributes:
        id, prompt, references: of the example.
        texts: by the label of the system.
    """

    id: str
    prompt: str
    references: tuple[str, ...]
    texts: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "id": self.id,
            "prompt": self.prompt,
            "references": list(self.references),
            "texts": self.texts,
        }


@dataclass(frozen=True, slots=True)
class Samples:
    """Samples and how they were chosen.

    Attributes:
        rows: in the split's order.
        choice: a sentence for the reader.
    """

    rows: tuple[Sample, ...]
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


def choose_samples(evidence: Sequence[Evidence], num_samples: int = NUM_SAMPLES) -> Samples:
    """The same samples for the same predictions: half from all examples, half where texts differ.

    Both halves are evenly spaced; the second leaves out what is in the first.
    """
    columns = [system.predictions for system in evidence]
    num_examples = len(columns[0])
    spaced = _evenly_spaced(range(num_examples), num_samples // 2)
    differing = [i for i in range(num_examples) if len({column[i].text for column in columns}) > 1]
    more = _evenly_spaced([i for i in differing if i not in spaced], num_samples - len(spaced))
    rows = [
        Sample(
            id=columns[0][i].id,
            prompt=columns[0][i].prompt,
            references=columns[0][i].references,
            texts={
                system.label: column[i].text
                for system, column in zip(evidence, columns, strict=True)
            },
        )
        for i in sorted([*spaced, *more])
    ]
    choice = (
        f"{len(spaced)} examples evenly spaced over all {num_examples:,} of the split, and "
        f"{len(more)} over the {len(differing):,} where the texts of the systems differ."
    )
    return Samples(tuple(rows), choice)


def _evenly_spaced(positions: Sequence[int], count: int) -> list[int]:
    """At most `count` of the positions, from the first to the last."""
    count = min(count, len(positions))
    return [positions[i * (len(positions) - 1) // max(count - 1, 1)] for i in range(count)]


def compare(text: str, references: Sequence[str]) -> list[Piece]:
    """`text` in pieces, against the reference nearest to it.

    `same` stands in both, `extra` in the text only, `missing` in the reference only. Words are
    compared, or characters where no reference has more than one word.
    """
    if not references:
        return [("same", text)]
    by_word = any(len(reference.split()) > 1 for reference in references)
    ours = _split(text, by_word)
    _, theirs, changes = max(
        (_align(_split(reference, by_word), ours) for reference in references),
        key=lambda alignment: alignment[0],
    )
    pieces: list[Piece] = []
    for tag, i, i_end, j, j_end in changes:
        missing, written = "".join(theirs[i:i_end]), "".join(ours[j:j_end])
        if tag != "equal":
            pieces.append(("missing", missing.strip()))
            # The space after a word is no mistake.
            pieces.append(("extra", written.rstrip()))
            written = written[len(written.rstrip()) :]
        pieces.append(("same", written))
    return [piece for piece in pieces if piece[1]]


def is_reference(text: str, references: Sequence[str]) -> bool:
    """Whether the text is one of the references, white space aside."""
    return text.split() in [reference.split() for reference in references]


def _align(theirs: list[str], ours: list[str]) -> tuple[float, list[str], list[Change]]:
    """How much of two token lists is common (0 to 1), the first one, and what turns it to ours."""
    matcher = SequenceMatcher(
        None, [t.strip() for t in theirs], [t.strip() for t in ours], autojunk=False
    )
    return matcher.ratio(), theirs, matcher.get_opcodes()


def _split(text: str, by_word: bool) -> list[str]:
    """Words with the white space after them, or characters; joined they are the text."""
    return re.findall(r"\S+\s*|\s+", text) if by_word else list(text)
