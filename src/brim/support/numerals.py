r"""The number that a text gives as its answer, however it is typeset.

`10 000`, `10,000` and `1e4` are one number; `\boxed{12}` and `**12**` are 12; U+2212 is a minus.
What looks like one number is read as a whole or not at all: `1/3` is not 1, and `3:30`, `1.2.3`
and `1,5` are no numbers.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction

MARK = "#### "  # what GSM8K's solutions write before their answer

# One spelling for each kind of character; None deletes: soft hyphens, and marks of direction.
_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys([*map(chr, range(0x2000, 0x200B)), *"\t\u00a0\u202f\u205f\u3000"], " "),
        **dict.fromkeys([*map(chr, range(0x2010, 0x2016)), *"\u2212\ufe58\ufe63\uff0d"], "-"),
        **dict.fromkeys([*map(chr, range(0x200B, 0x2010)), *map(chr, range(0x202A, 0x202F))]),
        **dict.fromkeys([*map(chr, range(0x2060, 0x2070)), "\u00ad", "\ufeff"]),
        **dict.fromkeys("\u2044\u2215", "/"),
        **dict.fromkeys("\u00b7\u22c5", "\u00d7"),
        "\u2019": "'",
    }
)
_LATEX = (
    (re.compile(r"\\[,;: ]"), " "),
    (re.compile(r"\\!|(?<=[0-9])\{(?=,\})|(?<=\{,)\}"), ""),  # 1,\!000
    (re.compile(r"\{,\}"), ","),  # 1{,}000
    (re.compile(r"\\(?:times|cdot)\b"), "\u00d7"),
    (re.compile(r"\\(?:boxed|fbox|text|textbf|mathbf|mathrm|displaystyle|left|right)\b"), ""),
    (re.compile(r"\\(?=[^a-zA-Z])"), ""),  # \$5, \(5\), 50\%
)
_POWER = re.compile("[\u00b2\u00b3\u00b9\u2070-\u207b]+")
_VULGAR = "\u00bc-\u00be\u2150-\u215e\u2189"  # such as ½
_FRACTION = re.compile(
    r"(?:([0-9]) *)?(?:\\[cdt]?frac *(?:\{([^{}]*)\}|([0-9])) *(?:\{([^{}]*)\}|([0-9]))"
    rf"|([{_VULGAR}]))"
)

_CURRENCY = "$\u00a2-\u00a5\u0e3f\u20a0-\u20cf\uff04\uffe0\uffe1\uffe5\uffe6"
_AROUND = rf"\s*_`\"'()\[\]{{}}\u201c\u201d\u00ab\u00bb{_CURRENCY}"
_MINUS_IN_WORDS = re.compile(
    rf"(?<![0-9)\]}}%] )\b(?:minus|negative) +(?=[{_CURRENCY}0-9.])", re.IGNORECASE
)
# All that belongs to one number, or makes it another one.
_CHUNK = r"""(?P<chunk>(?:[0-9]|(?<![\w.])\.(?=[0-9]))(?:
    [0-9]
    | [.,'_:](?=[0-9])
    | (?<=[0-9])(?<![0-9]{4})[ ](?=[0-9]{3}(?![0-9]))  # 10 000
    | [ ](?=[0-9]{1,2}[ ]?/[ ]?[0-9])  # 1 1/2
    | [ ]?/[ ]?(?=\.?[0-9])
    | [eE][-+]?(?=[0-9])
    | [ ]?[x\u00d7*][ ]?(?=10[ ]?\^)
    | [ ]?\^[ ]?\{?[-+]?(?=[0-9])
    | \*\*(?=[0-9])
)*)(?:[ ]?(?P<scale>(?i:k|hundred|thousand|million|billion|trillion))\b)?"""
_SCALES = {"k": 3, "hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_WHOLE = re.compile(
    rf"[{_AROUND}]*(?:(?P<sign>[-+])[{_AROUND}]*)?{_CHUNK}[{_AROUND}.,;:!?%\u3002]*",
    re.VERBOSE,
)
# What follows the mark on its line, unless it goes on as a sum.
_MARKED = re.compile(
    rf"""\#\#\#\#[ ](?:(?!\n)[{_AROUND}])*(?:(?P<sign>[-+])(?:(?!\n)[{_AROUND}])*)?{_CHUNK}
    (?![0-9]|[)\]}}]*[ ]?[-+*/x\u00d7\u00f7=][ ]?[-+{_CURRENCY}(]*[0-9])""",
    re.VERBOSE,
)
# A minus after a word, a number or a bracket subtracts: the last number of `16-3` is 3.
_ANY = re.compile(
    rf"""(?:(?P<sign>(?<![\w.)\]}}%])-|(?<==[ ])-[ ])(?:[{_CURRENCY}][ ]?|[*_`{{(])*)?{_CHUNK}""",
    re.VERBOSE,
)
_GROUPED = "|".join(
    rf"[0-9]{{1,3}}(?:{separator}[0-9]{{3}})+" for separator in ("[ ]", "'", "_", "(?:,[0-9]{2})*,")
)
_DECIMAL = rf"(?:(?:{_GROUPED}|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
_VALUE = re.compile(
    rf"""(?:(?P<whole>[0-9]+)[ ](?=[0-9]{{1,2}}[ ]?/))?(?P<top>{_DECIMAL})
        [ ]?/[ ]?(?P<bottom>{_DECIMAL})
    | (?P<decimal>{_DECIMAL})
        (?:(?:[eE]|[ ]?[x\u00d7*][ ]?10[ ]?\^[ ]?\{{?)(?P<exponent>[-+]?[0-9]{{1,3}}))?
    """,
    re.VERBOSE,
)
# github.com/openai/grade-school-math, dataset.py: the first match of this, without its commas, is
# compared as text. So `#### 18.0` is not its `#### 18`, nor is `#### $18`.
_OFFICIAL = re.compile(r"#### (-?[0-9.,]+)")


def marked_number(text: str) -> Fraction | None:
    """The number after the first `#### ` that has one, or None where it cannot be read."""
    return _read(_MARKED.search(_plain(text)))


def whole_number(text: str) -> Fraction | None:
    """The number that is all of the text but for mark-up, currency and punctuation, or None."""
    return _read(_WHOLE.fullmatch(_plain(text)))


def last_number(text: str) -> Fraction | None:
    """The last number in the text, whatever is around it, or None where it cannot be read."""
    found = [*_ANY.finditer(_plain(text))]
    return _read(found[-1]) if found else None


def official_answer(text: str) -> str | None:
    """The text of the first number after `#### `, without commas, or None: GSM8K's own rule."""
    marked = _OFFICIAL.search(text)
    return marked[1].replace(",", "") if marked else None


def reference_number(text: str) -> Fraction | None:
    """The answer of a reference: one number, alone or as all that follows `#### `; or None."""
    return whole_number(text.partition(MARK)[2] if MARK in text else text)


def official_reference(text: str) -> str | None:
    """The answer of a reference as GSM8K's own rule compares it, or None."""
    if reference_number(text) is None:
        return None
    return official_answer(text if MARK in text else MARK + text.strip())


REFERENCE_ANSWERS: Mapping[str, Callable[[str], object]] = {
    "answer_accuracy": reference_number,
    "gsm8k_accuracy": official_reference,
}
"""How metrics that compare answers read a reference; None where it has no answer."""


def _plain(text: str) -> str:
    text = text.translate(_CHARACTERS)
    text = _POWER.sub(lambda power: "^" + _ascii(power[0]), text)
    text = _FRACTION.sub(_spell_fraction, text)
    for pattern, plain in _LATEX:
        text = pattern.sub(plain, text)
    return _MINUS_IN_WORDS.sub("-", text)


def _spell_fraction(match: re.Match[str]) -> str:
    r"""`½` and `\frac{1}{2}` as 1/2, with a space behind a whole number."""
    before, *parts, vulgar = match.groups()
    fraction = _ascii(vulgar) if vulgar else "/".join(part for part in parts if part is not None)
    return f"{before} {fraction}" if before else fraction


def _ascii(text: str) -> str:
    return unicodedata.normalize("NFKC", text).translate(_CHARACTERS)


def _read(match: re.Match[str] | None) -> Fraction | None:
    found = _VALUE.fullmatch(match["chunk"]) if match else None
    if match is None or found is None:
        return None
    value: Fraction
    if found["bottom"] is None:
        value = _decimal(found["decimal"]) * Fraction(10) ** int(found["exponent"] or 0)
    elif bottom := _decimal(found["bottom"]):
        value = _decimal(found["whole"] or "0") + _decimal(found["top"]) / bottom
    else:
        return None
    value *= 10 ** _SCALES.get((match["scale"] or "").lower(), 0)
    return -value if "-" in (match["sign"] or "") else value


def _decimal(text: str) -> Fraction:
    return Fraction(Decimal(re.sub("[ ,'_]", "", text)))  # of any length, as int() is not
