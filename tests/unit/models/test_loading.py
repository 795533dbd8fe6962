import json
import shutil
from pathlib import Path

import pytest
import torch
from saved_models import (
    edit,
    gpt2_tokenizer,
    nllb_tokenizer,
    other_rules,
    published,
    qwen2_tokenizer,
    single_digits,
)
from tiny import FAMILIES, encoded, tiny_language_model, word_tokenizer
from tokenizers import Tokenizer
from transformers import BertConfig, BertForMaskedLM, BertModel, T5Config, T5EncoderModel

from brim.errors import ModelError
from brim.models import Decoding, check_same_tokenizer, load_model
from brim.models.loading import place_of

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16}
BERT = BertConfig(vocab_size=48, num_attention_heads=2, **SIZES)
T5 = T5Config(vocab_size=48, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)


@pytest.fixture
def saved(tmp_path):
    tiny_language_model("t5_v1_1").save(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_saved_is_loaded(family, tmp_path):
    model = tiny_language_model(family).eval()
    model.save(tmp_path)
    state = torch.get_rng_state()
    loaded = load_model(str(tmp_path))
    assert torch.equal(torch.get_rng_state(), state)
    assert not loaded.training
    assert not loaded.model.training
    check_same_tokenizer(model, loaded)
    for name, parameter in model.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter)
    batch, again = encoded(model), encoded(loaded)
    assert torch.equal(batch.prompt_ids, again.prompt_ids)
    rollout = model.generate(batch, Decoding(max_tokens=6))
    assert loaded.decode(loaded.generate(again, Decoding(max_tokens=6))) == model.decode(rollout)
    assert torch.equal(loaded.logprobs(rollout), model.logprobs(rollout))
    assert loaded.eos_token_ids == model.eos_token_ids


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_one_line(saved, device):
    with pytest.raises(ModelError, match=f"^device: '{device}' ") as caught:
        load_model(saved, device=device)
    assert "\n" not in str(caught.value)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-64])


def only_pickle(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    torch.save({}, directory / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: truncate(folder / "model.safetensors"), "cannot load the model"),
        (only_pickle, "no safetensors weights"),
        (lambda folder: [f.unlink() for f in folder.glob("tokenizer*")], "no tokenizer files"),
        (lambda folder: (folder / "config.json").write_text("{"), "not a valid JSON"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: [f.unlink() for f in folder.iterdir()], "no config.json"),
        (shutil.rmtree, "no such directory"),
        (
            lambda folder: BertModel(BERT).save_pretrained(folder),
            "of its weights are not in the file",
        ),
        (lambda folder: BertForMaskedLM(BERT).save_pretrained(folder), "not supported"),
        (lambda folder: T5EncoderModel(T5).save_pretrained(folder), "no language-modeling head"),
        (word_tokenizer(60).save_pretrained, "token id 59 but the model's head has 48 rows"),
    ],
)
def test_what_cannot_be_loaded_is_refused_in_one_line(damage, message, saved):
    damage(saved)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(saved)
    assert "\n" not in str(caught.value)


def test_names(saved, monkeypatch):
    with pytest.raises(ModelError, match="unknown dtype 'half'"):
        load_model(saved, dtype="half")
    for name in ("./nowhere", "/nowhere", "~/nowhere", "a/b/c"):
        with pytest.raises(ModelError, match="no such directory"):
            load_model(name)
    monkeypatch.setattr("brim.models.loading.HfApi", _Offline)
    with pytest.raises(ModelError, match=r"the hub does not give it \(no route to host\)"):
        load_model("nobody/nothing-of-this-name")
    monkeypatch.chdir(saved.parent)
    assert load_model("model").num_parameters > 0


class _Offline:
    def repo_info(self, *_args: object, **_options: object) -> None:
        raise OSError("no route to host\nand more of it")


def test_the_advice_to_break_a_t5_is_not_passed_on(saved, capfd):
    load_model(saved)
    assert "tie_word_embeddings" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "declared", ["GPT2Tokenizer", "Qwen2Tokenizer", "RobertaTokenizer", "TokenizersBackend", None]
)
def test_text_is_read_by_the_rules_of_the_file(declared, tmp_path):
    """AutoTokenizer makes `12` one token, as the declared class would."""
    tokenizer = other_rules(single_digits())
    model = published(tmp_path, "gpt2", tokenizer, declared=declared)
    text = "12 dogs ran 345 miles"
    expected = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids
    assert model.tokenizer.convert_ids_to_tokens(expected)[:2] == ["1", "2"]
    assert model.tokenizer(text).input_ids == expected


def test_a_class_with_languages_keeps_them_beside_the_rules_of_the_file(tmp_path, caplog):
    tokenizer = nllb_tokenizer()
    published(tmp_path, "bart", tokenizer)
    assert not caplog.records
    edit(tmp_path / "tokenizer.json", normalizer={"type": "Lowercase"})
    model = load_model(tmp_path)
    assert "tokenizer.json differs from the rules of NllbTokenizer" in caplog.text
    assert model.tokenizer("The CAT").input_ids == tokenizer("the cat").input_ids
    target = model.tokenizer(text_target="The CAT").input_ids
    assert target == tokenizer(text_target="the cat").input_ids


def test_where_tokens_are_in_a_text_is_no_other_rule(tmp_path):
    """Qwen2's own tokenizer.json, which its class rebuilds with other offsets, keeps the class."""
    published(tmp_path, "qwen2", qwen2_tokenizer())
    file = tmp_path / "tokenizer.json"
    rules = json.loads(file.read_text(encoding="utf-8"))
    rules["pre_tokenizer"]["pretokenizers"][1]["trim_offsets"] = False
    offsets = {"add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    rules["decoder"] = rules["post_processor"] = {"type": "ByteLevel", **offsets}
    file.write_text(json.dumps(rules), encoding="utf-8")
    model = load_model(tmp_path)
    assert type(model.tokenizer).__name__ == "Qwen2Tokenizer"
    model.save(tmp_path / "again")
    assert "auto_map" not in (tmp_path / "again" / "tokenizer_config.json").read_text()


def test_the_class_of_a_tokenizer_that_follows_its_file_is_kept(tmp_path):
    model = published(tmp_path, "gpt2", gpt2_tokenizer())
    assert type(model.tokenizer).__name__ == "GPT2Tokenizer"


def test_where_a_model_comes_from_is_said_before_it_is_loaded(tmp_path, monkeypatch):
    assert place_of(tmp_path) == str(tmp_path)
    found = {"org/known": "/cache/config.json", "org/none-of-it": object()}
    monkeypatch.setattr(
        "brim.models.loading.try_to_load_from_cache",
        lambda name, file, revision: found.get(name),
    )
    assert place_of("org/known") == "org/known (downloaded before)"
    for name in ("org/new", "org/none-of-it"):
        assert place_of(name) == f"{name} (downloading from the hub)"
