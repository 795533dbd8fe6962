"""The number of an answer, read from the ways in which people and models write it."""

from fractions import Fraction

import pytest

from brim.support.numerals import last_number, marked_number, reference_number, whole_number

THOUSANDS = [
    *("10000", "10,000", "10 000", "10\u00a0000", "10\u2009000", "10\u202f000", "10'000"),
    *("10\u2019000", "10_000", "1e4", "1E+4", "0.1e5", "1 x 10^4", "1 \u00d7 10\u2074", "10k"),
    *(r"1 \times 10^{4}", r"10\,000", "10{,}000", r"10,\!000", "10 thousand", "10,000.00"),
]
TWELVES = [
    *("12.0", "**12**", "*12*", "__12__", "`12`", r"\boxed{12}", r"$\boxed{12}$", r"\(12\)"),
    *(r"\[ 12 \]", r"$\mathbf{12}$", r"\text{12}", "$12", "$ 12", r"\$12", "12\u20ac", "12 \u20ac"),
    *(
        "\u00a312",
        "\u20b912",
        "12%",
        r"12\%",
        "12.",
        "12!",
        "12\u3002",
        '"12"',
        "(12)",
        "+12",
        "12,",
    ),
    *("\ufeff12", "12\u200b"),
]
MINUSES = [
    *("-3", "\u22123", "\u20133", "\u20113", "\uff0d3", "- 3", "\u2212 3", "-$3", "$-3", "-**3**"),
    *("**-3**", "\u200f-3", "minus 3", "negative $3", r"\boxed{-3}", "-3.00"),
]
HALVES = [
    *("1/2", "1 / 2", ".5", "0.5", "\u00bd", "1\u20442", r"\frac{1}{2}", r"\dfrac12", "2/4"),
    *(r"$\frac{1}{2}$", "5e-1", "**1/2**"),
]
MIXED = ["1 1/2", "1\u00bd", "1 \u00bd", r"1\frac{1}{2}", "3/2", "1.5"]


@pytest.mark.parametrize(
    ("texts", "value"),
    [
        (THOUSANDS, Fraction(10_000)),
        (TWELVES, Fraction(12)),
        (MINUSES, Fraction(-3)),
        (HALVES, Fraction(1, 2)),
        (MIXED, Fraction(3, 2)),
        (["1,00,000", "100,000"], Fraction(100_000)),
    ],
)
def test_one_number_in_many_spellings(texts, value):
    for text in texts:
        assert whole_number(f" {text}\n") == value, text
        assert reference_number(f"Steps with 7.\n#### {text}") == value, text
        assert marked_number(f"Steps with 7.\n#### {text}\nand 8") == value, text
        if text not in ("- 3", "\u2212 3"):  # a dash, there
            assert last_number(f"7 so it is {text}") == value, text


def test_digits_beyond_the_limit_of_int():
    assert whole_number("9" * 5000 + ".0") == 10 ** Fraction(5000) - 1


@pytest.mark.parametrize(
    "text",
    [
        *("3:30", "1.2.3", "1,5", "12,34", "1.234,5", "1/0", "1/2/3", "10^3", "10\u00b2", "2**3"),
        *(
            "1e1000",
            "--3",
            "",
            "#",
            "\u0663",
            "NaN",
            "$",
            "...",
            "3-4",
            "1/-2",
            "5*2=10",
            "16 - 3",
            "0x1F",
        ),
    ],
)
def test_what_is_not_one_number_is_none(text):
    for read in (whole_number, reference_number, lambda text: marked_number(f"#### {text}")):
        assert read(text) is None, read


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("16-3", 3),
        ("16 - 3 = -13", -13),
        ("x = - 13", -13),
        ("(4)-5", 5),
        ("4\u20135", 5),
        ("a loss of -$1,250.50.", Fraction("-1250.5")),
        ("only .5", Fraction(1, 2)),
        ("or so...18", 18),
        ("5. ", 5),
        ("so it is \u22123", -3),
        ("so it is minus 3", -3),
        ("5 minus 3", 3),
        ("in 2024 500 came", 500),
        ("one, two", None),
        ("at 3:30", None),
        ("\u0663", None),
    ],
)
def test_last_number(text, number):
    assert last_number(text) == number


def test_long_texts_are_read_in_linear_time():
    for unit in (
        "(",
        "{",
        "*",
        "- ",
        "$-",
        "1/",
        "1 ",
        "1 000 ",
        "1,",
        "10 ^ ",
        "#### ",
        r"\frac{1}{",
    ):
        for read in (whole_number, marked_number, last_number):
            read(unit * 20_000)  # minutes, were it quadratic
