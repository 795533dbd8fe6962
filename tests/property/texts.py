"""Texts of two letters that teacher and student spell in different tokens, few enough to enumerate.

The student writes a, b, ab and an end; the teacher reads a, b and ba by longest match. Where the
teacher's tokens begin depends on the letter that follows: of "b" it is not known whether it is a
token before the next letter.
"""

import random
from functools import lru_cache

import torch
from mdp import TabularFeatures
from tokenizers import Tokenizer, decoders, models
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from brim.examples import Example
from brim.models import Decoding, Features, LanguageModel
from brim.models.alignment import AlignedTeacher
from brim.models.encoding import Encoder
from brim.types import ActionValues, Batch, Rollout

END = 0
MINE, THEIRS = ["</s>", "a", "b", "ab"], ["</s>", "a", "b", "ba"]


def encoder_of(tokens: list[str]) -> Encoder:
    pair = tokens[-1]
    backend = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, [(pair[0], pair[1])]))
    backend.decoder = decoders.Fuse()
    return Encoder(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"), [END], None)


def completions(horizon: int) -> tuple[list[list[int]], list[bool]]:
    """Everything that the student can write in at most so many tokens, and whether it was cut."""
    rows: list[list[int]] = []
    begun: list[list[int]] = [[]]
    for _ in range(horizon):
        rows += [[*row, END] for row in begun]
        begun = [[*row, token] for row in begun for token in (1, 2, 3)]
    rows += begun
    return rows, [row[-1] != END for row in rows]


class TextTeacher(LanguageModel):
    """Q-values drawn anew for each prefix of the teacher's tokens, in float64."""

    def __init__(self, seed: int = 0, tokens: list[str] = THEIRS):
        nn.Module.__init__(self)
        self.encoder, self.seed = encoder_of(tokens), seed
        self.tokenizer, self.rules = self.encoder.tokenizer, self.encoder.rules
        self.batch_tokens, self.eos_token_ids, self.is_encoder_decoder = 8192, (END,), False
        self.logits = lru_cache(None)(self._logits)

    @property
    def num_positions(self):
        return None

    def encode(self, examples, *, max_tokens=None, seeds=None) -> Batch:
        return batch_of(len(examples))

    def _logits(self, prefix: tuple[int, ...]) -> Tensor:
        draws = random.Random(f"{self.seed}{prefix}")
        return torch.tensor([draws.gauss(0, 2) for _ in range(4)], dtype=torch.float64)

    def features(self, rollout: Rollout, *, after: bool = False) -> Features:
        found = [
            self.logits(tuple(ids[:t]))
            for ids, length in zip(
                rollout.completion_ids.tolist(), rollout.lengths.tolist(), strict=True
            )
            for t in range(length)
        ]
        hidden = torch.stack(found)
        return TabularFeatures(hidden, None, rollout.completion_ids[rollout.mask], rollout.mask)

    def action_values(self, rollout, *, centering="none", bootstrap=False) -> ActionValues:
        return self.features(rollout).action_values(centering)


class TextStudent(LanguageModel):
    """A table of logits with a row for each prefix of the student's tokens."""

    def __init__(self, horizon: int, seed: int = 1):
        nn.Module.__init__(self)
        self.encoder, self.batch_tokens, self.eos_token_ids = encoder_of(MINE), 8192, (END,)
        rows, cut = completions(horizon)
        prefixes = sorted({tuple(row[:t]) for row in rows for t in range(len(row))})
        self.numbers = {prefix: i for i, prefix in enumerate(prefixes)}
        generator = torch.Generator().manual_seed(seed)
        table = torch.randn((len(prefixes), 4), dtype=torch.float64, generator=generator)
        self.table = nn.Parameter(table)
        width = torch.tensor([row + [0] * (horizon - len(row)) for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(horizon) < lengths[:, None]
        self.everything = Rollout(batch_of(len(rows)), width, mask, torch.tensor(cut))

    def states(self, rollout: Rollout) -> Tensor:
        rows = zip(rollout.completion_ids.tolist(), rollout.lengths.tolist(), strict=True)
        return torch.tensor([self.numbers[tuple(row[:t])] for row, n in rows for t in range(n)])

    def features(self, rollout: Rollout, *, after: bool = False) -> Features:
        hidden = self.table[self.states(rollout)]
        return TabularFeatures(hidden, None, rollout.completion_ids[rollout.mask], rollout.mask)

    def generate(self, batch: Batch, decoding: Decoding) -> Rollout:
        return self.everything

    def probabilities(self) -> Tensor:
        """(N,), of everything that can be written, differentiable."""
        rollout = self.everything
        logprobs = self.features(rollout).token_statistics().logprobs
        return (logprobs * rollout.mask).sum(1).exp()


def batch_of(num_rows: int) -> Batch:
    return Batch(
        examples=tuple(Example(f"{i}", "prompt") for i in range(num_rows)),
        prompt_ids=torch.zeros(num_rows, 1, dtype=torch.long),
        prompt_mask=torch.ones(num_rows, 1, dtype=torch.bool),
        seeds=tuple(range(num_rows)),
    )


def certain_places(text: str) -> list[tuple[int, int]]:
    """Behind each a, at once; before each b, which begins a token whatever precedes it; not
    between b and what follows until that is written."""
    return [
        (i, i if text[i - 1] == "a" else i + 1)
        for i in range(1, len(text) + 1)
        if text[i - 1] == "a" or (i < len(text) and text[i] == "b")
    ]


def finished_places(text: str) -> list[tuple[int, int]]:
    """The trap: all that turn out to be places in the finished text, as if known at once."""
    ends = [0]
    while ends[-1] < len(text):
        ends.append(ends[-1] + (2 if text[ends[-1] :].startswith("ba") else 1))
    return [(i, i) for i in ends[1:]]


def aligned(teacher: LanguageModel, student: TextStudent, boundaries=certain_places):
    return AlignedTeacher(teacher, student.encoder, boundaries=boundaries)
