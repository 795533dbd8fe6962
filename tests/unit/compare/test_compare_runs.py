"""Two runs sentence by sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
from rundirs import change_results, unseal
from written_runs import garble, write_run

from brim.compare import compare, compare_runs
from brim.errors import ConfigError, RunError
from brim.metrics import paired_difference, score, sentence_scores, win_tie_loss

FAST = {"num_resamples": 300}


@pytest.fixture
def two(tmp_path: Path, references) -> tuple[Path, Path]:
    """A garbles less than B; their returns are the share of right words."""
    a = write_run(tmp_path / "a", garble(references, rate=0.1, seed=1), references)
    b = write_run(tmp_path / "b", garble(references, rate=0.3, seed=2), references)
    return a, b


def texts_of(directory: Path) -> list[str]:
    lines = (directory / "predictions" / "test.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines]


def change_row(directory: Path, number: int, **changes: object) -> None:
    path = unseal(directory) / "predictions" / "test.jsonl"
    lines = path.read_text().splitlines()
    lines[number] = json.dumps({**json.loads(lines[number]), **changes})
    path.write_text("\n".join(lines) + "\n")


def test_scores_are_those_of_the_results(two, references) -> None:
    comparison = compare_runs(*two, seed=4, confidence=0.9, **FAST)
    assert list(comparison.metrics) == ["bleu", "ter", "exact_match", "length"]
    assert (comparison.num_examples, comparison.left_out) == (40, {})
    for side, directory in zip("ab", two, strict=True):
        scores = json.loads((directory / "results.json").read_text())["test"]["scores"]
        expected = score(
            ["bleu", "ter", "exact_match"], texts_of(directory), references,
            seed=4, confidence=0.9, **FAST,
        )  # fmt: skip
        for name, metric in comparison.metrics.items():
            assert getattr(metric, side).value == pytest.approx(scores[name]["value"])
            assert getattr(metric, side).signature == scores[name]["signature"]
            if name in expected:
                found = getattr(metric, side)
                assert (found.low, found.high) == pytest.approx(
                    (expected[name].low, expected[name].high)
                )
                assert found.details == pytest.approx(expected[name].details)


def test_differences_and_counts(two, references) -> None:
    comparison = compare_runs(*two, **FAST)
    a, b = map(texts_of, two)
    for name in ("bleu", "ter", "exact_match"):
        metric = comparison.metrics[name]
        assert metric.difference == pytest.approx(metric.a.value - metric.b.value)
        assert metric.low <= metric.difference <= metric.high
        each = [sentence_scores(name, texts, references) for texts in (a, b)]
        assert metric.sentences == win_tie_loss(*each, higher_is_better=name != "ter")
    length = comparison.metrics["length"]
    lengths = [[len(text.split()) + 1 for text in texts] for texts in (a, b)]
    expected = paired_difference(*lengths, **FAST)
    assert (length.low, length.high) == pytest.approx((expected.low, expected.high))
    assert length.higher_is_better is None
    # The worse system is found out, by an error rate too.
    assert comparison.metrics["bleu"].randomization_p < 0.01 < comparison.metrics["bleu"].difference
    assert comparison.metrics["ter"].difference < 0
    assert comparison.metrics["ter"].sentences.wins > comparison.metrics["ter"].sentences.losses


def test_the_same_texts_differ_by_nothing(tmp_path, references) -> None:
    """Returns of one text differ by rounding, with what it was batched with."""
    texts = garble(references, rate=0.2, seed=1)
    returns = np.random.default_rng(0).normal(8, 5, size=len(texts))
    a = write_run(tmp_path / "a", texts, references, returns=returns.tolist(), sampled=texts)
    shaken = returns + np.random.default_rng(1).normal(scale=1e-5, size=len(texts))
    b = write_run(tmp_path / "b", texts, references, returns=shaken.tolist(), sampled=texts)
    comparison = compare_runs(a, b, **FAST)
    assert comparison.num_same == 40
    assert len(comparison.metrics) == 6
    for name, metric in comparison.metrics.items():
        assert (metric.difference, metric.low, metric.high) == (0, 0, 0), name
        assert (metric.bootstrap_p, metric.randomization_p) == (1, 1), name
        assert (metric.sentences.wins, metric.sentences.losses) == (0, 0), name
    assert comparison.better_a == comparison.better_b == ()


def test_returns_of_two_teachers_are_left_out(tmp_path, references) -> None:
    texts = garble(references, rate=0.2, seed=1)
    a = write_run(tmp_path / "a", texts, references, returns=[1.0 * i for i in range(40)])
    b = write_run(tmp_path / "b", texts, references, returns=[1.1 * i + 2 for i in range(40)])
    comparison = compare_runs(a, b, **FAST)
    assert "return" not in comparison.metrics
    assert "teachers were not the same" in comparison.left_out["return"]
    with pytest.raises(RunError, match="cannot compare return: the same texts have other returns"):
        compare_runs(a, b, metrics=["return"], **FAST)


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ([{"teacher": "a" * 64}, {"teacher": "b" * 64}], "another teacher"),
        ([{"teacher": "teacher-1"}, {"teacher": "teacher-2"}], "another teacher"),
        ([{}, {"return_centering": "logsumexp"}], "centered otherwise"),
        ([{"teacher": "a" * 64}, {"teacher": "a" * 64}], None),
        ([{"teacher": "a" * 64}, {"teacher": "teacher-1"}], None),  # it may be the same one
        ([{"teacher": "a" * 64}, {}], None),
    ],
)
def test_returns_by_another_measure_are_left_out(tmp_path, references, facts, reason) -> None:
    """No text is in both, so that nothing else tells."""
    systems = [garble(references, rate=1.0, seed=seed) for seed in (1, 2)]
    a, b = (
        write_run(tmp_path / name, texts, references, returns=[1.0 * i for i in range(40)])
        for name, texts in zip("ab", systems, strict=True)
    )
    for run, known in zip((a, b), facts, strict=True):
        change_results(run, **known)
    comparison = compare_runs(a, b, **FAST)
    assert ("return" in comparison.metrics) == (reason is None)
    assert reason is None or reason in comparison.left_out["return"]
    assert "bleu" in comparison.metrics


def test_texts_that_were_sampled_differently_are_said_to_be(tmp_path, references) -> None:
    texts = garble(references, rate=0.2, seed=1)
    a, b = (write_run(tmp_path / name, texts, references, sampled=texts) for name in "ab")
    for run, temperature in ((a, 0.5), (b, 1.0)):
        change_results(run, sampling={"strategy": "sampling", "temperature": temperature})
    ours, theirs = compare_runs(a, b, **FAST).decodings
    assert (ours, theirs) == tuple(f"samples by sampling, temperature = {t}" for t in (0.5, 1.0))
    change_results(b, sampling={"strategy": "sampling", "temperature": 0.5})
    assert compare_runs(a, b, **FAST).decodings is None


def test_an_empty_sample_is_shown_as_it_is(tmp_path, references) -> None:
    texts = garble(references, rate=0.2, seed=1)
    a = write_run(tmp_path / "a", texts, references, sampled=[t + "!" for t in texts])
    b = write_run(tmp_path / "b", texts, references, sampled=["", *texts[1:]])
    (most, *_) = compare_runs(a, b, metrics=["expected_return"], **FAST).better_a
    assert (most.id, most.a, most.b) == ("row0", texts[0] + "!", "")


def test_what_only_one_has_is_named(tmp_path, references) -> None:
    texts = garble(references, rate=0.2, seed=1)
    a = write_run(tmp_path / "a", texts, references, returns=[1.0] * 40)
    b = write_run(tmp_path / "b", texts, references, metrics=["chrf"])
    comparison = compare_runs(a, b, **FAST)
    # Metrics need the texts only, so that of the one is computed for the other.
    assert list(comparison.metrics) == ["bleu", "ter", "exact_match", "length", "chrf"]
    assert comparison.left_out == {"return": f"{b} does not have it of every example"}


def test_stored_statistics_give_what_texts_give(tmp_path, references, monkeypatch) -> None:
    systems = garble(references, rate=0.1, seed=1), garble(references, rate=0.3, seed=2)
    stored, computed = (
        [
            write_run(tmp_path / str(kind) / str(i), texts, references, statistics=kind)
            for i, texts in enumerate(systems)
        ]
        for kind in (True, False)
    )
    expected = compare_runs(*computed, **FAST)

    def refuse(*arguments: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr("brim.compare.columns.sentence_statistics", refuse)
    assert compare_runs(*stored, **FAST).metrics == expected.metrics
    with pytest.raises(AssertionError, match="computed again"):
        compare_runs(*computed, **FAST)


def test_statistics_of_another_version_are_computed_anew(tmp_path, references) -> None:
    a = write_run(tmp_path / "a", garble(references, rate=0.2, seed=1), references, statistics=True)
    expected = compare_runs(a, a, metrics=["bleu"], **FAST).metrics["bleu"].a.value
    change_row(a, 0, statistics={"bleu": [1.0] * 10})
    with pytest.raises(RunError, match="statistics of bleu .* do not give the score"):
        compare_runs(a, a, metrics=["bleu"], **FAST)
    path = a / "results.json"
    path.write_text(path.read_text().replace("smooth:exp", "smooth:floor"))
    found = compare_runs(a, a, metrics=["bleu"], **FAST).metrics["bleu"].a
    assert (found.value, "smooth:exp" in found.signature) == (expected, True)


def test_several_samples_an_example(tmp_path, references) -> None:
    """The corpus is that of all samples; lengths and returns are means."""
    one, two = (garble(references, rate=0.3, seed=seed) for seed in (1, 2))
    a = write_run(tmp_path / "a", one, references, metrics=["bleu"])
    for i, pair in enumerate(zip(one, two, strict=True)):
        samples = [
            {"text": text, "num_tokens": len(text.split()), "teacher_return": float(k)}
            for k, text in enumerate(pair)
        ]
        change_row(a, i, samples=samples, teacher_return=0.0)
    b = write_run(tmp_path / "b", one, references, metrics=["bleu"], returns=[0.25] * 40)
    comparison = compare_runs(a, b, metrics=["bleu", "return", "length"], **FAST)
    expected = score(["bleu"], [*one, *two], [*references, *references])["bleu"].value
    bleu, returns = comparison.metrics["bleu"], comparison.metrics["return"]
    assert bleu.a.value == pytest.approx(expected)
    assert bleu.a.signature == bleu.b.signature + "|samples:2"
    assert (returns.a.value, returns.b.value) == (0.5, 0.25)
    assert comparison.num_same == 0


def test_an_example_weighs_the_same_however_many_samples_it_has(tmp_path, references) -> None:
    """A swap would else put examples of weight 1 and of weight 4 into one corpus."""
    worse, better = (garble(references, rate=rate, seed=1) for rate in (0.4, 0.1))
    a, b = (
        write_run(tmp_path / name, texts, references)
        for name, texts in (("a", worse), ("b", better))
    )
    expected = compare_runs(a, b, metrics=["ter", "bleu"], **FAST).metrics
    for i, text in enumerate(better):
        change_row(b, i, samples=[{"text": text, "num_tokens": 1}] * 4)
    found = compare_runs(a, b, metrics=["ter", "bleu"], **FAST).metrics
    for name, metric in found.items():
        assert metric.randomization_p == expected[name].randomization_p < 0.05
        assert metric.bootstrap_p == expected[name].bootstrap_p
        assert metric.difference == pytest.approx(expected[name].difference)
        assert metric.sentences == expected[name].sentences


def test_sentences_are_those_that_differ_most(two, references) -> None:
    comparison = compare_runs(*two, metrics=["ter", "bleu"], num_sentences=6, **FAST)
    a, b = map(texts_of, two)
    ahead = sentence_scores("ter", b, references) - sentence_scores("ter", a, references)
    for sentences, sign in ((comparison.better_a, 1), (comparison.better_b, -1)):
        positions = [int(sentence.id.removeprefix("row")) for sentence in sentences]
        found = [sign * ahead[i] for i in positions]
        best = np.sort(sign * ahead)[::-1][:6]
        assert found == pytest.approx([value for value in best if value > 1e-9])
        for i, sentence in zip(positions, sentences, strict=True):
            assert (sentence.a, sentence.b) == (a[i], b[i])
            assert sentence.references == tuple(references[i])
            gap = sentence.scores_b["ter"] - sentence.scores_a["ter"]
            assert sign * gap == pytest.approx(found[positions.index(i)])
    assert 0 < len(comparison.better_b) < 6 == len(comparison.better_a)


def test_later_metrics_break_ties(tmp_path) -> None:
    references = [["a b c d e"]] * 3
    right = write_run(tmp_path / "a", ["a b c d e"] * 3, references)
    wrong = write_run(tmp_path / "b", ["a b c d x", "x y z v w", "a b c y x"], references)
    comparison = compare_runs(right, wrong, metrics=["exact_match", "ter"], **FAST)
    assert [s.id for s in comparison.better_a] == ["row1", "row2", "row0"]
    assert compare_runs(right, wrong, num_sentences=0, **FAST).better_a == ()


def test_sentences_by_expected_return_show_the_samples(tmp_path, references) -> None:
    texts = garble(references, rate=0.2, seed=1)
    longer = [text + " on" for text in texts]
    a = write_run(tmp_path / "a", texts, references, returns=[1.0] * 40, sampled=longer)
    b = write_run(tmp_path / "b", texts, references, returns=[1.0] * 40, sampled=texts)
    comparison = compare_runs(a, b, metrics=["expected_return"], **FAST)
    assert comparison.metrics["expected_return"].difference == pytest.approx(3)
    assert all(s.a == s.b + " on" for s in comparison.better_a)


def test_examples_without_references_have_returns_only(tmp_path, references) -> None:
    references = [group if i % 2 else [] for i, group in enumerate(references)]
    systems = [
        garble([group or ["the cat"] for group in references], rate=rate, seed=1)
        for rate in (0.1, 0.4)
    ]
    a, b = (
        write_run(tmp_path / str(i), texts, references, returns=[float(len(t)) for t in texts])
        for i, texts in enumerate(systems)
    )
    comparison = compare_runs(a, b, **FAST)
    assert comparison.metrics["bleu"].a.num_examples == 20
    assert comparison.metrics["return"].a.num_examples == 40
    for sentence in (*comparison.better_a, *comparison.better_b):
        assert sentence.references
    by_return = compare_runs(a, b, metrics=["return", "bleu"], num_sentences=40, **FAST)
    for sentence in (*by_return.better_a, *by_return.better_b):
        assert ("bleu" in sentence.scores_a) == bool(sentence.references)
    nothing = write_run(tmp_path / "none", systems[0], [[]] * 40, returns=[1.0] * 40)
    assert list(compare_runs(nothing, nothing, **FAST).metrics) == ["return", "length"]
    with pytest.raises(RunError, match="cannot compare bleu: no example has references"):
        compare_runs(nothing, nothing, metrics=["bleu"], **FAST)


def test_swapping_the_runs_turns_the_signs(two) -> None:
    one, other = compare_runs(*two, **FAST), compare_runs(*two[::-1], **FAST)
    assert [s.id for s in other.better_b] == [s.id for s in one.better_a]
    for name, metric in one.metrics.items():
        turned = other.metrics[name]
        assert turned.randomization_p == metric.randomization_p
        assert (turned.low, turned.high) == pytest.approx((-metric.high, -metric.low))
        assert (turned.sentences.wins, turned.sentences.losses) == (
            metric.sentences.losses,
            metric.sentences.wins,
        )


def test_the_same_seed_gives_the_same_comparison(two) -> None:
    first = compare_runs(*two, seed=1, **FAST)
    assert compare_runs(*two, seed=1, **FAST) == first
    assert compare_runs(*two, seed=2, **FAST).metrics != first.metrics
    assert json.loads(json.dumps(first.as_dict(), allow_nan=False))["num_examples"] == 40


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "x"}, r"test.jsonl:8: another example than in .*: id 'x' for 'row7'"),
        ({"prompt": "x"}, r":8: another example than in .*: another prompt of 'row7'"),
        ({"references": ["x"]}, r":8: another example than in .*: other references of 'row7'"),
        ({"text": 3}, r":8: damaged: .*; write it anew by brim evaluate"),
        ({"text": "\ud800"}, r":8: damaged"),
        ({"num_tokens": "many"}, r":8: damaged"),
        ({"regrets": [0.5, "x"]}, r":8: damaged"),
        ({"sampled_regrets": 3}, r":8: damaged"),
        ({"references": None}, r":8: damaged"),
    ],
)
def test_rows_that_do_not_go_together(two, changes, message) -> None:
    change_row(two[1], 7, **changes)
    with pytest.raises(RunError, match=message) as error:
        compare_runs(*two, **FAST)
    assert "\n" not in str(error.value)


def test_another_number_of_examples(tmp_path, references) -> None:
    texts = garble(references, rate=0.1, seed=1)
    a = write_run(tmp_path / "a", texts, references)
    b = write_run(tmp_path / "b", texts[:30], references[:30])
    with pytest.raises(RunError, match="30 examples, and 40 in"):
        compare_runs(a, b, **FAST)


def test_files_that_are_missing_or_cut(tmp_path, two) -> None:
    a, b = two
    unseal(b)
    with pytest.raises(RunError, match="nowhere: no such directory"):
        compare(a, tmp_path / "nowhere")
    with pytest.raises(RunError, match="no results of the validation split; write them by brim"):
        compare_runs(a, b, split="validation")
    path = b / "predictions" / "test.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    with pytest.raises(RunError, match="39 predictions where results.json counts 40"):
        compare_runs(a, b)
    path.write_text("".join(lines)[:-30])
    with pytest.raises(RunError, match=r"test.jsonl:40: damaged"):
        compare_runs(a, b)
    path.unlink()
    with pytest.raises(RunError, match="test.jsonl: no predictions of the test split; write"):
        compare_runs(a, b)
    (b / "results.json").write_text(json.dumps({"test": {"scores": {"bleu": {}}}}))
    with pytest.raises(RunError, match="results.json: damaged"):
        compare_runs(a, b)
    (b / "results.json").unlink()
    with pytest.raises(RunError, match="results.json: no results of the test split; write"):
        compare_runs(a, b)


def test_options_out_of_bounds(two) -> None:
    with pytest.raises(ConfigError, match="unknown metric 'blue': did you mean 'bleu'"):
        compare_runs(*two, metrics=["blue"])
    with pytest.raises(RunError, match="cannot compare return: .* does not have it"):
        compare_runs(*two, metrics=["return"])
    with pytest.raises(ConfigError, match="num_resamples is 0"):
        compare_runs(*two, num_resamples=0)
    with pytest.raises(ConfigError, match="confidence is 95"):
        compare_runs(*two, confidence=95)
    with pytest.raises(ConfigError, match="num_sentences is -1"):
        compare_runs(*two, num_sentences=-1)
