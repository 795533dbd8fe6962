"""Writing by transformers' own `generate`, which has beams and more kinds of models."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
)

from brim.models.cache import encoder_decoder_cache
from brim.models.decoding import GeneratingModel, Written, check_finite
from brim.models.generation_settings import settings_aside
from brim.models.head_checks import start_token_id
from brim.models.settings import BeamSearch, Decoding
from brim.seeding import derive_seed
from brim.types import Batch


@torch.no_grad()
def generate_with_transformers(model: GeneratingModel, batch: Batch, decoding: Decoding) -> Written:
    """Write a completion of each prompt by `model.generate` of transformers.

    Only what `decoding` says counts, and of the model's own generation settings its `rules` and
    which tokens end a text. Samples are drawn from torch's global generator, seeded with all of
    `batch.seeds` for this call and restored after it. So other than in the loop, a row's text
    depends on the rows that are decoded with it.

    Args:
        model: in evaluation mode.
        batch: B prompts.
        decoding: the strategy and the limit, of the tokens that the model chooses.

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
        written, cache = 1 + len(rules.forced_start), {"past_key_values": own}
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
