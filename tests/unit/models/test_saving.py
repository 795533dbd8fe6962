"""Whatever is saved is read by plain transformers, of this version and of an older one, as here."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from environments import environment_with
from plain import answer
from saved_models import MODELS, PROMPTS, TEXTS, edit
from tiny import tiny, word_tokenizer

from brim.examples import Example
from brim.models import Decoding, LanguageModel, load_model

MAX_TOKENS = 8
# The tests run with a newer one.
OLDER = ("4.57.", "5.0.")


class Saved(NamedTuple):
    """A folder, and what brim itself reads and writes with its model."""

    folder: Path
    model: LanguageModel
    prompt_ids: list[list[int]]
    written: list[list[int]]
    logprobs: list[list[float]]


def examples(texts: list[str]) -> list[Example]:
    return [Example(id=str(number), prompt=text) for number, text in enumerate(texts)]


def greedy(model: LanguageModel) -> tuple[list[list[int]], list[list[float]]]:
    batch = model.encode(examples(PROMPTS), max_tokens=None)
    rollout = model.generate(batch, Decoding(strategy="greedy", max_tokens=MAX_TOKENS))
    rows = zip(
        rollout.completion_ids.tolist(), model.statistics(rollout).logprobs.tolist(),
        rollout.lengths.tolist(), strict=True,
    )  # fmt: skip
    cut = [(ids[:length], logprobs[:length]) for ids, logprobs, length in rows]
    return [ids for ids, _ in cut], [logprobs for _, logprobs in cut]


def save(folder: Path, model: LanguageModel) -> Saved:
    model.save(folder)
    rows = model.encode(examples(TEXTS), max_tokens=None)
    ids = [row[mask].tolist() for row, mask in zip(rows.prompt_ids, rows.prompt_mask, strict=True)]
    return Saved(folder, model, ids, *greedy(model))


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """`saved(name)` is the model of that name, saved; each is made once."""
    made: dict[str, Saved] = {}

    def make(name: str) -> Saved:
        if name not in made:
            if "marian" in name:
                pytest.importorskip("sentencepiece")
            folder = tmp_path_factory.mktemp("saved")
            made[name] = save(folder, MODELS[name](tmp_path_factory.mktemp("published")))
        return made[name]

    return make


def compare(ours: Saved, theirs: dict[str, Any]) -> None:
    """Demand the same ids of every text, and the same greedy tokens with the same probabilities."""
    for text, ids, plain in zip(TEXTS, ours.prompt_ids, theirs["ids"], strict=True):
        assert plain == ours.model.tokenizer(text).input_ids, repr(text)
        assert plain == ids or not plain, repr(text)  # brim starts an empty prompt with a token
    for row, plain in enumerate(theirs["written"]):
        written = ours.written[row]
        ours_at, theirs_at = ours.logprobs[row], theirs["logprobs"][row]
        pairs = zip(written, plain, ours_at, theirs_at, strict=False)
        same = next((i for i, (a, b, *_) in enumerate(pairs) if a != b), MAX_TOKENS)
        assert ours_at[:same] == pytest.approx(theirs_at[:same], abs=1e-3), PROMPTS[row]
        if same < MAX_TOKENS:  # two best tokens, which rounding tells apart
            assert ours_at[same] == pytest.approx(theirs_at[same], abs=1e-4), PROMPTS[row]
        else:
            assert written == plain, PROMPTS[row]


@pytest.mark.parametrize("name", MODELS)
def test_plain_transformers_reads_and_writes_the_same(name, saved):
    ours = saved(name)
    compare(ours, answer(str(ours.folder), TEXTS, PROMPTS, MAX_TOKENS))
    again = load_model(ours.folder)
    assert again.num_parameters == ours.model.num_parameters
    assert again.eos_token_ids == ours.model.eos_token_ids
    assert greedy(again)[0] == ours.written


def settings_in(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", MODELS)
def test_the_files_say_what_the_model_is(name, saved):
    ours = saved(name)
    model = ours.model.model
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    # A tied T5 of transformers 4 is one that scales its decoder's output, which this is not.
    assert settings_in(ours.folder, "config")["tie_word_embeddings"] == (
        tied and name != "built mt5, tied"
    )
    generation = settings_in(ours.folder, "generation_config")
    ends = generation["eos_token_id"]
    assert (tuple(ends) if isinstance(ends, list) else (ends,)) == ours.model.eos_token_ids
    tokenizer = settings_in(ours.folder, "tokenizer_config")
    kind = {"bart, languages": "NllbTokenizer", "marian": "MarianTokenizer"}
    expected = kind.get(name.removesuffix(", cut"), "PreTrainedTokenizerFast")
    assert tokenizer["tokenizer_class"] == expected
    # Only where AutoTokenizer would apply the rules of Qwen2 to another tokenizer.
    assert ("auto_map" in tokenizer) == (name.startswith("built qwen2") or "qwen2, o" in name)


@pytest.mark.parametrize("name", ["llama, base", "llama, scaled"])
def test_rotations_are_also_said_in_the_words_of_transformers_4(name, saved, tmp_path):
    ours = saved(name)
    shutil.copytree(ours.folder, tmp_path, dirs_exist_ok=True)
    config = settings_in(tmp_path, "config")
    older = {key: config[key] for key in ("rope_theta", "rope_scaling") if key in config}
    for words, same in ((older, True), ({}, False)):
        plain = {k: v for k, v in config.items() if not k.startswith("rope_")} | words
        (tmp_path / "config.json").write_text(json.dumps(plain), encoding="utf-8")
        assert (greedy(load_model(tmp_path))[0] == ours.written) == same


def test_two_ends_are_both_written(saved):
    ours = saved("gpt2, two ends")
    assert len(ours.model.eos_token_ids) == 2
    assert {row[-1] for row in ours.written} >= set(ours.model.eos_token_ids)


def test_settings_that_transformers_does_not_save(tmp_path):
    model = tiny("gpt2")
    model.generation_config.temperature = 0.6  # without do_sample, as some models come
    with pytest.raises(ValueError, match="GenerationConfig is invalid"):
        model.save_pretrained(tmp_path)
    LanguageModel(model, word_tokenizer()).save(tmp_path)
    assert settings_in(tmp_path, "generation_config")["temperature"] == 0.6
    assert model.generation_config.temperature == 0.6
    assert load_model(tmp_path).model.generation_config.temperature == 0.6


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_what_is_not_followed_is_not_saved(name, tmp_path):
    others = {"repetition_penalty": 1.8, "no_repeat_ngram_size": 2, "min_length": 9}
    model = MODELS[name](tmp_path / "published")
    model.model.generation_config.update(**others, do_sample=True, top_k=3, temperature=0.5)
    ours = save(tmp_path / "saved", model)
    compare(ours, answer(str(ours.folder), TEXTS, PROMPTS, MAX_TOKENS))
    assert settings_in(ours.folder, "generation_config")["top_k"] == 3
    edit(ours.folder / "generation_config.json", **others)
    assert answer(str(ours.folder), TEXTS, PROMPTS, MAX_TOKENS)["written"] != ours.written


def test_saving_again_writes_the_same(saved, tmp_path):
    for name in ("mt5", "built mt5, tied", "built qwen2", "bart, languages", "gpt2, more tokens"):
        folder = saved(name).folder
        load_model(folder).save(tmp_path / name)
        for file in folder.iterdir():
            assert (tmp_path / name / file.name).read_bytes() == file.read_bytes(), (name, file)


@pytest.mark.slow
@pytest.mark.parametrize("older", OLDER)
def test_an_older_transformers_reads_and_writes_the_same(older, saved, tmp_path, capsys):
    models = {name: saved(name) for name in MODELS}
    request = {
        "folders": {name: str(model.folder) for name, model in models.items()},
        "texts": TEXTS,
        "prompts": PROMPTS,
        "max_tokens": MAX_TOKENS,
    }
    (tmp_path / "request.json").write_text(json.dumps(request), encoding="utf-8")
    python = environment_with(tmp_path / "older", f"transformers=={older}*")
    script = Path(__file__).with_name("plain.py")
    command = [str(python), str(script), "request.json", "answer.json"]
    alone = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=tmp_path, env=alone, check=True, timeout=1200)
    answers = json.loads((tmp_path / "answer.json").read_text(encoding="utf-8"))
    assert answers["version"].startswith(older)
    for name, ours in models.items():
        assert isinstance(answers[name], dict), f"{name}: {answers[name]}"
        compare(ours, answers[name])
    with capsys.disabled():
        print(
            f"\ntransformers {answers['version']}: {len(models)} folders, the same ids of "
            f"{len(TEXTS)} texts and the same greedy tokens on {len(PROMPTS)} prompts"
        )
