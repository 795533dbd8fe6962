"""Dates as people of many languages write them, by Babel's copy of the Unicode CLDR patterns.

    pip install babel==2.19.0
    python examples/dates/make_data.py

writes `train.jsonl.gz`, `validation.jsonl.gz` and `test.jsonl.gz` beside this script, or into
`--out`. The same version of Babel gives the same bytes.
"""

import argparse
import gzip
import json
import random
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

from babel.dates import format_date

LOCALES = (
    *("af", "bg", "ca", "cs", "cy", "da", "de", "el", "en", "en_GB", "es", "et", "eu", "fi", "fr"),
    *("ga", "gl", "hr", "hu", "hy", "id", "is", "it", "ka", "ko", "lt", "lv", "mk", "ms", "nb"),
    *("nl", "pl", "pt", "ro", "ru", "sk", "sl", "sq", "sr", "sv", "sw", "tr", "uk", "uz", "vi"),
    "zh",
)
FORMATS = ("full", "long", "medium", "short")
SIZES = {"test": 500, "validation": 300, "train": 12_000}
FIRST, LAST = date(1900, 1, 1), date(2099, 12, 31)


def write_date(day: date, locale: str, form: str) -> str | None:
    """Return the day as it is written there, or None where the year has two digits only.

    With whole years no two days are written alike, also in different languages: American English
    alone would put the month first, and writes such dates with two digits.
    """
    text = " ".join(format_date(day, form, locale).split())
    return text if str(day.year) in text else None


def draw() -> Iterator[dict[str, str]]:
    """Yield rows without end; no day is drawn twice."""
    source = random.Random(0)
    days = list(range((LAST - FIRST).days + 1))
    source.shuffle(days)
    for offset in days:
        day = FIRST + timedelta(offset)
        text = write_date(day, source.choice(LOCALES), source.choice(FORMATS))
        if text is not None:
            yield {"text": text, "iso": day.isoformat()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args(arguments)
    rows = draw()
    for split, size in SIZES.items():
        lines = [json.dumps(next(rows), ensure_ascii=False) + "\n" for _ in range(size)]
        data = gzip.compress("".join(lines).encode(), mtime=0)
        (options.out / f"{split}.jsonl.gz").write_bytes(data)


if __name__ == "__main__":
    main()
