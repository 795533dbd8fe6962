"""CTranslate2: a folder with weights, vocabulary and a tokenizer for transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import ctranslate2
from ctranslate2.converters import TransformersConverter

from brim.errors import ModelError, first_line
from brim.models.encoding import Encoder
from brim.release.files import TEMPLATES, TOKENIZER


def convert(best: Path, out: Path, quantize: str | None) -> None:
    """Convert a folder of transformers' into the empty folder `out`.

    Raises:
        ModelError: there is no conversion of this model.
    """
    copied = [name for name in TOKENIZER if (best / name).exists()]
    try:
        TransformersConverter(str(best), copy_files=copied).convert(
            str(out), quantization=quantize, force=True
        )
    except Exception as error:  # of many kinds, for families and rotations that it does not know
        raise ModelError(f"{best}: CTranslate2 cannot convert it: {first_line(error)}") from error
    if (best / TEMPLATES).is_dir():
        shutil.copytree(best / TEMPLATES, out / TEMPLATES)
    # Its reader takes no null for a token, which is what a tokenizer without BOS gives.
    path = out / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    texts = {
        key: "" if value is None and key.endswith("_token") else value
        for key, value in config.items()
    }
    path.write_text(json.dumps(texts, indent=2) + "\n", encoding="utf-8")


def write(
    folder: Path, prompts: Sequence[Sequence[int]], encoder: Encoder, max_tokens: int
) -> list[list[int]]:
    """Return the ids of greedy completions of prompt ids."""
    tokenizer, end = encoder.tokenizer, list(encoder.eos_token_ids)
    rows = [tokenizer.convert_ids_to_tokens(list(ids)) for ids in prompts]
    if encoder.is_encoder_decoder:
        found = ctranslate2.Translator(str(folder)).translate_batch(
            rows,
            beam_size=1,
            max_input_length=0,
            max_decoding_length=max_tokens,
            end_token=end,
        )
        return [tokenizer.convert_tokens_to_ids(one.hypotheses[0]) for one in found]
    found = ctranslate2.Generator(str(folder)).generate_batch(
        rows,
        # Beside a prompt of one token it would return the ends of longer ones, too.
        max_batch_size=1,
        sampling_topk=1,
        max_length=max_tokens,
        include_prompt_in_result=False,
        end_token=end,
    )
    return [list(one.sequences_ids[0]) for one in found]
