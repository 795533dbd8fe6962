from collections.abc import Callable

import pytest
import torch
from rounding import assert_rounding
from tiny import FAMILIES, encoded, tiny, tiny_language_model, word_tokenizer
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertLMHeadModel,
    BertModel,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    PreTrainedModel,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from brim.errors import ModelError
from brim.models import Decoding, LanguageModel

SIZES = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
T5_SIZES = {"vocab_size": 48, "d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
BERT = {**SIZES, "is_decoder": False}


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_first_t5_scales(family: str) -> None:
    model = tiny_language_model(family)
    assert model._head().scale == (0.25 if family == "t5" else 1.0)


def test_a_family_nobody_listed_is_measured() -> None:
    """UMT5 decides on its scale by another name than T5 does."""
    source = UMT5ForConditionalGeneration(UMT5Config(**T5_SIZES, decoder_start_token_id=0))
    model = LanguageModel(source.eval(), word_tokenizer(appends_eos=True))
    batch = encoded(model, (3, 1))
    rollout = model.generate(batch, Decoding(max_tokens=4, strategy="greedy"))
    ids = torch.cat([torch.zeros(2, 1, dtype=torch.long), rollout.completion_ids[:, :-1]], dim=1)
    logits = source(
        input_ids=batch.prompt_ids,
        attention_mask=batch.prompt_mask.long(),
        decoder_input_ids=ids,
    ).logits[..., :40]
    expected = logits.log_softmax(2).gather(2, rollout.completion_ids[:, :, None]).squeeze(2)
    expected = expected.masked_fill(~rollout.mask, 0)
    assert_rounding(model.logprobs(rollout), expected)


class AddsOne(T5ForConditionalGeneration):
    """A model of one's own that does something before its head."""

    def __init__(self, config: T5Config) -> None:
        super().__init__(config)
        self.lm_head = _AddOne(config.d_model, config.vocab_size, bias=False)


class _AddOne(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input + 1)


def gemma_with_cap() -> PreTrainedModel:
    return Gemma2ForCausalLM(Gemma2Config(**SIZES, final_logit_softcapping=30.0))


def cohere_with_scale() -> PreTrainedModel:
    sizes = {key: value for key, value in SIZES.items() if key != "head_dim"}
    return CohereForCausalLM(CohereConfig(**sizes, logit_scale=0.0625))


def damaged() -> PreTrainedModel:
    model = tiny("llama")
    with torch.no_grad():
        model.model.norm.weight[3] = torch.nan
    return model


def without_start_token() -> PreTrainedModel:
    model = tiny("t5")
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = None
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (gemma_with_cap, "does more to its logits than a matrix product"),
        (cohere_with_scale, "does more to its logits than a matrix product"),
        (lambda: BertModel(BertConfig(**BERT)), "no language-modelling head"),
        (lambda: T5EncoderModel(T5Config(**T5_SIZES)), "no language-modelling head"),
        (lambda: BertLMHeadModel(BertConfig(**BERT)), "not supported|autoregressive"),
        (lambda: AddsOne(T5Config(**T5_SIZES, decoder_start_token_id=0)), "more to its logits"),
        (damaged, "not finite; its weights are damaged"),
        (without_start_token, "names no token to start its decoder with"),
    ],
)
def test_models_that_cannot_take_the_role_are_refused(
    make: Callable[[], PreTrainedModel], message: str
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        LanguageModel(make().eval(), word_tokenizer())
    assert "\n" not in str(caught.value)


def test_a_model_that_looks_ahead_is_refused() -> None:
    model = tiny("llama")
    model.model.config.is_causal = False
    with pytest.raises(ModelError, match="autoregressive"):
        LanguageModel(model, word_tokenizer())


def test_the_probe_leaves_no_trace() -> None:
    for training in (True, False):
        model = tiny("t5").train(training)
        model.get_encoder().eval()
        modes = [module.training for module in model.modules()]
        state = torch.get_rng_state()
        wrapped = LanguageModel(model, word_tokenizer())
        assert torch.equal(torch.get_rng_state(), state)
        assert [module.training for module in model.modules()] == modes
        assert wrapped.training == training
        assert not model.get_output_embeddings()._forward_hooks
