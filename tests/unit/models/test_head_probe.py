import copy
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
    EncoderDecoderConfig,
    EncoderDecoderModel,
    FSMTConfig,
    FSMTForConditionalGeneration,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    ModernBertDecoderConfig,
    ModernBertDecoderForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    PreTrainedModel,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
    xLSTMConfig,
    xLSTMForCausalLM,
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
STACK = {"layers": 1, "ffn_dim": 16, "attention_heads": 2}
SPECIAL = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
RECURRENT = {"vocab_size": 48, "hidden_size": 16, "num_hidden_layers": 1, **SPECIAL}
XLSTM = {**RECURRENT, "embedding_dim": 16, "num_blocks": 1, "num_heads": 2}
GPT = {"vocab_size": 48, "n_embd": 16, "n_layer": 1, "n_head": 2, **SPECIAL}


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_first_t5_scales(family):
    model = tiny_language_model(family)
    assert model._head().scale == (0.25 if family == "t5" else 1.0)


def test_a_family_nobody_listed_is_measured():
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


def damaged(family: str, name: str) -> PreTrainedModel:
    model = tiny(family)
    model.get_parameter(name).data[3] = torch.nan
    return model


def overflowing_head() -> PreTrainedModel:
    model = tiny("t5_v1_1")
    model.lm_head.weight.data *= 60_000
    return model.half()


def without_start_token() -> PreTrainedModel:
    model = tiny("t5")
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = None
    return model


def bert2bert() -> PreTrainedModel:
    encoder, decoder = BertConfig(**BERT), BertConfig(**{**BERT, "is_decoder": True})
    decoder.add_cross_attention = True
    config = EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id = 2
    return EncoderDecoderModel(config)


def modern_bert() -> PreTrainedModel:
    own = {"cls_token_id": 2, "sep_token_id": 1}
    sizes = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
    return ModernBertDecoderForCausalLM(ModernBertDecoderConfig(**sizes, **own))


def fsmt() -> PreTrainedModel:
    sizes = {f"{s}_{key}": n for s in ("encoder", "decoder") for key, n in STACK.items()}
    languages = {"langs": ["en", "de"], "src_vocab_size": 48, "tgt_vocab_size": 48}
    return FSMTForConditionalGeneration(FSMTConfig(d_model=16, **sizes, **languages))


class Broken(LlamaForCausalLM):
    """A model whose code raises what nothing expects, in several lines."""

    def get_decoder(self) -> nn.Module:
        raise TypeError("first\nsecond")


def overflowing(family: str, times: float) -> Callable[[], PreTrainedModel]:
    """A model in float16 of weights that other types bear."""

    def make() -> PreTrainedModel:
        model = tiny(family)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(times)
        if times < 100:
            LanguageModel(copy.deepcopy(model).bfloat16(), word_tokenizer())
        return model.half()

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (gemma_with_cap, "does more to its logits than a matrix product"),
        (cohere_with_scale, "does more to its logits than a matrix product"),
        (lambda: BertModel(BertConfig(**BERT)), "no language-modeling head"),
        (lambda: T5EncoderModel(T5Config(**T5_SIZES)), "no language-modeling head"),
        (lambda: BertLMHeadModel(BertConfig(**BERT)), "not supported|autoregressive"),
        (lambda: AddsOne(T5Config(**T5_SIZES, decoder_start_token_id=0)), "more to its logits"),
        (
            lambda: damaged("llama", "model.norm.weight"),
            "hidden states that are not finite: its weights are damaged",
        ),
        (
            lambda: damaged("t5_v1_1", "lm_head.weight"),
            "logits that are not finite: its weights are damaged",
        ),
        (overflowing_head, "logits that are not finite: float16 ends at 65,504"),
        (without_start_token, "names no token to start its decoder with"),
        (bert2bert, "its decoder, a BertLMHeadModel, gives logits where hidden states"),
        (modern_bert, "its decoder, a Linear, takes no input_ids"),
        (fsmt, "its decoder, a FSMTDecoder, takes no encoder_attention_mask"),
        (lambda: xLSTMForCausalLM(xLSTMConfig(**XLSTM)), "xLSTMModel keeps no keys and values"),
        (lambda: MambaForCausalLM(MambaConfig(**RECURRENT)), "MambaModel keeps no keys and values"),
        (lambda: OpenAIGPTLMHeadModel(OpenAIGPTConfig(**GPT)), "GPTModel keeps no keys and values"),
        (
            lambda: Broken(tiny("llama").config),
            "Broken .built here. cannot be used as a language model: TypeError: first;",
        ),
        *(
            (overflowing(family, times), "float16 ends at 65,504, .* bfloat16 or float32 .dtype")
            for family, times in (("t5", 10), ("t5", 1000), ("t5_v1_1", 10), ("llama", 10))
        ),
        (overflowing("t5", torch.nan), "its weights are damaged"),
    ],
)
def test_models_that_cannot_take_the_role_are_refused(make, message):
    with pytest.raises(ModelError, match=message) as caught:
        LanguageModel(make().eval(), word_tokenizer())
    assert "\n" not in str(caught.value)


def test_a_model_that_looks_ahead_is_refused():
    model = tiny("llama")
    model.model.config.is_causal = False
    with pytest.raises(ModelError, match="autoregressive"):
        LanguageModel(model, word_tokenizer())


def test_the_probe_leaves_no_trace():
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
