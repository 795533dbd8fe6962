"""Beam search, beside greedy text and beside a search of all texts."""

from itertools import product

import pytest
import torch
from tiny import (
    EOS,
    FAMILIES,
    NUM_TOKENS,
    encoded,
    prompts,
    same,
    tiny,
    tiny_language_model,
    word_tokenizer,
)
from torch import Tensor

from brim.models import BeamSearch, Decoding, LanguageModel
from brim.types import Batch, Rollout

LENGTHS = (3, 1, 6, 2, 4, 5, 2)


def beam(limit: int, num_beams: int, penalty: float = 1.0, **options: int) -> BeamSearch:
    return BeamSearch(max_tokens=limit, num_beams=num_beams, length_penalty=penalty, **options)


def score(model: LanguageModel, rollout: Rollout, penalty: float) -> Tensor:
    """(B,) what beam search maximises, from a pass of our own."""
    return model.statistics(rollout).logprobs.sum(1) / rollout.lengths**penalty


@pytest.mark.parametrize("family", FAMILIES)
def test_one_beam_is_greedy(family):
    model = tiny_language_model(family)
    batch = encoded(model, LENGTHS)
    greedy = Decoding(max_tokens=12, strategy="greedy")
    # Another end token: one that the rows write at different places, or not at all.
    rows = model.generate(batch, greedy).completion_ids.tolist()
    tokens = {token for row in rows for token in row} - {model.pad_token_id}
    places = {t: {row.index(t) if t in row else None for row in rows} for t in tokens}
    model.eos_token_ids = (EOS, max(sorted(places), key=lambda token: len(places[token])))
    expected = model.generate(batch, greedy)
    assert len(set(expected.lengths.tolist())) > 1
    assert same(model.generate(batch, beam(12, 1)), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_more_beams_find_better_texts(family):
    model = tiny_language_model(family, spread=0.2)
    batch = encoded(model, LENGTHS * 4)
    greedy = model.generate(batch, Decoding(max_tokens=8, strategy="greedy"))
    found = model.generate(batch, beam(8, 6, 0.0))
    gain = score(model, found, 0.0) - score(model, greedy, 0.0)
    assert gain.mean() > 0
    assert (gain > 1e-3).any()
    assert found.completion_ids[found.mask].max() < NUM_TOKENS  # rows without a token are not text
    cut = ~torch.isin(found.completion_ids, torch.tensor(model.eos_token_ids)).logical_and(
        found.mask
    )
    assert torch.equal(found.truncated, cut.all(dim=1))
    assert (found.lengths[found.truncated] == 8).all()


@pytest.mark.parametrize("family", ["t5", "bart", "qwen2", "gpt2"])
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_enough_beams_find_the_best_of_all_texts(family, penalty):
    num_tokens, limit = 6, 3
    # Two more rows of the head have no token: they are part of no text and of no probability.
    source = tiny(family, num_rows=num_tokens + 2, spread=0.3)
    appends_eos = source.config.is_encoder_decoder
    model = LanguageModel(source, word_tokenizer(num_tokens, appends_eos=appends_eos)).eval()
    model.eos_token_ids = (EOS,)
    batch = model.encode(prompts((2, 1, 3)), max_tokens=None)
    found = model.generate(batch, beam(limit, num_tokens**limit, penalty))
    texts = [
        words[: words.index(EOS) + 1] if EOS in words else words
        for words in product(range(num_tokens), repeat=limit)
    ]
    texts = sorted(set(texts))
    for row in range(len(batch)):
        every = as_rollout(batch.select([row] * len(texts)), texts)
        scores = score(model, every, penalty)
        best, second = scores.topk(2).values
        assert best - second > 1e-5
        length = int(found.lengths[row])
        assert tuple(found.completion_ids[row, :length].tolist()) == texts[int(scores.argmax())]
        assert bool(found.truncated[row]) == (EOS not in texts[int(scores.argmax())])


def as_rollout(batch: Batch, texts: list[tuple[int, ...]]) -> Rollout:
    width = max(map(len, texts))
    ids = torch.tensor([[*words, *[0] * (width - len(words))] for words in texts])
    lengths = torch.tensor([len(words) for words in texts])
    mask = torch.arange(width) < lengths[:, None]
    return Rollout(batch, ids, mask, torch.tensor([EOS not in words for words in texts]))


@pytest.mark.parametrize("family", ["t5", "qwen2"])
def test_beams_count_in_the_budget_and_do_not_change_the_text(family, monkeypatch):
    model = tiny_language_model(family)
    batch, rows = encoded(model, LENGTHS), []
    forward = model.model.forward

    def watched(*inputs: Tensor, **options: Tensor) -> object:
        ids = options["decoder_input_ids" if model.is_encoder_decoder else "input_ids"]
        rows.append(len(ids))
        return forward(*inputs, **options)

    at_once = model.generate(batch, beam(10, 3))
    monkeypatch.setattr(model.model, "forward", watched)
    budget = 100
    assert same(model.generate(batch, beam(10, 3, batch_tokens=budget)), at_once)
    shortest = 10 + min(LENGTHS)
    assert max(rows) <= budget // shortest
    assert max(rows) > 3


def test_settings_that_contradict_each_other_are_refused():
    for kind, options, word in (
        (Decoding, {"strategy": "beam"}, "strategy"),
        (Decoding, {"strategy": "greedy", "num_beams": 2}, "num_beams"),
        (BeamSearch, {"engine": "loop"}, "engine"),
        (BeamSearch, {"num_beams": 0}, "num_beams"),
        (BeamSearch, {"length_penalty": float("nan")}, "penalty"),
        (BeamSearch, {"top_k": 2}, "top_k"),
    ):
        with pytest.raises(ValueError, match=word):
            kind(max_tokens=4, **options)
