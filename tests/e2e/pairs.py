"""A small task that the package does not know, numbers to Roman numerals; tiny pairs for it."""

from collections.abc import Iterator
from contextlib import contextmanager

from brim.training.trainer import Trainer

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
    trainer: {{max_steps: 4, rollout_batch_size: 16, evaluate_every: 4}}
student:
  build: {model}
  predistill:
    optim: {{lr: 3e-3}}
    trainer: {{max_steps: 3, rollout_batch_size: 16, evaluate_every: 3}}
objective: {{name: brim, k: 2}}
decoding: {{max_prompt_tokens: 40, max_tokens: 8}}
optim: {{lr: 1e-3, warmup_steps: 2}}
trainer: {{max_steps: 6, rollout_batch_size: 8, micro_batch_tokens: 100, evaluate_every: 2,
          save_every: 1}}
evaluation: {{num_samples: 2}}
"""


def roman(number: int) -> str:
    text = ""
    for value, letters in NUMERALS:
        text += letters * (number // value)
        number %= value
    return text


@contextmanager
def stopping(step: int, stage: str = "") -> Iterator[None]:
    """Trainings whose folder has this in its name stop after a step, as by Ctrl-C."""
    original = Trainer._train_step

    def train_step(self: Trainer) -> None:
        original(self)
        self.stop_requested = self.state.step == step and stage in self.directory.name

    Trainer._train_step = train_step
    try:
        yield
    finally:
        Trainer._train_step = original
