"""Pairs of English and Danish package descriptions, from two files of a Debian archive.

    python examples/translation/make_data.py Translation-en.xz Translation-da.bz2

writes `train.jsonl.gz`, `validation.jsonl.gz` and `test.jsonl.gz` beside this script, or into
`--out`. The same two files give the same bytes.
"""

import argparse
import bz2
import gzip
import hashlib
import json
import lzma
import re
from collections.abc import Iterator
from pathlib import Path

SIZES = {"test": 500, "validation": 300, "train": 15_000}
WORDS = range(3, 7)  # of both texts


def read_descriptions(path: Path) -> dict[tuple[str, str], str]:
    """Return the short description of each package, by its name and the long text's md5."""
    opened = {".xz": lzma.open, ".bz2": bz2.open}.get(path.suffix, open)
    with opened(path, "rt", encoding="utf-8") as file:
        paragraphs = file.read().split("\n\n")
    fields = [
        dict(re.findall(r"^(Package|Description-\w+): (.*)$", text, re.MULTILINE))
        for text in paragraphs
    ]
    return {
        (one.pop("Package"), one.pop("Description-md5")): next(iter(one.values()))
        for one in fields
        if len(one) == 3
    }


def pair(english: dict, danish: dict) -> dict[str, list[dict[str, str]]]:
    """Return the pairs by the stem of their English text, one for each English text.

    A stem is what precedes the first bracket, colon, comma or dash: `game X (data files)` and
    `game X - server` share one, and so will be in one split.
    """
    pairs = {}
    for key in sorted(english.keys() & danish.keys()):
        texts = [" ".join(text.split()) for text in (english[key], danish[key])]
        if all(len(text.split()) in WORDS for text in texts) and texts[0] != texts[1]:
            pairs.setdefault(texts[0], dict(zip(("en", "da"), texts, strict=True)))
    stems: dict[str, list[dict[str, str]]] = {}
    for text, row in pairs.items():
        stem = re.split(r"\s*[(:;,]|\s+[-\u2013\u2014]+\s", text.lower())[0]
        stems.setdefault(stem, []).append(row)
    return stems


def divide(stems: dict[str, list[dict[str, str]]]) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Yield the name and the rows of each split, which no stem of another one is in."""
    order = iter(sorted(stems, key=hash_of))
    for split, size in SIZES.items():
        rows: list[dict[str, str]] = []
        while len(rows) < size and (stem := next(order, None)) is not None:
            rows += stems[stem]
        yield split, sorted(rows[:size], key=lambda row: hash_of(row["en"]))


def hash_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("english", type=Path)
    parser.add_argument("danish", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args(arguments)
    stems = pair(*map(read_descriptions, (options.english, options.danish)))
    for split, rows in divide(stems):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        data = gzip.compress("".join(lines).encode(), mtime=0)
        (options.out / f"{split}.jsonl.gz").write_bytes(data)


if __name__ == "__main__":
    main()
