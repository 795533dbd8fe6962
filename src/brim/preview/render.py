"""A preview as text for a terminal."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence

from brim.compare.write import printable
from brim.preview.preview import MEASURED, Preview, Shown
from brim.support.tables import ABSENT, align

_SHOWN_CHARACTERS = 1200  # of a prompt or a target, of which the middle is left out


def as_text(found: Preview, width: int = 80) -> str:
    """Return examples, a line a split, and what is bad, in lines of so many characters."""
    lines: list[str] = []
    for split in found.splits:
        for number, shown in enumerate(split.shown, 1):
            lines += [*_example_lines(shown, f"{split.name} {number}", found.unit, width), ""]
    lines += [*_table(found), ""]
    measured = [split for split in found.splits if split.num_measured < split.num_examples]
    if measured:
        lines += _wrap(f"lengths are of {MEASURED:,} examples, evenly spaced", width)
    for split in found.splits:
        if split.unusable:
            of = f"{len(split.unusable):,} of {split.num_measured:,} rows of {split.name}"
            lines += _wrap(
                f"{of} cannot be used by the model; the first: {split.unusable[0]}", width
            )
    for source, reasons in found.skipped.items():
        lines += _wrap(f"bad rows of {source}:", width)
        ordered = Counter(reasons).most_common()
        lines += [line for reason, n in ordered for line in _wrap(f"{n:>7,}  {reason}", width, 9)]
        lines += _wrap(f"the first: {found.first_bad[source]}", width)
    if not found.skipped and not any(split.unusable for split in found.splits):
        lines.append("no bad rows")
    return "\n".join(lines)


def _table(found: Preview) -> list[str]:
    head = ("split", "examples", "prompt", "longest", "cut", "target", "longest", "cut")
    rows: list[Sequence[str]] = [head]
    for split in found.splits:
        cuts = (split.cut_prompts, split.cut_targets)
        cells = [split.name, f"{split.num_examples:,}"]
        for lengths, cut in zip((split.prompts, split.targets), cuts, strict=True):
            count, none = len(lengths), not lengths
            cells += [
                ABSENT if none else f"{sum(lengths) / count:,.1f}",
                ABSENT if none else f"{max(lengths):,}",
                ABSENT if none or found.unit != "tokens" else f"{cut / count:.1%}",
            ]
        rows.append(cells)
    return [*align(rows, [False, *[True] * 7]), f"prompt, target: mean {found.unit}"]


def _example_lines(shown: Shown, title: str, unit: str, width: int) -> list[str]:
    def length(what: str, number: int | None, cut: bool) -> str:
        if number is None:
            return f"no {what}"
        return f"{what} {number:,}{', cut' if cut else ''}"

    prompt = length("prompt", shown.prompt_length, shown.prompt_cut)
    target = length("target", shown.target_length, shown.target_cut)
    head = f"── {title} · {printable(shown.id)} · {prompt} {unit} · {target} "
    lines = [*_wrap(head, width), *_block(shown.prompt, "  ", width)]
    return lines if shown.target is None else [*lines, *_block(shown.target, "→ ", width)]


def _block(text: str, mark: str, width: int) -> list[str]:
    """A text in lines behind a mark; of a long one its beginning and its end."""
    if len(text) > _SHOWN_CHARACTERS:
        half = _SHOWN_CHARACTERS // 2
        left = len(text) - 2 * half
        text = f"{text[:half]}\n[… {left:,} characters …]\n{text[-half:]}"
    lines = [
        line
        for part in text.replace("\r\n", "\n").split("\n")
        for line in (_wrap(printable(part), width - len(mark)) or [""])
    ]
    return [f"{mark if i == 0 else '  '}{line}".rstrip() for i, line in enumerate(lines)]


def _wrap(text: str, width: int, indent: int = 0) -> list[str]:
    lines = textwrap.wrap(
        text,
        width,
        subsequent_indent=" " * indent,
        drop_whitespace=False,  # at the beginning
        break_on_hyphens=False,
    )
    return [line.rstrip() for line in lines]
