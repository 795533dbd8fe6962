"""What scores a text: metrics of the package, functions of the user's, and what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from enumerable import DECODING, EXAMPLES, pair
from makers import anchored, policy_gradient, ppo_llmr
from pydantic import ValidationError
from test_ppo import credited, with_state_values, written

from brim.errors import ConfigError, DataError
from brim.examples import Example
from brim.metrics import sentence_scores
from brim.objectives.reward import RewardConfig, check_reward
from brim.objectives.settings import LLMRConfig, SeqKDConfig

QUESTION = Example("q7", "how many?", ("so it is 4 #### 4",))
FUNCTIONS = """
def letters(completions, examples):
    ids = [example.id for example in examples]
    return [text.count("b") + id.count("0") / 4 for text, id in zip(completions, ids)]
def few(completions, examples):
    return [1.0]
def nan(completions, examples):
    return [float(example.id == "0") and float("nan") for example in examples]
def none(completions, examples):
    return None
def words(completions, examples):
    return completions
def keys(completions, examples):
    return {example.id: 0.5 for example in examples}
number = 3
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(FUNCTIONS)
    (tmp_path / "broken_rewards.py").write_text("def score(")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize("family", ["t5", "gpt2"])
@pytest.mark.parametrize("make", [policy_gradient, anchored, ppo_llmr])
@pytest.mark.parametrize("metric", ["exact_match", "my_rewards:letters"])
def test_finished_texts_are_scored_against_their_own_example(family, make, metric):
    student, teacher = pair(family)
    objective = make(DECODING, reward={"metric": metric}, num_generations=3)
    objective.prepare(student)
    batch = student.encode(EXAMPLES, max_tokens=None, seeds=[0, 1])
    rollout, sums = objective.collect(batch, student, teacher)
    expected = []
    end, padding = student.tokenizer.eos_token, student.tokenizer.pad_token
    for example, ids in zip(rollout.batch.examples, rollout.completion_ids, strict=True):
        words = student.tokenizer.convert_ids_to_tokens(ids)
        words = [word for word in words if word not in (end, padding)]
        match = float(words in [reference.split() for reference in example.references])
        own = words.count("b") + (example.id == "0") / 4
        expected.append(match if metric == "exact_match" else own)
    assert rollout.task_scores.tolist() == expected
    assert float(sums["task_reward"]) == sum(expected)
    assert [example.id for example in rollout.batch.examples] == ["0"] * 3 + ["1"] * 3


@pytest.mark.parametrize("metric", ["rougeL", "bleu", "chrf", "exact_match", "answer_accuracy"])
def test_metrics_are_those_of_single_texts_from_0_to_1(metric):
    examples = [QUESTION, replace(QUESTION, id="q8", references=("#### 12",))]
    texts = ["so it is 4 #### 4", "it was 11 #### 11"]
    found = RewardConfig(metric=metric).score(texts, examples)
    references = [example.references for example in examples]
    assert found == pytest.approx(list(sentence_scores(metric, texts, references) / 100))
    assert found[0] == pytest.approx(1)
    assert 0 <= found[1] < 1


@pytest.mark.parametrize(("discount", "lambda_"), [(1.0, 1.0), (1.0, 0.8), (0.9, 0.5)])
def test_ppo_has_it_as_the_reward_of_the_last_step(discount, lambda_):
    student, teacher = pair()
    rollout = written(student)
    scores = torch.rand(len(rollout), generator=torch.Generator().manual_seed(1))
    found = []
    for reward in (None, {"metric": "exact_match", "weight": 3.0}):
        objective = ppo_llmr(
            DECODING,
            reward=reward,
            discount=discount,
            gae_lambda=lambda_,
            normalize_advantages=False,
        )
        objective.prepare(student)
        with_state_values(objective, 3)
        for parameter in objective.module.value_head.requires_grad_(False).parameters():
            parameter.mul_(0.01)  # targets within the clip
        objective.prepare = lambda student: None  # the critic stays as it was made
        scored = replace(rollout, task_scores=scores)
        found.append(credited(objective, scored, student, teacher)[0].advantages)
    last = rollout.lengths[:, None] - 1 - torch.arange(rollout.mask.shape[1])
    expected = 3 * scores[:, None] * (discount * lambda_) ** last.clamp(min=0)
    torch.testing.assert_close(
        found[1] - found[0], torch.where(rollout.mask, expected, 0.0), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize(
    ("metric", "says"),
    [
        ("rouge_l", "did you mean 'rougeL'"),
        ("ter", "less ter is better"),
        ("my_rewards:", "is no path of a function; write .* MODULE:FUNCTION"),
        ("my rewards:f", "is no path"),
        (":f", "is no path"),
    ],
)
def test_what_is_no_metric_is_refused_with_the_settings(metric, says):
    with pytest.raises(ValidationError, match=says):
        RewardConfig(metric=metric)


def test_settings_are_checked_without_the_module():
    assert RewardConfig(metric="nowhere.at_all:score").weight == 1
    for weight in (-1, float("nan")):
        with pytest.raises(ValidationError):
            RewardConfig(metric="bleu", weight=weight)


@pytest.mark.parametrize(
    ("metric", "kind", "says"),
    [
        ("nowhere:score", ConfigError, "nowhere cannot be imported .*PYTHONPATH"),
        ("broken_rewards:score", ConfigError, "broken_rewards cannot be imported"),
        ("my_rewards:missing", ConfigError, "my_rewards has no function missing"),
        ("my_rewards:number", ConfigError, "my_rewards has no function number"),
        ("my_rewards:few", DataError, "gave 1 numbers for 2 texts, the first of example 0; "),
        ("my_rewards:nan", DataError, "gave nan for a text of example 0; "),
        ("my_rewards:none", DataError, "gave None for 2 texts, the first of example 0; "),
        ("my_rewards:keys", DataError, "gave {.* for 2 texts, .*; return a list of numbers"),
        ("my_rewards:words", DataError, r"gave \['b', 'a a'\] for 2 texts"),
        ("exact_match", ConfigError, "training example 2 has none; name a target column, or "),
        ("answer_accuracy", ConfigError, "example 0, 'b'; choose another metric, such as rougeL"),
    ],
)
def test_what_cannot_score_these_examples_is_refused_before_training(metric, kind, says):
    examples = [*EXAMPLES, Example("2", "b")]
    settings = LLMRConfig(reward=RewardConfig(metric=metric))
    with pytest.raises(kind, match=f"^objective.reward.metric: .*{says}") as caught:
        check_reward(settings, examples)
    assert "\n" not in str(caught.value)


def test_the_example_of_a_function_knows_the_length_alone(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[3] / "examples")
    examples = [Example("0", "x", ("a b c d", "a b"))] * 4
    reward = RewardConfig(metric="length_reward:closeness")
    reward.check(examples)
    texts = ["z z z z", "z z z", "z", ""]
    assert reward.score(texts, examples) == [1.0, 0.75, 0.5, 0.0]


def test_what_suits_the_examples_passes():
    prompts = [Example("2", "b")]
    check_reward(LLMRConfig(reward=RewardConfig(metric="my_rewards:letters")), prompts)
    check_reward(LLMRConfig(reward=RewardConfig(metric="answer_accuracy")), [QUESTION])
    for settings in (LLMRConfig(), SeqKDConfig()):
        check_reward(settings, prompts)
