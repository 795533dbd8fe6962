"""A T5-type teacher with a Unigram tokenizer and a Llama-type student with bytes, through a run."""

import json

import pytest
import torch
from pairs import LLAMA, T5, stopping
from safetensors.torch import load_file
from test_train import rows
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from brim.analysis.subjects import AnalyzedModel, load_analyzed, open_run
from brim.config.yaml import parse
from brim.errors import ConfigError, ModelError
from brim.models import build_model, load_model
from brim.runs.evaluate import evaluate_run
from brim.runs.train import train
from brim.training.trainer import Interrupted

METHODS = {
    "llmr": "{name: llmr, baseline: time_mean}",
    "brim": "{name: brim, k: 2}",
    "anchored": "{name: anchored, immediate: sampled, expected_regrets: false}",
    "ppo_llmr": "{name: ppo_llmr}",
    "ppo_brim": "{name: ppo_brim, num_epochs: 2}",
    "seqkd": "{name: seqkd}",
}
FAST = (
    "trainer.max_steps=3", "trainer.evaluate_every=3", "trainer.save_every=1", "optim.lr=1e-2",
    "task.max_train_examples=32", "task.max_validation_examples=4", "task.max_test_examples=4",
    "evaluation.expected_returns=false", "evaluation.num_resamples=100",
    "teacher.tokenizer=null", "teacher.build=null", "teacher.train=null", "teacher.reads=text",
    "student.tokenizer={kind: bpe, vocab_size: 262}",
)  # fmt: skip


@pytest.fixture(scope="module")
def teacher(numerals, tmp_path_factory):
    """The folder of a T5-type model that reads pieces of words, as SentencePiece makes them."""
    lines = (numerals / "train.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [
        "write {number} in Roman numerals: {roman}".format(**json.loads(line)) for line in lines
    ]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=80, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    folder = tmp_path_factory.mktemp("teacher")
    build_model(parse(T5, str).data, fast, seed=0).save(folder)
    return folder


@pytest.fixture(scope="module")
def configure(make_config, teacher):
    return lambda *changes: make_config(LLAMA, *FAST, f"teacher.path={teacher}", *changes)


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    return tmp_path_factory.mktemp("stages")


def weights(out):
    return load_file(out / "best" / "model.safetensors")


@pytest.mark.parametrize("method", METHODS)
def test_each_method_trains_and_resumes_to_the_same_bits(method, configure, stages, tmp_path):
    config = configure(f"objective={METHODS[method]}")
    results = train(config, tmp_path / "whole", stages_dir=stages)
    assert torch.isfinite(torch.tensor(results["scores"]["return"]["value"]))
    with stopping(2, "stopped"), pytest.raises(Interrupted):
        train(config, tmp_path / "stopped", stages_dir=stages)
    train(config, tmp_path / "stopped", stages_dir=stages)
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert all(torch.equal(one[name], other[name]) for name in one)
    logged = rows(tmp_path / "whole" / "metrics.jsonl")
    assert any("rollout/segment_length" in line for line in logged) == (method != "seqkd")
    assert len(load_model(tmp_path / "whole" / "best").tokenizer) <= 262


def test_stages_are_evaluated_and_analyses_refused(configure, tmp_path):
    train(configure("objective.k=2"), tmp_path / "run")
    teacher = evaluate_run(tmp_path / "run", stage="teacher")
    student = evaluate_run(tmp_path / "run", stage="predistill")
    assert teacher["model"] != student["model"]
    with pytest.raises(ConfigError, match="reads"):
        load_analyzed(open_run(tmp_path / "run"), AnalyzedModel("student"))


def test_a_pair_that_shares_its_tokenizer_after_all_reads_tokens(configure, tmp_path):
    changes = ("student.tokenizer=null", "objective.k=2", f"student.build={T5}")
    train(configure(*changes, "teacher.reads=tokens"), tmp_path / "tokens")
    train(configure(*changes), tmp_path / "text")
    one, other = weights(tmp_path / "tokens"), weights(tmp_path / "text")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_other_way_of_reading_is_named(configure, tmp_path):
    changes = ("teacher.reads=tokens", "student.tokenizer=null")
    with pytest.raises(ModelError, match="teacher.reads=text"):
        train(configure(*changes), tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ("objective={name: kl}", "kl"),
        ("objective={name: brim, q_centering: policy}", "q_centering=policy"),
        ("objective={name: anchored}", "immediate=expected"),
        ("objective={name: brim, q_centering: none, truncated: bootstrap}", "truncated"),
        ("student={build: null, tokenizer: null, keep_layers: 1}", "keep_layers"),
        ("teacher.reads=tokens", "student.tokenizer"),
        ("student={build: null, path: x}", "tokenizer"),
    ],
)
def test_what_needs_one_vocabulary_is_refused_by_name(configure, change, name):
    with pytest.raises(ConfigError, match=name):
        configure(change)
