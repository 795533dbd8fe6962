"""The output head keeps its bytes on every path, tied or not.

`test_transformers_alone_overwrites_an_untied_head` shows that there is something to guard against.
"""

import copy
from pathlib import Path

import pytest
import torch
from rounding import assert_rounding
from safetensors.torch import load_file, save_file
from tiny import (
    FAMILIES,
    NUM_ROWS,
    encoded,
    tiny,
    tiny_language_model,
    word_tokenizer,
    written,
)
from torch import Tensor, nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, T5ForConditionalGeneration

from brim.errors import ModelError
from brim.models import Decoding, LanguageModel, load_model
from brim.models.head_checks import check_same_head, check_stored_head

UNTIED_T5 = ("t5_v1_1", "mt5")
TIED = ("t5", "bart", "marian", "llama", "gpt2")


def head_of(model: LanguageModel) -> Tensor:
    return model.model.get_output_embeddings().weight


def is_tied(model: LanguageModel) -> bool:
    embeddings = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    return any(embedding.weight is head_of(model) for embedding in embeddings)


def reload(model: LanguageModel, directory: Path) -> LanguageModel:
    model.save(directory)
    return load_model(directory)


def tie_weights(model: LanguageModel) -> LanguageModel:
    model.model.tie_weights()
    return model


def copy_it(model: LanguageModel) -> LanguageModel:
    return model.copy()


def deepcopy_and_tie(model: LanguageModel) -> LanguageModel:
    clone = copy.deepcopy(model)
    clone.model.tie_weights()
    return clone


def resize(model: LanguageModel) -> LanguageModel:
    model.resize(NUM_ROWS + 16)
    model.resize(NUM_ROWS)
    return model


PATHS = [tie_weights, copy_it, deepcopy_and_tie, resize]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_and_the_policy_survive(path, family):
    model, rollout = written(family, 5)
    head, logprobs = head_of(model).detach().clone(), model.logprobs(rollout).detach()
    after = path(model).eval()
    assert torch.equal(head_of(after), head)
    assert is_tied(after) == (family in TIED)
    assert_rounding(after.logprobs(rollout).detach(), logprobs)
    assert after.decode(after.generate(rollout.batch, Decoding(max_tokens=5))) == model.decode(
        rollout
    )


@pytest.mark.parametrize("family", UNTIED_T5)
def test_transformers_alone_overwrites_an_untied_head(family):
    for overwrite in (
        lambda model: model.tie_weights(),
        lambda model: model.resize_token_embeddings(NUM_ROWS + 16),
    ):
        model = tiny(family)
        head = model.lm_head.weight.detach().clone()
        overwrite(model)
        assert not torch.equal(model.lm_head.weight[:NUM_ROWS], head)


@pytest.mark.parametrize("family", FAMILIES)
def test_resizing_adds_rows_that_are_the_mean_and_draws_no_numbers(family):
    model, rollout = written(family, 4)
    logprobs = model.logprobs(rollout).detach()
    state = torch.get_rng_state()
    model.resize(NUM_ROWS + 8)
    assert torch.equal(torch.get_rng_state(), state)
    head = head_of(model)
    assert head.shape[0] == NUM_ROWS + 8
    assert model.model.config.vocab_size == NUM_ROWS + 8
    expected = head[:NUM_ROWS].mean(0).expand(8, -1)
    assert_rounding(head[NUM_ROWS:], expected)
    assert_rounding(model.logprobs(rollout).detach(), logprobs)
    with pytest.raises(ModelError, match="token id 39 but the model's head has 20 rows"):
        model.resize(20)


@pytest.mark.parametrize("family", ["t5_v1_1", "t5", "qwen2"])
def test_a_copy_shares_no_memory(family):
    model = tiny_language_model(family)
    clone = model.copy()
    before = head_of(model).detach().clone()
    with torch.no_grad():
        for parameter in clone.parameters():
            parameter.add_(1)
    assert torch.equal(head_of(model), before)
    rollout = clone.generate(encoded(clone), Decoding(max_tokens=3))
    assert not torch.allclose(clone.logprobs(rollout), model.logprobs(rollout))


@pytest.mark.parametrize("family", ["t5", "t5_v1_1", "mt5", "llama", "qwen2"])
def test_training_keeps_tied_heads_tied_and_untied_ones_apart(family, tmp_path):
    model = reload(tiny_language_model(family), tmp_path)
    rollout = model.generate(encoded(model), Decoding(max_tokens=4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.logprobs(rollout).sum().backward()
    optimizer.step()
    embedding = model.model.get_input_embeddings().weight
    assert torch.equal(head_of(model), embedding) == (family in TIED)


def test_a_head_that_was_overwritten_is_noticed(tmp_path):
    model = tiny_language_model("t5_v1_1")
    model.save(tmp_path)
    clone = model.copy()
    with torch.no_grad():
        clone.model.lm_head.weight.copy_(clone.model.shared.weight)
    with pytest.raises(ModelError, match="head"):
        check_stored_head(clone.model, tmp_path)
    with pytest.raises(ModelError, match="head"):
        check_same_head(clone.model, model.model)


def test_loading_notices_a_head_that_transformers_tied(tmp_path, monkeypatch):
    tiny_language_model("t5_v1_1").save(tmp_path)
    load = T5ForConditionalGeneration.from_pretrained.__func__

    def careless(cls: type, *args: object, **kwargs: object) -> object:
        model, info = load(cls, *args, **kwargs)
        model.lm_head.weight = model.shared.weight
        return model, info

    monkeypatch.setattr(T5ForConditionalGeneration, "from_pretrained", classmethod(careless))
    with pytest.raises(ModelError, match="the output head in memory is not the one in the file"):
        load_model(tmp_path)


def test_saving_notices_a_head_that_was_lost(tmp_path, monkeypatch):
    model = tiny_language_model("t5_v1_1")
    save = model.model.save_pretrained

    def careless(directory: Path) -> None:
        save(directory)
        tensors = load_file(Path(directory) / "model.safetensors")
        del tensors["lm_head.weight"]
        save_file(tensors, Path(directory) / "model.safetensors")

    monkeypatch.setattr(model.model, "save_pretrained", careless)
    with pytest.raises(ModelError, match="head"):
        model.save(tmp_path)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_file_in_another_precision(dtype, tmp_path):
    for family in ("t5_v1_1", "llama"):
        model = tiny_language_model(family)
        model.save(tmp_path / family)
        low = load_model(tmp_path / family, dtype=dtype)
        assert str(head_of(low).dtype) == f"torch.{dtype}"
        low.save(tmp_path / f"{family}-low")
        back = load_model(tmp_path / f"{family}-low", dtype="float32")
        assert torch.equal(head_of(back), head_of(low).float())
        assert str(head_of(load_model(tmp_path / f"{family}-low", dtype="auto")).dtype).endswith(
            dtype
        )


def test_shards(tmp_path):
    for family in ("t5_v1_1", "gpt2"):
        model = tiny_language_model(family)
        model.save(tmp_path / family)
        (tmp_path / family / "model.safetensors").unlink()
        model.model.save_pretrained(tmp_path / family, max_shard_size="4KB")
        assert len(list((tmp_path / family).glob("model-*.safetensors"))) > 1
        assert torch.equal(head_of(load_model(tmp_path / family)), head_of(model))


def test_a_head_that_files_call_otherwise_than_the_model(tmp_path):
    """transformers keeps the name `embed_out` in the files of GPT-NeoX (Pythia)."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4}
    config = GPTNeoXConfig(vocab_size=NUM_ROWS, num_hidden_layers=1, **sizes)
    model = LanguageModel(GPTNeoXForCausalLM(config).eval(), word_tokenizer())
    again = reload(model, tmp_path)
    assert torch.equal(head_of(again), head_of(model))
    rollout = model.generate(encoded(model), Decoding(max_tokens=4))
    assert_rounding(again.logprobs(rollout), model.logprobs(rollout))
    for other in (head_of(model) + 1, model.model.get_input_embeddings().weight.clone()):
        again.model.get_output_embeddings().weight = nn.Parameter(other.detach())
        with pytest.raises(ModelError, match="no safetensors file holds the output head"):
            check_stored_head(again.model, tmp_path)
