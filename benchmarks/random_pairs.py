"""Students and teachers with random weights, prompts, and what a step on them costs in theory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from brim.examples import Example
from brim.models import Decoding, LanguageModel, build_model
from brim.objectives.base import Objective
from brim.training.loop_settings import LoopConfig, OptimConfig
from brim.training.updates import Updater
from brim.types import Rollout

SPECIAL = {"<pad>": 0, "</s>": 1, "<unk>": 2}


@dataclass(frozen=True)
class Pair:
    """A student and a teacher of one family, and the lengths of what they read and write."""

    family: str
    student: Mapping[str, Any]
    teacher: Mapping[str, Any]
    vocab_size: int = 8000
    prompt_tokens: int = 32
    max_tokens: int = 64

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether prompts have an encoder of their own."""
        return self.family in ("t5", "mt5")

    def build(self, role: str, seed: int = 0) -> LanguageModel:
        """The `student` or the `teacher`, without dropout."""
        sizes = self.student if role == "student" else self.teacher
        description = {"family": self.family, "dropout": 0.0, **sizes}
        return build_model(description, word_tokenizer(self.vocab_size), seed=seed)

    def examples(self, count: int, seed: int = 0) -> list[Example]:
        """Prompts of random words, all of the same length."""
        generator = torch.Generator().manual_seed(seed)
        words = self.prompt_tokens
        ids = torch.randint(len(SPECIAL), self.vocab_size, (count, words), generator=generator)
        return [
            Example(id=str(i), prompt=" ".join(f"w{j}" for j in row))
            for i, row in enumerate(ids.tolist())
        ]


STUDENT = {"d_model": 256, "d_ff": 768, "layers": 4, "heads": 4}
TEACHER = {"d_model": 512, "d_ff": 1536, "layers": 6, "heads": 8}
PAIRS = {
    "qwen2": Pair("qwen2", STUDENT, TEACHER),
    "t5": Pair("t5", STUDENT, TEACHER, prompt_tokens=64, max_tokens=48),
}


def tiny(pair: Pair) -> Pair:
    """A pair of the same family that is done in a moment."""
    sizes = {"d_model": 32, "d_ff": 64, "layers": 1, "heads": 2}
    return replace(
        pair, student=sizes, teacher=sizes, vocab_size=200, prompt_tokens=8, max_tokens=8
    )


def word_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """One token a word: w3, w4, … behind the special ones."""
    vocab = SPECIAL | {f"w{i}": i for i in range(len(SPECIAL), vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def make_updater(
    objective: Objective,
    student: LanguageModel,
    teacher: LanguageModel,
    accelerator: Any,
    *,
    batch: int,
    micro_batch_tokens: int = 8192,
    seed: int = 0,
) -> Updater:
    """The trainer's own updater, with settings that do not matter for speed."""
    teacher.requires_grad_(False)
    settings = LoopConfig(
        max_steps=1, rollout_batch_size=batch, micro_batch_tokens=micro_batch_tokens
    )
    optim = OptimConfig(lr=1e-5)
    return Updater(student, teacher, objective, optim, settings, accelerator, seed)


def collect(
    updater: Updater, examples: list[Example], step: int, seeds: list[int] | None = None
) -> Rollout:
    """The rollout of one step, as the trainer collects it; by default each step has its seeds."""
    if seeds is None:
        seeds = [step * len(examples) + row for row in range(len(examples))]
    batch = updater.student.encode(examples, max_tokens=None, seeds=seeds)
    rollout, _ = updater.collect(batch)
    return rollout


def ragged_lengths(pair: Pair, rows: int) -> list[int]:
    """Spread evenly from an eighth of the limit to the limit: 8 … 64."""
    shortest = pair.max_tokens // 8
    span = pair.max_tokens - shortest
    return [shortest + round(row * span / max(rows - 1, 1)) for row in range(rows)]


def ragged_prompts(
    student: LanguageModel, pair: Pair, rows: int
) -> tuple[list[Example], list[int]]:
    """Prompts and seeds whose completions have the `ragged_lengths`, in any order.

    One token in 32 ends a text from here on. Of many completions those are chosen whose lengths
    fit: what a row writes depends on its prompt, its seed and the weights, so they come out again.
    """
    student.eos_token_ids = tuple(range(len(SPECIAL), len(SPECIAL) + max(1, pair.vocab_size // 32)))
    examples = pair.examples(16 * rows)
    batch = student.encode(examples, max_tokens=None)
    written = student.generate(batch, Decoding(max_tokens=pair.max_tokens))
    left = dict(zip(batch.seeds, written.lengths.tolist(), strict=True))
    chosen = []
    for length in ragged_lengths(pair, rows):
        chosen.append(min(left, key=lambda seed: abs(left[seed] - length)))
        del left[chosen[-1]]
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0)).tolist()
    seeds = [chosen[place] for place in order]
    return [examples[seed] for seed in seeds], seeds


# Floating-point operations of matrix products, two for a multiplication with its addition. All
# else (attention scores, norms, softmax) is left out, so that the limit is one: nothing that does
# these products can be faster than they are.


@dataclass(frozen=True)
class StepOperations:
    """Operations of the three phases of a step in which nothing ends early."""

    rollout: float
    teacher: float
    update: float

    @property
    def step(self) -> float:
        """Of all three."""
        return self.rollout + self.teacher + self.update


def forward_operations(model: nn.Module, pair: Pair, rows: int) -> float:
    """Of one pass over prompts and completions: 2 · weights · tokens that meet them.

    Encoder weights meet the prompt; so do keys and values of cross-attention; the decoder's other
    weights meet the completion (and the prompt, where there is no encoder); the head meets the
    completion.
    """
    total = 0.0
    head = model.get_output_embeddings()
    for name, part in model.named_modules():
        if not isinstance(part, nn.Linear):
            continue
        if part is head:
            tokens = pair.max_tokens
        elif not pair.is_encoder_decoder:
            tokens = pair.prompt_tokens + pair.max_tokens - 1
        elif name.startswith("encoder.") or name.endswith(
            ("EncDecAttention.k", "EncDecAttention.v")
        ):
            tokens = pair.prompt_tokens
        else:
            tokens = pair.max_tokens
        total += 2 * part.in_features * part.out_features * tokens * rows
    return total


def step_operations(pair: Pair, rows: int) -> StepOperations:
    """Rollout: one pass of the student, cached. Teacher: one pass. Update: a pass and two back."""
    student, teacher = (pair.build(role).model for role in ("student", "teacher"))
    once = forward_operations(student, pair, rows)
    return StepOperations(once, forward_operations(teacher, pair, rows), 3 * once)
