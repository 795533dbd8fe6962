"""Data that is part of the package: xz-compressed tables, `id <tab> text [<tab> text ...]`."""

from __future__ import annotations

import hashlib
import lzma
from importlib import resources

from brim.tasks.base import Split


def read_table(name: str, split: Split) -> list[list[str]]:
    """The rows of a bundled split, in an order that has nothing to do with their content.

    The files are sorted, which halves their size; the order here is that of a hash of the ids, so
    that the first rows are a fair sample.
    """
    file = resources.files("brim") / "data" / name / f"{split}.tsv.xz"
    text = lzma.decompress(file.read_bytes()).decode()
    rows = [line.split("\t") for line in text.removesuffix("\n").split("\n")]
    return sorted(rows, key=lambda row: hashlib.blake2b(row[0].encode(), digest_size=8).digest())
