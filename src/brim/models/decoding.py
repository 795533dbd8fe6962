"""Writing completions, each row from its own stream of random numbers."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from brim.errors import NonFiniteError
from brim.models.backbone import DecodingState
from brim.models.generation_settings import GenerationRules
from brim.models.head import Distribution, OutputHead

# Tokens between two looks at which rows have ended, on devices that the host does not wait for.
LOOK_EVERY = 8


@dataclass(frozen=True, slots=True)
class Decoding:
    """How a model writes.

    Attributes:
        max_tokens: limit of a completion, EOS included.
        strategy: `sampling` draws from the model's distribution, `greedy` takes its maximum, `beam`
            searches for the text of the highest `log π(text) / tokens^length_penalty`.
        temperature, top_k, top_p: see `Distribution`; sampling only.
        num_beams: texts that are kept of each row at every token; beam only.
        length_penalty: 0 for the likeliest text, 1 for the likeliest token on average; beam only.
        batch_tokens: tokens of the rows that are decoded at once, each counted with its prompt,
            padding and all that it may write, in each of its beams; changes memory and speed, not
            the text.
        engine: what writes: `loop` is `write_completions`; `generate` is transformers' own, see
            `engines.py`, and the one that has beams; `vllm` is for decoder-only models on a CUDA
            GPU, see `vllm_engine.py`.

    Raises:
        ValueError: a limit is out of its range.
    """

    max_tokens: int
    strategy: Literal["sampling", "greedy", "beam"] = "sampling"
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    num_beams: int = 1
    length_penalty: float = 1.0
    batch_tokens: int = 32768
    engine: Literal["loop", "generate", "vllm"] = "loop"

    def __post_init__(self) -> None:
        if self.engine not in ("loop", "generate", "vllm"):
            raise ValueError(f"engine must be 'loop', 'generate' or 'vllm', not {self.engine!r}")
        if self.strategy not in ("sampling", "greedy", "beam"):
            raise ValueError(
                f"strategy must be 'sampling', 'greedy' or 'beam', not {self.strategy!r}"
            )
        if self.strategy == "beam" and self.engine != "generate":
            raise ValueError("strategy='beam' needs engine='generate'")
        if self.num_beams < 1 or (self.num_beams > 1 and self.strategy != "beam"):
            raise ValueError("num_beams must be at least 1, and more only for strategy='beam'")
        if not math.isfinite(self.length_penalty):
            raise ValueError("length_penalty must be a finite number")
        if self.max_tokens < 1 or self.batch_tokens < 1:
            raise ValueError("max_tokens and batch_tokens must be at least 1")
        Distribution(self.temperature, self.top_k, self.top_p)  # raises

    @property
    def distribution(self) -> Distribution:
        """What the tokens are drawn from, and what a policy gradient is of.

        Text that is not drawn has no cut: its gradient is that of the softmax.
        """
        if self.strategy != "sampling":
            return Distribution(self.temperature)
        return Distribution(self.temperature, self.top_k, self.top_p)


def row_uniforms(seeds: Sequence[int], num_tokens: int) -> Tensor:
    """One uniform number in [0, 1) a row and token, (B, num_tokens) float32 on the CPU.

    Row i depends on `seeds[i]` alone (its lower 32 bits); a smaller `num_tokens` gives a prefix.
    """
    uniforms = torch.empty(len(seeds), num_tokens)
    generator = torch.Generator()
    for row, seed in zip(uniforms, seeds, strict=True):
        torch.rand(num_tokens, generator=generator.manual_seed(seed), out=row)
    return uniforms


def draw_tokens(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Draw a token of each row from the softmax of its logits.

    The cumulative distribution is inverted: token v is taken where `cdf[v - 1] <= u < cdf[v]`, so
    one of probability zero never is.

    Args:
        logits: (B, V) float32, at the temperature and cut; see `OutputHead.under`.
        uniforms: (B,) in [0, 1).

    Returns:
        (B,) int64.
    """
    cdf = logits.softmax(dim=1).cumsum(dim=1)
    # A float32 below 1 is at most 1 - 2^-24, so that the product rounds below the last value.
    threshold = uniforms[:, None] * cdf[:, -1:]
    tokens = torch.searchsorted(cdf, threshold, right=True).squeeze(1)
    return tokens.clamp_max_(logits.shape[1] - 1)  # logits that are not finite stay in the range


def write_completions(
    state: DecodingState,
    head: OutputHead,
    uniforms: Tensor,
    decoding: Decoding,
    eos_ids: Tensor,
    *,
    look_every: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Advance `state` until every row has ended or met the limit.

    A row that has ended leaves the batch at the next look. What it writes until then is ignored.

    Args:
        state: B rows, ready to predict their first token.
        head: the output head.
        uniforms: (B, max_tokens), see `row_uniforms`.
        decoding: the strategy and the limit.
        eos_ids: (E,) int64, the tokens that end a completion.
        look_every: tokens between two looks at which rows have ended; by default 1 on a CPU and
            `LOOK_EVERY` elsewhere, for looking makes the host wait for the device.

    Returns:
        ids (B, T) int64 (arbitrary behind a row's length), lengths (B,) int64 with EOS, and
        truncated (B,) bool.

    Raises:
        NonFiniteError: logits are not finite, and what they would write is arbitrary.
    """
    num_rows, limit = uniforms.shape
    device = uniforms.device
    sampling = decoding.strategy == "sampling"
    if sampling:
        head = head.under(decoding.distribution)
    look_every = look_every or (1 if device.type == "cpu" else LOOK_EVERY)
    ids = torch.empty(num_rows, limit, dtype=torch.long, device=device)
    lengths = torch.full((num_rows,), limit, device=device)
    truncated = torch.ones(num_rows, dtype=torch.bool, device=device)
    rows = torch.arange(num_rows, device=device)  # which row each place of the batch holds
    ended, finite = torch.zeros_like(truncated), torch.ones_like(truncated)
    for step in range(limit):
        logits = head.logits(state.hidden)
        finite[rows] &= logits.amax(dim=1).isfinite()  # NaN, where there is one in the row
        tokens = draw_tokens(logits, uniforms[rows, step]) if sampling else logits.argmax(dim=1)
        ids[rows, step] = tokens
        just_ended = torch.isin(tokens, eos_ids) & ~ended
        lengths[rows] = lengths[rows].masked_fill(just_ended, step + 1)
        truncated[rows] &= ~just_ended
        ended |= just_ended
        if step + 1 == limit:
            break
        if step % look_every == look_every - 1:
            count = len(rows) - int(ended.sum())
            if count == 0:
                break
            if count < len(rows):
                # The last rows take the places of those that have ended.
                holes = ended[:count].nonzero().squeeze(1)
                movers = (~ended[count:]).nonzero().squeeze(1) + count
                state.keep(count, holes, movers)
                rows[holes], tokens[holes] = rows[movers], tokens[movers]
                rows, tokens = rows[:count], tokens[:count]
                ended = torch.zeros_like(rows, dtype=torch.bool)
        state.step(tokens)
    check_finite(finite, head.weight.dtype)
    return ids[:, : step + 1], lengths, truncated


def check_finite(finite: Tensor, dtype: torch.dtype) -> None:
    """Check that all rows were written by finite logits.

    Args:
        finite: (B,) bool.
        dtype: of the model's weights, for the message.

    Raises:
        NonFiniteError: a row was not.
    """
    if not finite.all():
        raise NonFiniteError(
            f"{int((~finite).sum())} of {len(finite)} texts cannot be written, for logits are not "
            f"finite; check the model's weights and dtype ({str(dtype).removeprefix('torch.')})"
        )


class GeneratingModel(Protocol):
    """What an engine needs of a `LanguageModel`, which calls the engines."""

    rules: GenerationRules
    eos_token_ids: tuple[int, ...]
    pad_token_id: int

    @property
    def model(self) -> PreTrainedModel:
        """The model of transformers."""

    @property
    def device(self) -> torch.device:
        """Where it is."""

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether prompts have an encoder of their own."""

    @property
    def excluded_rows(self) -> Collection[int]:
        """Rows of the head that are never written."""

    def save(self, directory: str) -> None:
        """Write the model's folder."""
