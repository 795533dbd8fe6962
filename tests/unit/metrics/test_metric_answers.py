"""Final answers and exact match, against hand-made hostile text."""

import gzip
import json
import re
from pathlib import Path

import pytest

from brim.errors import DataError
from brim.metrics import score, sentence_scores

GSM8K = Path(__file__).parents[4] / "shared" / "data" / "gsm8k" / "test.jsonl.gz"


def accuracy(prediction: str, *references: str) -> tuple[float, float]:
    """Strict accuracy and accuracy with the fallback, of one prediction."""
    result = score(["answer_accuracy"], [prediction], [references], num_resamples=1)
    answer = result["answer_accuracy"]
    return answer.value, answer.details["with_last_number_fallback"]


@pytest.mark.parametrize(
    ("prediction", "answer"),
    [
        ("She has 9 * 2 = $<<9*2=18>>18.\n#### 18", "18"),
        ("#### 18.0", "18"),
        ("#### 018", "18"),
        ("#### 18.", "18"),
        ("#### 18,", "18"),
        ("#### 18 apples", "18"),
        ("#### 18%", "18"),
        ("#### 1,234,567", "1234567"),
        ("#### 1234567", "1,234,567.00"),
        ("#### $18", "18"),
        ("#### -$18", "-18"),
        ("#### $-18", "-18"),
        ("#### .5", "0.50"),
        ("#### -0", "0"),
        ("##### 18", "18"),
        ("#### 18\n#### 20", "18"),
        ("#### 18#### 20 and 21", "18"),
        ("#### --20 #### 18", "18"),  # the first is no number, so that the second one counts
        ("#### $ #### 18", "18"),
        ("<<9*2=18>>18\n#### 18", "18"),
        ("<<9*2=20>>20, 9 * 2 = 18\n#### 18", "18"),
        (
            "#### 12345678901234567890123456789012345678901",
            "12345678901234567890123456789012345678901",
        ),
        ("#### " + "9" * 5000, "9" * 5000),
    ],
)
def test_the_marked_number_is_right(prediction, answer):
    assert accuracy(prediction, f"Some steps.\n#### {answer}") == (100, 100)
    assert accuracy(prediction, f" {answer} \n") == (100, 100)  # a bare number as the reference


@pytest.mark.parametrize(
    ("prediction", "answer"),
    [
        ("#### 20\n#### 18", "18"),  # the first one counts
        ("#### ... #### 20", "18"),  # it is of dots and commas too, as in the official code
        ("#### <<9*2=20>>20", "18"),
        ("#### -18", "18"),
        ("#### 18", "-18"),
        ("#### 180", "18"),
        ("#### 1.8", "18"),
        ("#### 1e3", "1"),
        ("18 #### 20", "18"),
        (
            "#### 12345678901234567890123456789012345678901",
            "12345678901234567890123456789012345678902",
        ),
        ("", "0"),
        ("####", "0"),
        ("#### ", "0"),
        ("#### ...", "0"),
        ("#### ,", "0"),
        ("#### --$", "0"),
        ("#### eighteen", "18"),
        ("#### NaN", "0"),
        ("#### Infinity", "0"),
        ("\x00####\x00", "0"),
    ],
)
def test_a_wrong_or_missing_number_is_wrong_under_both_rules(prediction, answer):
    assert accuracy(prediction, f"#### {answer}") == (0, 0)


@pytest.mark.parametrize(
    "prediction",
    [
        "18",
        "####18",
        "###  18",
        "#### eighteen, which is 18",
        "#### ... 18",
        "The answer is 18.",
        "She makes 20-2=18",
        "It costs $18.00!",
        "#### 1.2.3 or 18",
    ],
)
def test_the_last_number_counts_only_in_the_fallback(prediction):
    assert accuracy(prediction, "#### 18") == (0, 100)


# By hand: issue 12, and others of each kind.
PAIRS = [
    ("1/2", "1/3", False),
    ("1/2", "1/2", True),
    ("1/2", "0.5", True),
    ("1/2", "1", False),
    ("10 000", "10", False),
    ("10 000", "10000", True),
    ("10,000", "10\u202f000", True),
    ("10", "10\u00a0000", False),
    ("1", "1e3", False),
    ("1000", "1e3", True),
    ("-3", "\u22123", True),
    ("3", "\u22123", False),
    ("12", "**12**", True),
    ("12", r"\boxed{12}", True),
    ("$5.00", "5", True),
    ("5 \u20ac", "\u20ac5.00", True),
    ("5%", "5", True),
    ("5.", "5", True),
    ("5", "5 million", False),
]


@pytest.mark.parametrize(("reference", "prediction", "right"), PAIRS)
def test_numbers_are_compared_however_they_are_typeset(reference, prediction, right):
    assert accuracy(f"#### {prediction}", f"Steps.\n#### {reference}") == (100 * right,) * 2
    assert accuracy(f"#### {prediction}", reference) == (100 * right,) * 2
    assert accuracy(prediction, reference) == (100 * right,) * 2
    # The mark that a reference has is asked of the output too.
    assert accuracy(f"so it is {prediction}", f"#### {reference}") == (0, 100 * right)


def test_a_minus_is_not_lost_in_a_sentence():
    assert accuracy("so it is \u22123", "3") == (0, 0)
    assert accuracy("so it is \u22123", "-3") == (0, 100)


@pytest.mark.parametrize(
    ("prediction", "reference", "official", "ours"),
    [
        ("#### 18", "#### 18", True, True),
        ("#### 1,800", "#### 1800", True, True),
        ("#### 1800", "#### 1,800", True, True),
        ("#### 1800", "1,800", True, True),
        ("#### -18", "#### -18", True, True),
        ("#### 0.5", "#### 0.5", True, True),
        ("#### --20 #### 18", "#### 18", True, True),
        # As text these differ from the reference, as numbers they do not.
        ("#### 18.0", "#### 18", False, True),
        ("#### 18.", "#### 18", False, True),
        ("#### .5", "#### 0.5", False, True),
        ("#### 018", "#### 18", False, True),
        ("#### $18", "#### 18", False, True),
        # A dollar sign is no number to the official code, which goes on to the next mark.
        ("#### $20 #### 18", "#### 18", True, False),
        ("#### 1.2.3", "#### 18", False, False),
        ("####18", "#### 18", False, False),
        ("18", "#### 18", False, False),
        ("", "#### 18", False, False),
    ],
)
def test_the_official_rule_stands_beside_ours(prediction, reference, official, ours):
    result = score(["answer_accuracy"], [prediction], [(reference,)], num_resamples=1)
    answer = result["answer_accuracy"]
    assert answer.details["by_official_rule"] == 100 * official
    assert answer.value == 100 * ours


def test_the_official_rule_is_a_metric_too_and_details_are_shares_of_all_examples():
    predictions = ["#### 1", "#### 1.0", "1", "#### 2"]
    scores = score(["gsm8k_accuracy", "answer_accuracy"], predictions, [("#### 1",)] * 4)
    assert [found.value for found in scores.values()] == [25, 50]
    details = scores["answer_accuracy"].details
    assert details == {"with_last_number_fallback": 75, "by_official_rule": 25}
    with pytest.raises(DataError, match=r"gsm8k_accuracy.*example 0 has no answer"):
        score(["gsm8k_accuracy"], ["#### 18"], [("#### $18",)])


def test_any_reference_may_be_met():
    assert accuracy("#### 7", "#### 5", "#### 7") == (100, 100)


@pytest.mark.parametrize(
    "reference",
    [
        *("no number", "", "#### ", "18 apples", "1.2.3", "NaN"),
        *("#### 18 or 20", "#### 18 apples", "#### 3-4", "#### 1,5", "#### 3:30", "#### 1/0"),
        *("#### 3\n#### 4", "#### 10\u00b2", "so it is 5"),
    ],
)
def test_a_reference_without_an_answer_is_named(reference):
    with pytest.raises(DataError, match=r"example 1 has no answer.*#### <number>") as caught:
        score(["answer_accuracy"], ["#### 1"] * 2, [("#### 1",), ("#### 1", reference)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("prediction", "references", "matched"),
    [
        ("a b", ["a b"], True),
        ("  a \t\n b ", ["a b"], True),
        ("a b", ["x", " a\u00a0b\n"], True),
        ("", [" "], True),
        ("a b", ["ab"], False),
        ("A b", ["a b"], False),
        ("a b.", ["a b"], False),
        ("", ["a"], False),
    ],
)
def test_exact_match(prediction, references, matched):
    assert sentence_scores("exact_match", [prediction], [references]).tolist() == [100.0 * matched]


@pytest.mark.skipif(not GSM8K.exists(), reason="the shared data sets are not here")
def test_gsm8k_targets_score_100_and_a_neighbour_s_do_not():
    with gzip.open(GSM8K, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    targets = [row["target"] for row in rows]
    finals = [(row["final"],) for row in rows]
    names = ["answer_accuracy", "exact_match"]
    own = score(names, targets, [(target,) for target in targets], num_resamples=10)
    assert [(own[name].value, own[name].low, own[name].high) for name in names] == [(100,) * 3] * 2
    bare = [re.sub("<<[^>]*>>", "", target) for target in targets]  # without calculator marks
    assert bare != targets
    for predictions in (targets, bare):
        answer = score(["answer_accuracy"], predictions, finals)["answer_accuracy"]
        assert (answer.value, answer.details["by_official_rule"]) == (100, 100)
    neighbours = score(["answer_accuracy"], targets[1:] + targets[:1], finals)["answer_accuracy"]
    by_text = sum(row["final"] == rows[i - 1]["final"] for i, row in enumerate(rows))
    assert neighbours.value == pytest.approx(100 * by_text / len(rows))
