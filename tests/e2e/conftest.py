"""A small task that the package does not know, numbers to Roman numerals, and tiny pairs for it."""

import json
import random
from pathlib import Path

import pytest

from brim.config import load_config
from brim.settings import RunConfig

NUMERALS = [
    (100, "C"), (90, "XC"), (50, "L"), (40, "XL"),
    (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I"),
]  # fmt: skip

T5 = "{family: t5, d_model: 32, d_ff: 64, layers: 1, heads: 2, dropout: 0.1}"
LLAMA = "{family: llama, d_model: 32, d_ff: 64, layers: 2, heads: 2}"
GPT2 = "{family: gpt2, d_model: 32, d_ff: 64, layers: 1, heads: 2, dropout: 0.1}"
QWEN2 = "{family: qwen2, d_model: 32, d_ff: 64, layers: 1, heads: 2}"

RECIPE = """\
task: {{name: files, train: {data}/train.jsonl, validation: {data}/validation.jsonl,
       test: {data}/test.jsonl, prompt: "write {{number}} in Roman numerals:",
       target_column: roman, metrics: [exact_match, ter]}}
teacher:
  tokenizer: {{kind: bpe, vocab_size: 300}}
  build: {model}
  train:
    optim: {{lr: 3e-3, schedule: linear}}
    trainer: {{max_steps: 4, rollout_batch_size: 16, micro_batch_size: 16, evaluate_every: 4}}
student:
  build: {model}
  predistill:
    optim: {{lr: 3e-3}}
    trainer: {{max_steps: 3, rollout_batch_size: 16, micro_batch_size: 16, evaluate_every: 3}}
objective: {{name: brim, k: 2}}
decoding: {{max_prompt_tokens: 40, max_tokens: 8, batch_size: 32}}
optim: {{lr: 1e-3, warmup_steps: 2}}
trainer: {{max_steps: 6, rollout_batch_size: 8, micro_batch_size: 3, evaluate_every: 2,
          save_every: 1}}
evaluation: {{batch_size: 32, num_samples: 2}}
"""


def roman(number: int) -> str:
    text = ""
    for value, letters in NUMERALS:
        text += letters * (number // value)
        number %= value
    return text


@pytest.fixture(scope="session")
def numerals(tmp_path_factory) -> Path:
    """A folder of JSONL files with the columns `number` and `roman`."""
    folder = tmp_path_factory.mktemp("numerals")
    numbers = list(range(1, 200))
    random.Random(0).shuffle(numbers)
    for split, part in {
        "train": numbers[:160], "validation": numbers[160:176], "test": numbers[176:],
    }.items():  # fmt: skip
        rows = [json.dumps({"number": f"{n}", "roman": roman(n)}) for n in part]
        (folder / f"{split}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def write_recipe(numerals, tmp_path_factory):
    """`write_recipe(model)` is the path of a recipe on the numerals."""

    def write(model: str) -> Path:
        path = tmp_path_factory.mktemp("recipe") / "numerals.yaml"
        path.write_text(RECIPE.format(data=numerals, model=model), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def make_config(write_recipe):
    """`make_config(model, *overrides)` is a run's settings."""

    def make(model: str, *overrides: str) -> RunConfig:
        return load_config(RunConfig, write_recipe(model), overrides)

    return make
