import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import EOS, NUM_ROWS, NUM_TOKENS, PAD, UNK, encoded, tiny_language_model, word_tokenizer
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    FalconH1Config,
    FalconH1ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Lfm2Config,
    Lfm2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    T5GemmaConfig,
    T5GemmaForConditionalGeneration,
)
from transformers.cache_utils import DynamicLayer

from brim.models import Decoding, LanguageModel
from brim.models.backbone import (
    DecodingState,
    PreallocatedLayer,
    cache_name,
    expand_rows,
    keep_rows,
)

CAPACITY = 24


def two_layers() -> DynamicCache:
    """One layer of each kind, to be told apart by nothing that they hold."""
    cache = DynamicCache()
    cache.layers = [PreallocatedLayer(CAPACITY), DynamicLayer()]
    return cache


def append(cache: DynamicCache, rows: int, tokens: int) -> tuple[Tensor, Tensor]:
    keys, values = torch.rand(rows, 2, tokens, 3), torch.rand(rows, 2, tokens, 5)
    for layer in cache.layers:
        all_keys, all_values = layer.update(keys, values)
        assert all_keys is layer.keys
        assert all_values is layer.values
    return keys, values


@given(st.integers(1, 6), st.integers(0, 10**6))
def test_rows_are_those_of_a_plain_tensor_whatever_is_done_to_them(rows, seed):
    draw = random.Random(seed)
    cache = two_layers()
    keys, values = append(cache, rows, draw.randint(1, 4))
    while keys.shape[2] <= CAPACITY - 4:
        match draw.choice(["append", "keep", "expand"]):
            case "append":
                more = append(cache, len(keys), draw.randint(1, 4))
                keys, values = torch.cat([keys, more[0]], 2), torch.cat([values, more[1]], 2)
            case "expand" if len(keys) < 20:
                index = torch.tensor(draw.choices(range(len(keys)), k=draw.randint(1, 12)))
                expand_rows(cache, index)
                keys, values = keys[index], values[index]
            case "keep":
                stays = torch.tensor([draw.random() < 0.7 for _ in range(len(keys))])
                stays[draw.randrange(len(keys))] = True
                count = int(stays.sum())
                holes = (~stays[:count]).nonzero().squeeze(1)
                movers = stays[count:].nonzero().squeeze(1) + count
                keep_rows(cache, count, holes, movers)
                order = list(range(count))
                for hole, mover in zip(holes.tolist(), movers.tolist(), strict=True):
                    order[hole] = mover
                assert sorted(order) == stays.nonzero().squeeze(1).tolist()
                keys, values = keys[order], values[order]
        for layer in cache.layers:
            assert torch.equal(layer.keys, keys)
            assert torch.equal(layer.values, values)
            assert layer.get_seq_length() == keys.shape[2]
            assert layer.get_mask_sizes(1) == (keys.shape[2] + 1, 0)


def layers(state: DecodingState) -> list[Any]:
    cache = state.cache
    if hasattr(cache, "self_attention_cache"):
        return [*cache.self_attention_cache.layers, *cache.cross_attention_cache.layers]
    return list(cache.layers)


@pytest.mark.parametrize("family", ["t5", "bart", "qwen2", "gpt2"])
def test_memory_is_taken_once_and_no_more_than_the_limit_needs(family, monkeypatch):
    model = tiny_language_model(family)
    batch = encoded(model, (3, 1, 6, 2, 4) * 4)
    places: list[list[int]] = []
    widths: list[int] = []
    room: set[int] = set()
    step = DecodingState.step

    def watched(state: DecodingState, tokens: Tensor) -> None:
        step(state, tokens)
        places.append([t.data_ptr() for layer in layers(state) for t in (layer.keys, layer.values)])
        widths.append(len(tokens))
        for layer in layers(state):
            _, heads, _, size = layer.keys.shape
            room.add(layer.keys.untyped_storage().nbytes() // (4 * len(batch) * heads * size))

    monkeypatch.setattr(DecodingState, "step", watched)
    model.eos_token_ids = tuple(range(0, NUM_TOKENS, 8))
    model.generate(batch, Decoding(max_tokens=20))
    assert len(widths) > 3
    assert len(set(widths)) > 1
    assert all(place == places[0] for place in places)
    width = batch.prompt_ids.shape[1]
    assert room == ({20, width} if model.is_encoder_decoder else {width + 19})


def mistral(**sizes: Any) -> PreTrainedModel:
    return MistralForCausalLM(MistralConfig(**sizes))


def gemma3(**sizes: Any) -> PreTrainedModel:
    kinds = ["sliding_attention", "full_attention"]
    return Gemma3ForCausalLM(Gemma3TextConfig(**sizes, head_dim=4, layer_types=kinds))


def t5gemma(**sizes: Any) -> PreTrainedModel:
    kinds = ["sliding_attention", "full_attention"]
    half = {**sizes, "head_dim": 4, "layer_types": kinds, "final_logit_softcapping": None}
    config = T5GemmaConfig(
        encoder=half, decoder=half, vocab_size=NUM_ROWS, tie_word_embeddings=False
    )
    config.decoder_start_token_id, config._attn_implementation = UNK, "eager"
    return T5GemmaForConditionalGeneration(config)


def lfm2(**sizes: Any) -> PreTrainedModel:
    return Lfm2ForCausalLM(Lfm2Config(**sizes, layer_types=["conv", "full_attention"]))


def falcon_h1(**sizes: Any) -> PreTrainedModel:
    mamba = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8}
    return FalconH1ForCausalLM(FalconH1Config(**sizes, **mamba, mamba_n_groups=1))


def forgetful(build: Callable[..., PreTrainedModel], window: int) -> LanguageModel:
    """A random model whose layers, or some of them, see so many tokens or keep a state."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        source = build(
            vocab_size=NUM_ROWS,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            sliding_window=window,
            tie_word_embeddings=False,
            pad_token_id=PAD,
            eos_token_id=EOS,
            bos_token_id=None,
        )
        for parameter in source.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.8)
    appends_eos = source.config.is_encoder_decoder
    return LanguageModel(source, word_tokenizer(appends_eos=appends_eos)).eval()


@pytest.mark.parametrize("build", [mistral, gemma3, t5gemma, lfm2, falcon_h1])
@pytest.mark.parametrize("copies", [1, 3])
def test_layers_that_forget_decode_as_transformers_does(build, copies):
    model, unforgetting = forgetful(build, 4), forgetful(build, 64)
    batch = encoded(model, (3, 1, 9, 2, 5)).repeat(copies)
    greedy = Decoding(max_tokens=16, strategy="greedy")
    for either in (model, unforgetting):
        either.eos_token_ids = (NUM_ROWS - 1,)
    free = model.generate(batch, greedy)
    if build not in (lfm2, falcon_h1):
        assert model.decode(free) != unforgetting.decode(unforgetting.generate(batch, greedy))
    # The word that appears latest in any row ends the text: rows stop at different steps.
    _, latest = max(
        (row.index(token), token) for row in free.completion_ids.tolist() for token in row
    )
    model.eos_token_ids = (EOS, latest)
    rollout = model.generate(batch, greedy)
    theirs = model.model.generate(
        input_ids=batch.prompt_ids,
        attention_mask=batch.prompt_mask.long(),
        max_new_tokens=16,
        do_sample=False,
        eos_token_id=[EOS, latest],
        suppress_tokens=list(range(NUM_TOKENS, NUM_ROWS)),
        use_cache=build is t5gemma,  # without one it takes a <pad> that it wrote for padding
    )[:, 1 if model.is_encoder_decoder else batch.prompt_ids.shape[1] :]
    assert len(set(rollout.lengths.tolist())) > 1
    assert torch.equal(rollout.completion_ids, theirs[:, : rollout.mask.shape[1]])


def test_the_argument_of_a_cache_is_that_of_the_installed_transformers():
    class Newer(nn.Module):
        def forward(self, input_ids, cache=None): ...

    class Older(nn.Module):
        def forward(self, input_ids, past_key_values=None): ...

    assert (cache_name(Newer()), cache_name(Older())) == ("cache", "past_key_values")
