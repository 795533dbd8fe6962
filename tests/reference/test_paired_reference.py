"""Our paired tests against sacrebleu's, on the summaries of software packages."""

import logging

import numpy as np
import pytest
import sacrebleu.significance
from sacrebleu.metrics import BLEU, CHRF, TER
from sacrebleu.significance import PairedTest, _compute_p_value

from brim.metrics import METRICS, Pair, approximate_randomization, paired_bootstrap
from brim.metrics import sentence_statistics as statistics_of
from brim.metrics.bootstrap import resample_counts
from brim.tasks import Synopsis

SACREBLEU = {"bleu": lambda: BLEU(force=True), "chrf": CHRF, "ter": TER}
NAMES = {"bleu": "BLEU", "chrf": "chrF2", "ter": "TER"}
NUM_DRAWS = 2000


def cut(text: str, rate: float, seed: int) -> str:
    """The text with a part of its words gone."""
    rng = np.random.default_rng(seed)
    return " ".join(word for word in text.split() if rng.random() >= rate)


@pytest.fixture(scope="module")
def corpus() -> tuple[list[str], dict[str, list[str]]]:
    """References, and systems that write them less and less completely."""
    examples = Synopsis().load("test")[:150]
    references = [example.references[0] for example in examples]
    rates = {"base": 0.2, "as good": 0.2, "a little worse": 0.24, "worse": 0.35}
    systems = {
        label: [cut(text, rate, 1000 * k + i) for i, text in enumerate(references)]
        for k, (label, rate) in enumerate(rates.items())
    }
    return references, systems


@pytest.fixture(scope="module")
def theirs(corpus) -> dict[str, dict[str, dict[str, float]]]:
    """By kind of test, system and metric the p-values of sacrebleu.

    It counts trials that are further out than what was seen, and not those that are as far out, of
    which there are many where scores are counts of edits. "ar with ties" counts them.
    """
    references, systems = corpus
    logging.getLogger("sacrebleu").setLevel(logging.ERROR)
    found = {}
    for kind in ("ar", "ar with ties", "bs"):
        test = PairedTest(
            list(systems.items()),
            {name: make() for name, make in SACREBLEU.items()},
            [references],
            test_type=kind[:2],
            n_samples=NUM_DRAWS,
        )
        with pytest.MonkeyPatch.context() as patch:
            if kind == "ar with ties":
                patch.setattr(sacrebleu.significance, "_compute_p_value", with_ties)
            _, scores = test()
        found[kind] = {
            label: {name: scores[NAMES[name]][i].p_value for name in NAMES}
            for i, label in enumerate(scores["System"])
            if i
        }
    return found


def with_ties(differences: np.ndarray, observed: float) -> float:
    return float((differences >= observed - 1e-9).sum() + 1) / (len(differences) + 1)


def pairs_of(corpus, label: str) -> dict[str, Pair]:
    references, systems = corpus
    groups = [(reference,) for reference in references]
    return {
        name: Pair(
            statistics_of(name, systems["base"], groups),
            statistics_of(name, systems[label], groups),
            METRICS[name].corpus_score,
        )
        for name in SACREBLEU
    }


def test_there_are_clear_and_unclear_cases(theirs) -> None:
    p_values = [p for label in theirs["ar"].values() for p in label.values()]
    assert min(p_values) < 0.001
    assert max(p_values) > 0.2


@pytest.mark.parametrize("label", ["as good", "a little worse", "worse"])
def test_randomization_is_sacrebleu_s(corpus, theirs, label: str) -> None:
    ours = approximate_randomization(pairs_of(corpus, label), num_trials=NUM_DRAWS)
    for name, expected in theirs["ar with ties"][label].items():
        assert (ours[name] < 0.05) == (theirs["ar"][label][name] < 0.05)
        # Both are estimates of one number, from 2,000 trials each.
        error = np.sqrt(2 * max(expected, 0.001) * (1 - expected) / NUM_DRAWS)
        assert abs(ours[name] - expected) < 4 * error, name


@pytest.mark.parametrize("label", ["as good", "a little worse", "worse"])
def test_sacrebleu_s_bootstrap_from_our_resamples(corpus, theirs, label: str) -> None:
    """Its p-value by its own formula, from our vectorised scores of resampled corpora.

    The formula takes |d*| before it subtracts the mean, and so is one-sided: half of ours where
    the difference is clear. Ours is uniform where nothing differs, and is never below its.
    """
    pairs = pairs_of(corpus, label)
    ours = paired_bootstrap(pairs, num_resamples=NUM_DRAWS)
    (counts,) = resample_counts(len(corpus[0]), NUM_DRAWS, 0)
    for name, expected in theirs["bs"][label].items():
        a, b = (pairs[name].corpus_score(counts @ side) for side in (pairs[name].a, pairs[name].b))
        differences = np.abs(a - b)
        found = _compute_p_value(differences - differences.mean(), abs(ours[name].difference))
        error = np.sqrt(2 * max(expected, 0.001) * (1 - expected) / NUM_DRAWS)
        assert abs(found - expected) < 4 * error, name
        assert ours[name].p_value >= found - 1e-12
        if min(expected, ours[name].p_value) > 0.06 or max(expected, ours[name].p_value) < 0.04:
            assert (ours[name].p_value < 0.05) == (expected < 0.05)
