"""What is written for a split and how it is scored, on random models."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from brim.errors import ConfigError, DataError, NonFiniteError
from brim.examples import Example
from brim.metrics import METRICS, score, sentence_scores
from brim.metrics.regrets import CUT_RETURNS, REGRETS, regret_behind, with_cut_returns
from brim.models import BeamSearch, Decoding, LanguageModel, build_model, train_tokenizer
from brim.training import predictions as module
from brim.training.evaluation import Evaluation, evaluate
from brim.training.partial import PartialResults
from brim.training.predictions import EvaluationSettings, Prediction

WORDS = "a b c d"
TOKENIZER = train_tokenizer([WORDS], kind="word", vocab_size=9)
METRIC_NAMES = ("rougeL", "bleu", "ter")
GREEDY = Decoding(max_tokens=6, strategy="greedy")
SAMPLING = Decoding(max_tokens=6, temperature=0.7)
BEAM = BeamSearch(max_tokens=6, num_beams=3)
CASES = {
    "greedy": EvaluationSettings(GREEDY, sampling=SAMPLING, metrics=METRIC_NAMES),
    "beam": EvaluationSettings(BEAM, metrics=METRIC_NAMES),
    "sampling": EvaluationSettings(
        SAMPLING, num_samples=3, sampling=SAMPLING, metrics=METRIC_NAMES
    ),
}
INTERVAL = {"num_resamples": 200, "confidence": 0.9}


def build(seed: int) -> LanguageModel:
    description = {"family": "llama", "d_model": 16, "d_ff": 24, "layers": 1, "heads": 2}
    return build_model(description, TOKENIZER, seed=seed).eval()


MODEL, TEACHER = build(2), build(3)


def make_examples(count: int = 23) -> list[Example]:
    """Different prompts; every fifth has no reference, every third has two."""
    words = np.random.default_rng(0).choice(WORDS.split(), size=(count, 9))
    references = [
        tuple(" ".join(row[3 + i : 7 + i]) for i in range(2 if n % 3 else 1)) if n % 5 else ()
        for n, row in enumerate(words)
    ]
    prompts = [" ".join(row[: 1 + n % 3]) for n, row in enumerate(words)]
    return [
        Example(f"e{n}", prompt, group)
        for n, (prompt, group) in enumerate(zip(prompts, references, strict=True))
    ]


EXAMPLES = make_examples()


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 9)


def test_scores_are_those_of_the_texts():
    found = evaluate(MODEL, EXAMPLES, CASES["greedy"], teacher=TEACHER, **INTERVAL)
    rows = [row for row in found.predictions if row.references]
    assert 0 < len(rows) < len(EXAMPLES) == len(found.predictions)
    texts, references = [row.text for row in rows], [row.references for row in rows]
    expected = score(METRIC_NAMES, texts, references, **INTERVAL)
    assert {name: found.scores[name] for name in METRIC_NAMES} == expected
    more = ("return", "expected_return", *REGRETS.values(), "length")
    assert list(found.scores) == [*METRIC_NAMES, *more]
    for name, key in (("return", "teacher_return"), ("expected_return", "sampled_return")):
        values = [getattr(row, key) for row in found.predictions]
        assert found.scores[name].value == pytest.approx(np.mean(values))
    written = [row.completions[0] for row in found.predictions]
    assert found.num_truncated_completions == sum(one.truncated for one in written) > 0
    for example, row, one in zip(EXAMPLES, found.predictions, written, strict=True):
        assert (row.id, row.prompt, row.references) == (
            example.id, example.prompt, example.references,
        )  # fmt: skip
        assert len(one.token_ids) == row.num_tokens
        assert (one.token_ids[-1] in MODEL.eos_token_ids) == (not one.truncated)
        assert TOKENIZER.decode(one.token_ids, skip_special_tokens=True) == row.text
        assert bool(row.statistics) == bool(example.references)


@pytest.mark.parametrize("case", CASES)
def test_statistics_add_up_to_the_scores(case):
    found = evaluate(MODEL, EXAMPLES, CASES[case], **INTERVAL)
    rows = [row for row in found.predictions if row.references]
    for name in METRIC_NAMES:
        sums = np.array([row.statistics[name] for row in rows]).sum(axis=0)
        assert METRICS[name].corpus_score(sums) == found.scores[name].value
    texts = [completion.text for row in rows for completion in row.completions]
    references = [row.references for row in rows for _ in row.completions]
    assert len(texts) == CASES[case].num_samples * len(rows)
    expected = score(METRIC_NAMES, texts, references)
    for name in METRIC_NAMES:
        assert found.scores[name].value == pytest.approx(expected[name].value, rel=1e-12)
        assert found.scores[name].num_examples == len(rows)
    assert ("samples:3" in found.scores["bleu"].signature) == (case == "sampling")


def test_a_samples_text_depends_on_seed_position_and_number_only(monkeypatch):
    def texts(examples, number, seed=0):
        settings = EvaluationSettings(SAMPLING, num_samples=number, seed=seed)
        rows = evaluate(MODEL, examples, settings).predictions
        return [[completion.text for completion in row.completions] for row in rows]

    three = texts(EXAMPLES, 3)
    assert [row[:2] for row in three] == texts(EXAMPLES, 2)
    assert three[:4] == texts(EXAMPLES[:4], 3)
    assert three != texts(EXAMPLES, 3, seed=1)
    assert sum(len(set(row)) == 3 for row in three) > len(three) // 2
    monkeypatch.setattr(module, "BLOCK", 512)
    assert three == texts(EXAMPLES, 3)


def test_the_first_sample_stands_for_the_example():
    for row in evaluate(MODEL, EXAMPLES, CASES["sampling"], teacher=TEACHER).predictions:
        first, line = row.completions[0], row.as_dict()
        for name in ("text", "num_tokens", "truncated", "teacher_return", "token_ids"):
            assert line[name] == getattr(first, name)
        assert len(line["samples"]) == 3
        # Drawn by the same settings from the same stream.
        assert row.sampled_text == first.text


def test_samples_of_an_example_are_no_independent_examples():
    """Where all samples of an example are equal, more of them say nothing new."""
    same = Decoding(max_tokens=6, top_k=1)
    one, many = (
        evaluate(MODEL, EXAMPLES, replace(CASES["sampling"], decoding=same, num_samples=number),
                 teacher=TEACHER, **INTERVAL).scores
        for number in (1, 5)
    )  # fmt: skip
    for name in ("rougeL", "ter", "return", "length"):
        assert (many[name].value, many[name].low, many[name].high) == pytest.approx(
            (one[name].value, one[name].low, one[name].high)
        )
        assert one[name].low < one[name].high


def test_mean_scores_of_samples_are_means_of_means():
    found = evaluate(MODEL, EXAMPLES, CASES["sampling"], teacher=TEACHER)
    per_example = [
        [completion.teacher_return for completion in row.completions] for row in found.predictions
    ]
    assert found.scores["return"].value == pytest.approx(np.mean(per_example))
    rows = [row for row in found.predictions if row.references]
    scores = [
        sentence_scores("rougeL", [c.text for c in row.completions], [row.references] * 3).mean()
        for row in rows
    ]
    assert found.scores["rougeL"].value == pytest.approx(np.mean(scores))


@pytest.mark.parametrize("case", CASES)
def test_return_and_regrets_of_a_text_add_up_to_what_the_prompt_is_worth(case):
    """The best value of the first state, which no text has a part in."""
    found = evaluate(MODEL, EXAMPLES, CASES[case], teacher=TEACHER, **INTERVAL)
    seen = {}
    for row in found.predictions:
        texts = [(c.teacher_return, c.regrets) for c in row.completions]
        assert all(len(c.regrets) == c.num_tokens for c in row.completions)
        if CASES[case].sampling:
            texts.append((row.sampled_return, row.sampled_regrets))
        for value, regrets in texts:
            assert min(regrets) >= 0
            worth = value + sum(regrets)
            assert worth == pytest.approx(seen.setdefault(row.prompt, worth), abs=1e-3)
    assert len(seen) > 3


@pytest.mark.parametrize("case", ["greedy", "sampling"])
def test_regret_per_token_and_cut_returns_are_those_of_the_rows(case):
    found = evaluate(MODEL, EXAMPLES, CASES[case], teacher=TEACHER, **INTERVAL)
    lengths = [c.num_tokens for row in found.predictions for c in row.completions]
    assert found.scores["length"].details == {"median": np.median(lengths)}
    for name, key in REGRETS.items():
        rows = [row.regrets(name) for row in found.predictions]
        flat = [d for texts in rows for regrets in texts for d in regrets]
        assert found.scores[key].value == pytest.approx(np.mean(flat))
        assert not found.scores[key].higher_is_better
        for length in (1, 3, 6):
            facts = {"mean_regrets": found.mean_regrets}
            cut = with_cut_returns(found.scores, facts, length)[CUT_RETURNS[name]]
            behind = [regret_behind(texts, length) for texts in rows]
            assert cut.value - found.scores[name].value == pytest.approx(np.mean(behind), abs=1e-4)
    assert evaluate(MODEL, EXAMPLES, CASES[case], **INTERVAL).mean_regrets == {}


class StopError(Exception):
    pass


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("finished", [0, 2])
def test_a_stopped_evaluation_goes_on_to_the_same_bits(tmp_path, monkeypatch, case, finished):
    def run(name):
        partial = PartialResults(tmp_path / name / "partial.jsonl", {"seed": 0})
        with partial.opened():
            found = evaluate(
                MODEL, EXAMPLES, CASES[case], teacher=TEACHER, partial=partial, **INTERVAL
            )
            partial.publish(tmp_path / name / "test.jsonl")
            partial.remove()
        return found, (tmp_path / name / "test.jsonl").read_bytes()

    whole, expected = run("whole")
    append, left = PartialResults.append, [finished]

    def stopping(self, block):
        if not left[0]:
            raise StopError
        left[0] -= 1
        append(self, block)

    with monkeypatch.context() as patch:
        patch.setattr(PartialResults, "append", stopping)
        with pytest.raises(StopError):
            run("stopped")
    assert not (tmp_path / "stopped" / "test.jsonl").exists()
    written = []
    generate = LanguageModel.generate

    def counting(self, batch, decoding):
        written.extend(example.id for example in batch.examples)
        return generate(self, batch, decoding)

    monkeypatch.setattr(LanguageModel, "generate", counting)
    found, text = run("stopped")
    assert text == expected
    assert found.scores == whole.scores
    assert found.num_truncated_completions == whole.num_truncated_completions
    kept = finished * CASES[case].block
    assert set(written) == {example.id for example in EXAMPLES[kept:]}
    assert not (tmp_path / "stopped" / "partial.jsonl").exists()
    in_memory = evaluate(MODEL, EXAMPLES, CASES[case], teacher=TEACHER, **INTERVAL)
    rows = [Prediction.from_dict(json.loads(line)) for line in text.splitlines()]
    assert rows == in_memory.predictions
    assert in_memory.scores == whole.scores


def test_a_return_that_is_no_number_names_its_example():
    broken = build(3)
    with torch.no_grad():
        broken.model.get_output_embeddings().weight.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="example e0: the teacher's return"):
        evaluate(MODEL, EXAMPLES, CASES["sampling"], teacher=broken)


def test_a_reference_that_cannot_be_compared_names_its_example():
    settings = replace(CASES["sampling"], metrics=("answer_accuracy",))
    examples = [Example(f"e{i}", "a", ("#### 7",)) for i in range(9)]
    examples[7] = replace(examples[7], references=("no number",))
    with pytest.raises(DataError, match="example e7.*has no answer"):
        evaluate(MODEL, examples, settings)


def test_an_empty_split_is_refused():
    with pytest.raises(DataError, match="split is empty"):
        evaluate(MODEL, [], CASES["greedy"])


def test_a_score_that_cannot_pick_a_checkpoint_is_named():
    scores = score(["bleu"], ["a"], [("a",)])
    evaluation = Evaluation({"return": scores["bleu"]}, [], 0)
    assert evaluation.score_of("return") is scores["bleu"]
    with pytest.raises(ConfigError, match="regret_per_token is not known.*choose one of return"):
        evaluation.score_of("regret_per_token")
