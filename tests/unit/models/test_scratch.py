import math
from typing import Any

import pytest
import torch
from tiny import EOS, NUM_TOKENS, PAD, prompts, word_tokenizer
from torch import nn

from brim.errors import ConfigError, ModelError
from brim.models import LanguageModel, build_model
from brim.types import Rollout

SIZE = {"d_model": 32, "layers": 2, "heads": 4}
TOKENIZER = word_tokenizer(appends_eos=True)

V, D, FF = NUM_TOKENS, 32, 128
T5_NORMS_AND_POSITIONS = (2 * 2 + 1) * D + (3 * 3 + 1) * D + 2 * 32 * 4
T5_ATTENTION = (2 + 3 + 3) * 4 * D * D  # two encoder layers, self and cross of three decoder layers
NUM_PARAMETERS = [
    ({"family": "t5"}, 2 * V * D + (2 + 2 + 2) * 4 * D * D + 4 * 2 * D * FF
     + (2 * 2 + 1 + 3 * 2 + 1) * D + 2 * 32 * 4),
    ({"family": "t5", "tied": True, "decoder_layers": 3},
     V * D + T5_ATTENTION + 5 * 2 * D * FF + T5_NORMS_AND_POSITIONS),
    ({"family": "mt5", "decoder_layers": 3, "d_ff": 40},
     2 * V * D + T5_ATTENTION + 5 * 3 * D * 40 + T5_NORMS_AND_POSITIONS),
    ({"family": "gpt2", "max_positions": 50},
     (V + 50) * D + 2 * (4 * D * D + 4 * D + 2 * D * FF + FF + D + 4 * D) + 2 * D),
    ({"family": "llama"}, V * D + 2 * (4 * D * D + 3 * D * FF + 2 * D) + D),
    ({"family": "llama", "kv_heads": 2, "tied": False},
     2 * V * D + 2 * (3 * D * D + 3 * D * FF + 2 * D) + D),
    ({"family": "qwen2"}, V * D + 2 * (4 * D * D + 3 * D + 3 * D * FF + 2 * D) + D),
]  # fmt: skip
DESCRIPTIONS = [description for description, _ in NUM_PARAMETERS]


def build(description: dict[str, Any], seed: int = 0) -> LanguageModel:
    return build_model({**SIZE, **description}, TOKENIZER, seed=seed)


def random_rollout(model: LanguageModel) -> Rollout:
    generator = torch.Generator().manual_seed(1)
    batch = model.encode(prompts((4,) * 50), max_tokens=None)
    ids = torch.randint(3, NUM_TOKENS, (50, 12), generator=generator)
    mask = torch.ones_like(ids, dtype=torch.bool)
    return Rollout(batch, ids, mask, torch.ones(50, dtype=torch.bool))


def weights(model: LanguageModel) -> torch.Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach()


@pytest.mark.parametrize(("description", "expected"), NUM_PARAMETERS)
def test_each_size_means_what_it_says(description, expected):
    assert build(description).num_parameters == expected


@pytest.mark.parametrize("description", [d for d in DESCRIPTIONS if d.get("tied") is not True])
def test_a_new_model_knows_nothing_and_says_so(description):
    model = build({**description, "d_model": 64, "d_ff": 256})
    rollout = random_rollout(model)
    loss = -model.logprobs(rollout).sum().item() / rollout.num_tokens
    # Logits of variance 1 are 0.5 worse than knowing nothing of random tokens.
    assert math.log(V) <= loss <= math.log(V) + 0.9


@pytest.mark.parametrize("description", DESCRIPTIONS)
def test_weights_depend_on_the_seed_alone(description):
    before = torch.random.get_rng_state()
    first = weights(build(description))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(weights(build(description)), first)
    assert not torch.equal(weights(build(description, seed=1)), first)


@pytest.mark.parametrize("description", DESCRIPTIONS)
def test_the_head_is_as_described(description):
    model = build(description).model
    tied = description.get("tied", description["family"] not in ("t5", "mt5"))
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied


@pytest.mark.parametrize("description", DESCRIPTIONS)
def test_special_tokens_are_the_tokenizers(description):
    model = build(description)
    for settings in (model.model.config, model.model.generation_config):
        assert (settings.pad_token_id, settings.eos_token_id) == (PAD, EOS)
        assert settings.bos_token_id is None
        if model.is_encoder_decoder:
            assert settings.decoder_start_token_id == PAD
    assert model.tokenizer.get_vocab() == TOKENIZER.get_vocab()
    assert model.tokenizer is not TOKENIZER


@pytest.mark.parametrize("family", ["t5", "mt5", "gpt2", "llama", "qwen2"])
def test_dropout_is_as_described_and_off_in_a_new_model(family):
    rollout = random_rollout(build({"family": family}))
    for dropout in (0.0, 0.3):
        model = build({"family": family, "dropout": dropout})
        calm = model.logprobs(rollout)
        assert torch.equal(model.logprobs(rollout), calm)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            assert torch.equal(model.train().logprobs(rollout), calm) == (dropout == 0)


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"family": "T5"}, ['"T5" is not one of t5, mt5, gpt2, llama, qwen2', "did you mean t5?"]),
        ({"family": "lama"}, ["did you mean llama?"]),
        ({"family": None}, ["is not one of"]),
        ({"family": ["t5"]}, ["is not one of"]),
        ({"famly": "t5"}, ["unknown key", "family"]),
        (
            {"d_modle": 32},
            ["description.d_modle: unknown key", "did you mean description.d_model?"],
        ),
        ({"kv_heads": 2}, ["unknown key; it belongs to description.family llama or qwen2"]),
        ({"heads": 5}, ["heads (5) must divide d_model (32)"]),
        ({"layers": 0}, ["layers: 0 must be at least 1"]),
        ({"layers": "2"}, ['layers: "2" must be']),
        ({"layers": True}, ["layers: true must be"]),
        ({"dropout": 1.0}, ["dropout: 1.0 must be less than 1"]),
        ({"feed_forward": "gated_gelu"}, ["did you mean gated-gelu?"]),
        ({"family": "llama", "kv_heads": 3}, ["kv_heads (3) must divide heads (4)"]),
        ({"family": "qwen2", "d_model": 36, "heads": 12}, ["must be even"]),
    ],
)
def test_what_cannot_be_built(changes, messages):
    with pytest.raises(ConfigError) as caught:
        build({"family": "t5", **changes})
    assert all(message in str(caught.value) for message in messages)
    assert "\n" not in str(caught.value)


def test_a_missing_size_is_named():
    with pytest.raises(ConfigError, match="description.heads: missing"):
        build_model({"family": "gpt2", "d_model": 8, "layers": 1}, TOKENIZER, seed=0)


@pytest.mark.parametrize("family", ["t5", "mt5"])
def test_a_decoder_needs_a_token_to_start_with(family):
    with pytest.raises(ModelError, match="pad_token"):
        build_model({"family": family, **SIZE}, word_tokenizer(pad=False), seed=0)
