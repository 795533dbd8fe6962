"""Writing by transformers' `generate`, beside the loop of our own."""

from typing import Any

import pytest
import torch
from tiny import (
    DISTRACTIONS,
    EOS,
    FAMILIES,
    NUM_TOKENS,
    encoded,
    prompts,
    same,
    tiny,
    tiny_language_model,
)
from tiny import word_tokenizer as make_tokenizer
from torch import Tensor

from brim.errors import ModelError
from brim.models import Decoding, LanguageModel

LENGTHS = (3, 1, 6, 2, 4, 5, 2)


def with_settings(family: str, eos_token_ids: list[int]) -> LanguageModel:
    model = tiny(family)
    model.generation_config.update(**DISTRACTIONS, eos_token_id=eos_token_ids)
    return LanguageModel(model, make_tokenizer(appends_eos=model.config.is_encoder_decoder))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_tokens", [32768, 30])
def test_greedy_text_is_that_of_the_loop(family, batch_tokens):
    model = tiny_language_model(family)
    greedy = model.generate(encoded(model, LENGTHS), Decoding(max_tokens=12, strategy="greedy"))
    # The second end token is one that the rows write at different places, or not at all.
    rows = greedy.completion_ids.tolist()
    places = {
        token: {row.index(token) if token in row else None for row in rows}
        for token in {token for row in rows for token in row} - {EOS, model.pad_token_id}
    }
    model = with_settings(family, [EOS, max(places, key=lambda token: len(places[token]))])
    assert len(model.eos_token_ids) == 2
    batch = encoded(model, LENGTHS)
    options: dict[str, Any] = {"strategy": "greedy", "batch_tokens": batch_tokens}
    for limit in (1, 12):
        expected = model.generate(batch, Decoding(max_tokens=limit, **options))
        assert same(
            model.generate(batch, Decoding(max_tokens=limit, engine="generate", **options)),
            expected,
        )
    assert len(set(expected.lengths.tolist())) > 1
    assert expected.completion_ids[expected.mask].max() < NUM_TOKENS


@pytest.mark.parametrize("family", ["t5", "qwen2"])
def test_an_end_token_is_the_last_action_and_a_cut_has_none(family):
    model = tiny_language_model(family, spread=0.1)
    batch = encoded(model, (2,) * 300)
    rollout = model.generate(batch, Decoding(max_tokens=40, engine="generate"))
    ended = 0
    for ids, length, cut in zip(
        rollout.completion_ids.tolist(), rollout.lengths.tolist(), rollout.truncated, strict=True
    ):
        assert ids[: length - 1].count(EOS) == 0
        assert (ids[length - 1] == EOS) != bool(cut)
        assert set(ids[length:]) <= {model.pad_token_id}
        ended += ids[length - 1] == EOS
    assert 30 < ended < 270
    assert (rollout.lengths[rollout.truncated] == 40).all()


@pytest.mark.parametrize("family", ["mt5", "gpt2"])
def test_global_generators_and_the_models_settings_stay(family):
    model = with_settings(family, [EOS])
    model.train()
    settings, state = model.model.generation_config, torch.get_rng_state()
    first = model.generate(encoded(model), Decoding(max_tokens=8, engine="generate"))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert same(model.generate(encoded(model), Decoding(max_tokens=8, engine="generate")), first)
    assert model.model.generation_config is settings
    assert settings.to_diff_dict().items() >= {**DISTRACTIONS, "eos_token_id": [EOS]}.items()
    assert model.model.training
    seeds = range(100, 105)
    other = model.encode(prompts(), max_tokens=None, seeds=seeds)
    assert not same(model.generate(other, Decoding(max_tokens=8, engine="generate")), first)


def test_more_tokens_than_positions_are_refused():
    for family in ("gpt2", "bart"):
        model = tiny_language_model(family)
        with pytest.raises(ModelError, match="exceeds the model's 64 positions"):
            model.generate(encoded(model), Decoding(max_tokens=65, engine="generate"))


@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_padding_that_a_group_shares_costs_nothing(family, monkeypatch):
    model = tiny_language_model(family)
    batch, widths = encoded(model, (61, 2, 2, 3)), []
    generate = model.model.generate

    def watched(ids: Tensor, **options: Any) -> Tensor:
        widths.append(ids.shape)
        return generate(ids, **options)

    monkeypatch.setattr(model.model, "generate", watched)
    eos = int(model.is_encoder_decoder)
    # The short rows have room for 9 tokens: positions are counted without the padding, too.
    short = batch.select([1, 2, 3])
    greedy = {"max_tokens": 9, "strategy": "greedy"}
    found = model.generate(short, Decoding(**greedy, engine="generate"))
    assert same(found, model.generate(short, Decoding(**greedy)))
    model.generate(batch, Decoding(max_tokens=3, engine="generate", batch_tokens=40))
    assert sorted(widths) == sorted([(3, 3 + eos), (1, 61 + eos), (3, 3 + eos)])
