"""Writing completions, each row from its own stream of random numbers.

Or by transformers' own `generate`, which has beams and more kinds of models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
)

from brim.errors import NonFiniteError
from brim.models.backbone import DecodingState, cache_name, encoder_decoder_cache
from brim.models.generation_settings import GenerationRules, settings_aside
from brim.models.head import OutputHead
from brim.models.head_checks import start_token_id
from brim.models.settings import BeamSearch, Decoding
from brim.seeding import derive_seed
from brim.support.bucketing import length_buckets
from brim.types import Batch, Rollout

Written = tuple[Tensor, Tensor, Tensor]
"""Completions: ids (B, T) int64, arbitrary behind a row's length; lengths (B,) int64, EOS included;
and truncated (B,) bool."""

# Tokens between two looks at which rows have ended, on devices that the host does not wait for.
LOOK_EVERY = 8


OnFinished = Callable[[list[int], Rollout], None]
"""Called with n of the B rows, as soon as they have ended, and the rollout of these."""

Hand = Callable[[Tensor, Tensor, Tensor, Tensor], None]
"""Called with places of a group, (n,), and their completions as `Written` has them."""


def write_in_groups(
    write: Callable[[Batch, Decoding, Hand], Written],
    batch: Batch,
    decoding: Decoding,
    pad_id: int,
    on_finished: OnFinished | None = None,
) -> Rollout:
    """Write a completion of each of B prompts, those of similar length together.

    `write` is an engine's writing of some rows, of which a group keeps `decoding.batch_tokens`. It
    hands on what has ended before the others; the rest of a group is handed on behind it.
    """
    device = batch.prompt_ids.device
    limit = max(1, decoding.batch_tokens // decoding.texts_per_row)
    groups = [list(range(len(batch)))]
    if decoding.engine != "vllm":  # which has a schedule of its own
        prompts, texts = batch.prompt_mask.sum(dim=1), [decoding.max_tokens] * len(batch)
        # One more pass costs as many steps as the longest completion: hardly ever worth it.
        groups = length_buckets(prompts.tolist(), texts, limit, overhead=limit)
    ids = torch.empty(len(batch), decoding.max_tokens, dtype=torch.long, device=device)
    lengths = torch.empty(len(batch), dtype=torch.long, device=device)
    truncated = torch.empty(len(batch), dtype=torch.bool, device=device)
    for rows in groups:
        left = dict.fromkeys(range(len(rows)))  # not handed on yet

        def hand(
            places: Tensor,
            ids: Tensor,
            lengths: Tensor,
            truncated: Tensor,
            rows: list[int] = rows,
            left: dict[int, None] = left,
        ) -> None:
            if on_finished is None or not len(places):
                return
            chosen = [rows[place] for place in places.tolist()]
            on_finished(chosen, _rollout(batch.select(chosen), ids, lengths, truncated, pad_id))
            for place in places.tolist():
                del left[place]

        written, some_lengths, cut = write(batch.select(rows), decoding, hand)
        rest = torch.tensor(list(left), dtype=torch.long, device=device)
        hand(rest, written[rest], some_lengths[rest], cut[rest])
        ids[rows, : written.shape[1]] = written
        lengths[rows], truncated[rows] = some_lengths, cut
    return _rollout(batch, ids, lengths, truncated, pad_id)


def _rollout(batch: Batch, ids: Tensor, lengths: Tensor, truncated: Tensor, pad_id: int) -> Rollout:
    """The completions as long as the longest of them."""
    longest = int(lengths.max())
    mask = torch.arange(longest, device=ids.device) < lengths[:, None]
    return Rollout(batch, ids[:, :longest].masked_fill(~mask, pad_id), mask, truncated)


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
    hand: Hand | None = None,
) -> Written:
    """Advance `state` until every row has ended or reached the limit.

    A row that has ended leaves the batch at the next look. What it writes until then is ignored.

    Args:
        state: B rows, ready to predict their first token.
        head: the output head.
        uniforms: (B, max_tokens), see `row_uniforms`.
        decoding: the strategy and the limit.
        eos_ids: (E,) int64, the tokens that end a completion.
        look_every: tokens between two looks at which rows have ended; by default 1 on a CPU and
            `LOOK_EVERY` elsewhere, for looking makes the host wait for the device.
        hand: called with the rows that leave the batch, but for the last ones.

    Raises:
        NonFiniteError: logits are not finite, and what they would write is arbitrary.
    """
    num_rows, limit = uniforms.shape
    device = uniforms.device
    sampling = decoding.strategy == "sampling"
    dtype, head = head.weight.dtype, head.cast()
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
                if hand is not None:
                    left = rows[ended]
                    hand(left, ids[left, : step + 1], lengths[left], truncated[left])
                # The last rows take the places of those that have ended.
                holes = ended[:count].nonzero().squeeze(1)
                movers = (~ended[count:]).nonzero().squeeze(1) + count
                state.keep(count, holes, movers)
                rows[holes], tokens[holes] = rows[movers], tokens[movers]
                rows, tokens = rows[:count], tokens[:count]
                ended = torch.zeros_like(rows, dtype=torch.bool)
        state.step(tokens)
    check_finite(finite, dtype)
    return ids[:, : step + 1], lengths, truncated


def check_finite(finite: Tensor, dtype: torch.dtype) -> None:
    """Check that all (B,) rows were written by finite logits; `dtype` is that of the weights.

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

    model: PreTrainedModel
    rules: GenerationRules
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    is_encoder_decoder: bool

    @property
    def excluded_rows(self) -> Collection[int]:
        """Rows of the head that are never written."""

    def uncompiled(self) -> AbstractContextManager[None]:
        """The layers as they are written while the block runs."""


@torch.no_grad()
def generate_with_transformers(model: GeneratingModel, batch: Batch, decoding: Decoding) -> Written:
    """Write a completion of each prompt by `generate` of transformers; a model in evaluation mode.

    Only what `decoding` says counts, and of the model's own generation settings its `rules` and
    which tokens end a text. Samples are drawn from torch's global generator, seeded with all of
    `batch.seeds` for this call and restored after it. So other than in the loop, a row's text
    depends on the rows that are decoded with it.

    Raises:
        NonFiniteError: as `write_completions`.
    """
    transformer, rules = model.model, model.rules
    device = transformer.device
    settings = GenerationConfig(
        max_new_tokens=decoding.max_tokens + rules.num_forced,
        forced_bos_token_id=rules.forced_start[0] if rules.forced_start else None,
        forced_eos_token_id=model.eos_token_ids[0] if rules.forces_end else None,
        # Before what is forced, other than `suppress_tokens`; ends as well, other than bad words.
        sequence_bias={(row,): -math.inf for row in model.excluded_rows} or None,
        eos_token_id=list(model.eos_token_ids),
        pad_token_id=model.pad_token_id,
        **_strategy(decoding),
    )
    some = batch.prompt_mask.any(dim=0)  # not the padding that all rows share
    prompt_ids, prompt_mask = batch.prompt_ids[:, some], batch.prompt_mask[:, some]
    written, cache = prompt_ids.shape[1], {}
    if model.is_encoder_decoder:
        settings.decoder_start_token_id = start_token_id(transformer)
        # By itself it would make one as deep as a T5's encoder, whatever the decoder is.
        config = transformer.get_decoder().config
        own = encoder_decoder_cache(config, decoding.max_tokens + rules.num_forced)
        if decoding.texts_per_row > 1:
            own = _BeamCache(DynamicCache(config=config), DynamicCache())
        written = 1 + len(rules.forced_start)
        cache = {cache_name(transformer.get_decoder()): own}
    devices = [device] if device.type == "cuda" else []
    # With the model's own settings `generate` would fill what is left out.
    with settings_aside(transformer), torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive_seed(0, "generate", *batch.seeds))
        sequences = transformer.generate(
            prompt_ids.to(device),
            attention_mask=prompt_mask.to(device).long(),
            generation_config=settings,
            logits_processor=LogitsProcessorList([_CheckFinite(transformer.dtype)]),
            synced_gpus=False,  # sharded weights are gathered once for the whole of it
            **cache,
        )
    ids = sequences[:, written : written + decoding.max_tokens]
    ends = torch.isin(ids, torch.tensor(model.eos_token_ids, device=device))
    truncated = ~ends.any(dim=1)
    lengths = torch.where(truncated, ids.shape[1], ends.int().argmax(dim=1) + 1)
    return ids, lengths, truncated


def _strategy(decoding: Decoding) -> dict[str, bool | float | str]:
    """The arguments of transformers; one that is left out is off."""
    if isinstance(decoding, BeamSearch) and decoding.num_beams > 1:
        return {
            "do_sample": False,
            "num_beams": decoding.num_beams,
            "length_penalty": decoding.length_penalty,
            # Go on while a longer text could still win, not while it seems likely to.
            "early_stopping": "never",
            # Texts are compared by the policy's probabilities: over the rows that have a token.
            "renormalize_logits": True,
        }
    if decoding.strategy != "sampling":
        return {"do_sample": False}
    # Its own default of top_k is 50.
    return {
        "do_sample": True,
        "temperature": decoding.temperature,
        "top_k": decoding.top_k or 0,
        "top_p": 1.0 if decoding.top_p is None else decoding.top_p,
    }


class _CheckFinite(LogitsProcessor):  # type: ignore[misc]
    """Write nothing by logits that are not finite."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        check_finite(scores.amax(dim=1).isfinite(), self.dtype)
        return scores


class _BeamCache(EncoderDecoderCache):  # type: ignore[misc]
    """Of an encoder-decoder's beams; those of a prompt share what the encoder made of it."""

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Make row i of the batch what row `beam_idx[i]` is, one of the same prompt."""
        self.self_attention_cache.reorder_cache(beam_idx)
