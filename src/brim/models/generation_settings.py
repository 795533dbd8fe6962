"""The generation settings of a model (`generation_config.json`) that are part of it.

Some say what the model can write at all: tokens that it never writes, the one that it always begins
with. They are followed wherever text is written or scored. How a text is chosen, `Decoding` says.
What neither of them says is not followed: `ignored_settings` names it, and it is not saved.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

from brim.errors import ModelError

# What `Decoding` replaces, or what changes no token: special tokens, caches, outputs, speed.
_REPLACED = {
    *("max_length", "max_new_tokens", "do_sample", "temperature", "top_k", "top_p"),
    *("num_beams", "length_penalty", "early_stopping", "num_return_sequences"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"),
    *("renormalize_logits", "remove_invalid_values", "use_cache", "cache_implementation"),
    *("cache_config", "max_cache_len", "return_legacy_cache", "low_memory"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
    *("return_dict_in_generate", "compile_config", "disable_compile", "prefill_chunk_size"),
    *("continuous_batching_config", "is_assistant", "num_assistant_tokens", "use_mtp"),
    *("num_assistant_tokens_schedule", "assistant_confidence_threshold", "speculation_type"),
    *("prompt_lookup_num_tokens", "max_matching_ngram_size", "assistant_early_exit"),
    *("assistant_lookbehind", "target_lookbehind", "assistant_ensemble_weight"),
    "transformers_version",
}

# Followed, all of them or in part (see `ignored_settings`).
_FOLLOWED = {"bad_words_ids", "suppress_tokens", "forced_bos_token_id", "forced_eos_token_id"}

# Values that switch a setting off, beside those that are false.
_OFF = {
    "repetition_penalty": 1,
    "encoder_repetition_penalty": 1,
    "guidance_scale": 1,
    "typical_p": 1,
    "num_beam_groups": 1,
}


@dataclass(frozen=True, slots=True)
class GenerationRules:
    """What a model's generation settings say of its text.

    Attributes:
        excluded: tokens that are never written: single tokens of `bad_words_ids`, and
            `suppress_tokens`.
        forced_start: the tokens between the decoder's start token and the first that is chosen:
            `forced_bos_token_id` of an encoder-decoder, or none.
        forces_end: whether the last token at the length limit is an end that was not chosen:
            `forced_eos_token_id`.
    """

    excluded: frozenset[int] = frozenset()
    forced_start: tuple[int, ...] = ()
    forces_end: bool = False

    @property
    def num_forced(self) -> int:
        """Tokens of a completion at its length limit that the model does not choose."""
        return len(self.forced_start) + self.forces_end

    def num_chosen(self, max_tokens: int) -> int:
        """Tokens that the model chooses, at most, of a completion of `max_tokens`.

        As `max_new_tokens` of transformers, the limit counts what is forced.

        Raises:
            ModelError: none are left.
        """
        if max_tokens <= self.num_forced:
            raise ModelError(
                f"max_tokens {max_tokens}: the model's generation settings force "
                f"{self.num_forced} tokens (forced_bos_token_id, forced_eos_token_id), so that "
                "none is left to choose; raise it"
            )
        return max_tokens - self.num_forced


def generation_rules(model: PreTrainedModel, eos_token_ids: Sequence[int]) -> GenerationRules:
    """The rules of a model; the first of the `eos_token_ids` is appended to targets.

    Raises:
        ModelError: the token that ends every target is one that is never written.
    """
    return rules_of(
        model.generation_config, eos_token_ids, is_encoder_decoder=model.config.is_encoder_decoder
    )


def rules_of(
    settings: GenerationConfig | None, eos_token_ids: Sequence[int], *, is_encoder_decoder: bool
) -> GenerationRules:
    """The rules that generation settings make for a kind of model; raises as `generation_rules`."""
    if settings is None:
        return GenerationRules()
    suppressed = settings.suppress_tokens or []
    # As transformers reads it, an end token is no bad word.
    bad = [ids[0] for ids in settings.bad_words_ids or [] if len(ids) == 1]
    excluded = frozenset(suppressed) | (frozenset(bad) - frozenset(eos_token_ids))
    if eos_token_ids[0] in excluded:
        raise ModelError(
            f"suppress_tokens of the generation settings excludes token {eos_token_ids[0]}, which "
            "ends a text, so that none could end; remove it from generation_config.json"
        )
    start = settings.forced_bos_token_id if is_encoder_decoder else None
    return GenerationRules(
        excluded, () if start is None else (start,), settings.forced_eos_token_id is not None
    )


def exclude_tokens(
    model: PreTrainedModel, tokens: Iterable[int], eos_token_ids: Sequence[int]
) -> None:
    """Write into a model's generation settings that it never writes these tokens, too."""
    settings = model.generation_config
    if settings is None:
        settings = model.generation_config = GenerationConfig.from_model_config(model.config)
    new = set(tokens) - generation_rules(model, eos_token_ids).excluded
    # transformers takes an end for no bad word, and refuses to suppress what is forced.
    words = [[token] for token in sorted(new - set(eos_token_ids))]
    ends = sorted(new & set(eos_token_ids))
    settings.bad_words_ids = [*(settings.bad_words_ids or []), *words] or None
    settings.suppress_tokens = [*(settings.suppress_tokens or []), *ends] or None


@contextmanager
def settings_aside(model: PreTrainedModel) -> Iterator[None]:
    """Give the model default generation settings while the block runs."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def ignored_settings(model: PreTrainedModel) -> list[str]:
    """What would change the text of transformers' `generate` and is not followed, `key=value`."""
    return [f"{name}={_short(value)}" for name, value in sorted(_ignored(model).items())]


def followed_settings(model: PreTrainedModel) -> dict[str, Any]:
    """The model's generation settings as JSON has them, without what `ignored_settings` names."""
    settings, ignored = model.generation_config, _ignored(model)
    if settings is None:
        return {}
    known = json.loads(settings.to_json_string(ignore_metadata=True))
    kept = {name: value for name, value in known.items() if name not in ignored}
    words = [ids for ids in settings.bad_words_ids or [] if len(ids) == 1]
    return {**kept, "bad_words_ids": words} if words else kept


def _ignored(model: PreTrainedModel) -> dict[str, Any]:
    settings = model.generation_config
    if settings is None:
        return {}
    ignored: dict[str, Any] = {
        name: value
        for name, value in vars(settings).items()
        if not name.startswith("_") and name not in _REPLACED | _FOLLOWED
        if value and value != _OFF.get(name)
    }
    phrases = [ids for ids in settings.bad_words_ids or [] if len(ids) > 1]
    if phrases:
        ignored["bad_words_ids"] = phrases
    if not model.config.is_encoder_decoder and settings.forced_bos_token_id is not None:
        ignored["forced_bos_token_id"] = settings.forced_bos_token_id
    return ignored


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
