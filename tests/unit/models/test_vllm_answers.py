"""What a real vLLM server answered, beside our own passes of the model that answered."""

import gzip
import json

import pytest
import torch
from record_vllm import ANSWERS, teacher_folder

from brim.models import LanguageModel, load_model

COMPLETIONS = [
    pair
    for pair in json.loads(gzip.decompress(ANSWERS.read_bytes()))
    if pair["path"] == "/v1/completions" and pair["status"] == 200
]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> LanguageModel:
    return load_model(teacher_folder(tmp_path_factory.mktemp("teacher"))).eval()


def prompts_of(pair: dict) -> list[list[int]]:
    prompt = pair["request"]["prompt"]
    return [prompt] if isinstance(prompt[0], int) else prompt


@torch.no_grad()
def logprobs(teacher: LanguageModel, ids: list[int]) -> torch.Tensor:
    return teacher.model(torch.tensor([ids])).logits[0].log_softmax(-1)


def test_log_probabilities_of_prompts_are_those_of_our_own_pass(teacher):
    read = [pair for pair in COMPLETIONS if "prompt_logprobs" in pair["request"]]
    assert len(read) >= 4
    for pair in read:
        choices = pair["response"]["choices"]
        for prompt, choice in zip(prompts_of(pair), choices, strict=True):
            first, *states = choice["prompt_logprobs"]
            assert first is None
            own = logprobs(teacher, prompt)
            for row, taken, state in zip(own, prompt[1:], states, strict=False):
                assert str(taken) in state
                best = pair["request"]["prompt_logprobs"]
                assert {int(row.argmax())} <= {int(token) for token in state} or best == 0
                for token, entry in state.items():
                    assert entry["logprob"] == pytest.approx(float(row[int(token)]), abs=1e-4)


def test_greedy_tokens_are_those_of_our_own_pass(teacher):
    written = [p for p in COMPLETIONS if "return_token_ids" in p["request"]]
    written = [pair for pair in written if "logit_bias" not in pair["request"]]
    assert len(written) >= 3
    for pair in written:
        for prompt, choice in zip(prompts_of(pair), pair["response"]["choices"], strict=True):
            ids = list(prompt)
            for token in choice["token_ids"]:
                assert token == int(logprobs(teacher, ids)[-1].argmax())
                ids.append(token)
