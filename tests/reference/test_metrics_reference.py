"""Our numbers are those of sacrebleu and rouge_score, to 1e-9."""

from itertools import zip_longest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF, TER

from brim.metrics import METRICS, score, sentence_scores, sentence_statistics
from brim.metrics.base import mean_of_sums
from brim.metrics.bootstrap import resample_counts
from brim.metrics.rouge import rouge

SACREBLEU = {"bleu": lambda: BLEU(force=True), "chrf": CHRF, "ter": TER}
ROUGE = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
WORDS = "the a cat cats sat sitting on mat, dog. Dog ran running it's 3.5 — é naïve !"

Corpus = tuple[list[str], list[list[str]]]


def random_corpus(seed: int, *, size: int, max_references: int, noise: float) -> Corpus:
    """References of random words; predictions are noisy copies of the first, some of them empty."""
    rng = np.random.default_rng(seed)
    vocabulary = WORDS.split()

    def sentence() -> list[str]:
        return [str(word) for word in rng.choice(vocabulary, size=rng.integers(1, 14))]

    predictions, references = [], []
    for _ in range(size):
        group = [sentence() for _ in range(rng.integers(1, max_references + 1))]
        words = [word if rng.random() > noise else str(rng.choice(vocabulary)) for word in group[0]]
        kept = [word for word in words if rng.random() > noise / 2]
        predictions.append("" if rng.random() < 0.05 else " ".join(kept))
        references.append([" ".join(words) for words in group])
    return predictions, references


CORPORA: dict[str, Corpus] = {
    "one reference": random_corpus(0, size=40, max_references=1, noise=0.2),
    "one to three references": random_corpus(1, size=40, max_references=3, noise=0.4),
    "mostly noise": random_corpus(2, size=20, max_references=2, noise=0.95),
    "all empty": (["", ""], [["the cat"], ["a", "b c"]]),
    "too short for BLEU": (["the cat", "dog"], [["the cat"], ["the dog"]]),
    "no common word": (["x y z w v"], [["the cat sat on it"]]),
    "no common pair": (["cat the on sat mat a"], [["the cat on the sat"]]),
    "empty references": (["the cat", ""], [[""], [""]]),
    "lines": (["the cat.\nIt sat.\n\nA dog ran."], [["It sat.\nThe cat.", "A dog\nran it"]]),
    "pronunciations": (["K AE1 T", "D AO1 G Z"], [["K AE1 T"], ["D AO1 G", "D AA1 G Z"]]),
    "other scripts": (["кошка сидела", "猫が座った"], [["кошка сидит"], ["猫が座っていた"]]),
}
texts = st.text(alphabet="abAB .,$é\n", max_size=24)
rows = st.tuples(texts, st.lists(texts, min_size=1, max_size=3))


def streams(references: list[list[str]]) -> list[tuple[str | None, ...]]:
    return list(zip_longest(*references))


def check_sacrebleu(name: str, predictions: list[str], references: list[list[str]]) -> None:
    metric = SACREBLEU[name]()
    expected = metric.corpus_score(predictions, streams(references)).score
    ours = score([name], predictions, references, num_resamples=2)[name]
    assert ours.value == pytest.approx(expected, abs=1e-9)
    assert ours.signature == str(metric.get_signature())


@pytest.mark.parametrize("corpus", CORPORA.values(), ids=CORPORA)
@pytest.mark.parametrize("name", SACREBLEU)
def test_corpus_scores_are_sacrebleu_s(name: str, corpus: Corpus) -> None:
    check_sacrebleu(name, *corpus)


@pytest.mark.parametrize("name", SACREBLEU)
@settings(max_examples=60)
@given(st.lists(rows, min_size=1, max_size=5))
def test_corpus_scores_are_sacrebleu_s_on_any_text(
    name: str, corpus: list[tuple[str, list[str]]]
) -> None:
    check_sacrebleu(name, [row[0] for row in corpus], [row[1] for row in corpus])


@pytest.mark.parametrize("name", SACREBLEU)
@pytest.mark.parametrize(
    "corpus", ["one to three references", "mostly noise", "too short for BLEU"]
)
def test_resampled_scores_are_sacrebleu_s_on_the_resampled_texts(name: str, corpus: str) -> None:
    """The vectorised bootstrap against a loop that repeats the texts and scores them anew."""
    predictions, references = CORPORA[corpus]
    (counts,) = resample_counts(len(predictions), 12, seed=4)
    ours = METRICS[name].corpus_score(counts @ sentence_statistics(name, predictions, references))
    for row, value in zip(counts, ours, strict=True):
        rows = np.repeat(np.arange(len(predictions)), row)
        expected = SACREBLEU[name]().corpus_score(
            [predictions[i] for i in rows], streams([references[i] for i in rows])
        )
        assert value == pytest.approx(expected.score, abs=1e-9)


@pytest.mark.parametrize("corpus", CORPORA.values(), ids=CORPORA)
@pytest.mark.parametrize("name", SACREBLEU)
def test_sentence_scores_are_sacrebleu_s(name: str, corpus: Corpus) -> None:
    metric = BLEU(effective_order=True) if name == "bleu" else SACREBLEU[name]()
    expected = [metric.sentence_score(*row).score for row in zip(*corpus, strict=True)]
    assert sentence_scores(name, *corpus) == pytest.approx(expected, abs=1e-9)


def test_bleu_details_are_sacrebleu_s() -> None:
    for predictions, references in CORPORA.values():
        expected = BLEU().corpus_score(predictions, streams(references))
        details = score(["bleu"], predictions, references, num_resamples=1)["bleu"].details
        assert details == pytest.approx(
            {"brevity_penalty": expected.bp, "length_ratio": expected.ratio}
        )


@pytest.mark.parametrize("corpus", CORPORA.values(), ids=CORPORA)
@pytest.mark.parametrize("use_stemmer", [True, False])
@pytest.mark.parametrize("name", ROUGE)
def test_sentence_scores_are_rouge_score_s(name: str, use_stemmer: bool, corpus: Corpus) -> None:
    predictions, references = corpus
    scorer = RougeScorer([name], use_stemmer=use_stemmer)
    expected = [
        100 * max(scorer.score(reference, prediction)[name].fmeasure for reference in group)
        for prediction, group in zip(predictions, references, strict=True)
    ]
    metric = rouge(name, name, use_stemmer=use_stemmer)
    statistics = metric.statistics(predictions, references)
    assert mean_of_sums(statistics) == pytest.approx(expected, abs=1e-9)
    assert ("stem:yes" in metric.signature(references)) == use_stemmer
    if use_stemmer:
        result = score([name], predictions, references, num_resamples=1)[name]
        assert result.value == pytest.approx(np.mean(expected), abs=1e-9)


def test_numbers_worked_out_by_hand() -> None:
    predictions = ["the cats sat", "a dog ran to the park today"]
    references = [("the cat sat down",), ("a dog ran to the park yesterday",)]
    results = score([*ROUGE[:3], "bleu", "ter"], predictions, references)
    # Precision 3/3 and recall 3/4 with "cats" stemmed; 6/7 of both.
    assert results["rouge1"].value == pytest.approx(100 * (6 / 7 + 6 / 7) / 2)
    assert results["rouge2"].value == pytest.approx(100 * (4 / 5 + 5 / 6) / 2)
    assert results["rougeL"].value == pytest.approx(100 * (6 / 7 + 6 / 7) / 2)
    # Matches 8/10, 5/8, 4/6, 3/4 without stemming; 10 tokens against 11.
    precision = (8 / 10 * 5 / 8 * 4 / 6 * 3 / 4) ** (1 / 4)
    assert results["bleu"].value == pytest.approx(100 * np.exp(1 - 11 / 10) * precision)
    # Three edits: "cats", "down", "today".
    assert results["ter"].value == pytest.approx(100 * 3 / 11)
