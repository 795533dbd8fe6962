"""The public surface: registry, printing, errors, and a metric of one's own."""

import json
import logging

import numpy as np
import pytest

from brim.errors import ConfigError, DataError
from brim.metrics import METRICS, Metric, Score, score, sentence_scores, sentence_statistics
from brim.support.numerals import REFERENCE_ANSWERS

PREDICTIONS = ["the cat sat on the mat", "", "a dog barked at the moon"]
REFERENCES = [("the cat sat on a mat", "a cat sat"), ("nothing",), ("the dog barked at it",)]


def test_score_prints_value_and_interval():
    bleu = Score("BLEU", 34.94, 33.81, 35.96, 0.95, "sig", True, 10)
    assert str(bleu) == f"{bleu}" == "BLEU 34.9 [33.8, 36.0]"
    assert f"{bleu:.2f}" == "BLEU 34.94 [33.81, 35.96]"


def test_score_survives_json():
    for result in score(set(METRICS) - REFERENCE_ANSWERS.keys(), PREDICTIONS, REFERENCES).values():
        assert Score(**json.loads(json.dumps(result.as_dict()))) == result


def test_scores_come_in_the_order_asked_for():
    names = ["ter", "rougeL", "bleu"]
    results = score(names, PREDICTIONS, REFERENCES)
    assert list(results) == names
    assert [result.higher_is_better for result in results.values()] == [False, True, True]


@pytest.mark.parametrize("name", sorted(METRICS))
def test_perfect_predictions(name):
    texts = ["one two three four five\n#### 1", "six seven eight nine ten\n#### 2"]
    references = [("something else\n#### 3", texts[0]), (texts[1],)]
    perfect = score([name], texts, references)[name]
    best = 0 if name == "ter" else 100
    assert [perfect.value, perfect.low, perfect.high] == pytest.approx([best] * 3)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_empty_predictions_are_the_worst(name):
    references = [("#### 1",), ("#### 2",)]
    result = score([name], ["", ""], references)[name]
    assert result.value == (100 if name == "ter" else 0)


@pytest.mark.parametrize("name", ["rouge1", "rouge2", "rougeL", "rougeLsum", "exact_match"])
def test_sentence_scores_average_to_the_corpus_score(name):
    sentences = sentence_scores(name, PREDICTIONS, REFERENCES)
    assert sentences.shape == (3,)
    assert sentences.mean() == pytest.approx(score([name], PREDICTIONS, REFERENCES)[name].value)


@pytest.mark.parametrize("name", sorted(set(METRICS) - REFERENCE_ANSWERS.keys()))
def test_sentence_statistics_add_up(name):
    statistics = sentence_statistics(name, PREDICTIONS, REFERENCES)
    assert statistics.dtype == np.float64
    assert len(statistics) == 3
    whole = METRICS[name].corpus_score(statistics.sum(axis=0))
    assert float(whole) == score([name], PREDICTIONS, REFERENCES)[name].value


def test_signatures_name_what_the_number_depends_on():
    signatures = {
        name: result.signature
        for name, result in score(
            ["bleu", "rouge1", "exact_match"], PREDICTIONS, REFERENCES
        ).items()
    }
    assert all(text.startswith("nrefs:var|") for text in signatures.values())
    assert all("|version:" in text for text in signatures.values())
    assert "|stem:yes|" in signatures["rouge1"]
    assert "|norm:whitespace|" in signatures["exact_match"]
    single = score(["rouge1"], ["a"], [("a", "b")])["rouge1"].signature
    assert single.startswith("nrefs:2|")


def test_a_metric_of_ones_own(monkeypatch):
    def statistics(predictions, references):
        return np.array(
            [[len(p), len(r[0])] for p, r in zip(predictions, references, strict=True)], float
        )

    ratio = Metric(
        label="length",
        higher_is_better=False,
        statistics=statistics,
        corpus_score=lambda sums: 100 * sums[..., 0] / sums[..., 1],
        signature=lambda references: "unit:characters",
        details=lambda sums: {"characters": float(sums[0])},
        bounds=(60.0, 140.0),
    )
    monkeypatch.setitem(METRICS, "length", ratio)
    result = score(["length"], ["ab", "abcd"], [("abc",), ("abc",)])["length"]
    assert (result.value, result.details) == (100, {"characters": 6})
    assert (result.low, result.high) == (60, 140)  # two examples say little
    assert sentence_scores("length", ["ab"], [("abcd",)]).tolist() == [50]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bleau", "unknown metric 'bleau': did you mean 'bleu'"),
        ("rouge-1", "did you mean 'rouge1'"),
        ("answers_accuracy", "did you mean 'answer_accuracy'"),
        ("xyzzy", "choose from rouge1, .*answer_accuracy"),
    ],
)
def test_unknown_metric(name, message):
    for call in (score, sentence_scores, sentence_statistics):
        with pytest.raises(ConfigError, match=message):
            call([name] if call is score else name, PREDICTIONS, REFERENCES)


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([], [], "nothing to score"),
        (["a"], [], "1 predictions for 0 groups of references"),
        (["a"], [("a",), ("b",)], "1 predictions for 2 groups"),
        (["a", "b"], [("a",), ()], "example 1 has no references"),
        (["a", "b"], [("a",), "b"], "references of example 1 are 'b'; give a tuple"),
        (["a", "b"], [("a",), (None,)], "references of example 1"),
        (["a", None], [("a",), ("b",)], "prediction of example 1 is None"),
    ],
)
def test_texts_that_cannot_be_scored(predictions, references, message):
    for call in (score, sentence_scores, sentence_statistics):
        with pytest.raises(DataError, match=message) as caught:
            call(["bleu"] if call is score else "bleu", predictions, references)
        assert "\n" not in str(caught.value)


def test_text_that_looks_tokenised_gives_no_warning(caplog):
    with caplog.at_level(logging.DEBUG):
        score(["bleu"], ["k ae t ."] * 150, [("k ae t .",)] * 150)
        sentence_scores("bleu", ["k ae t ."], [("k ae t .",)])
    assert not caplog.records
