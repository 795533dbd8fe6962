"""A run's student in another engine's format, checked by the text that it writes."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module, metadata
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from brim.errors import RunError
from brim.models.encoding import Encoder
from brim.models.loading import load_encoder
from brim.release.formats import FORMATS, FormatName, check_format
from brim.runs.directory import RunDirectory
from brim.runs.inputs import reopen
from brim.support.seals import seal
from brim.training.checkpoints import replace_directory

NUM_PROMPTS = 20


def export(run: Path, to: FormatName, *, quantize: str | None = None) -> tuple[Path, int, int]:
    """Convert a run's best checkpoint, and compare greedy texts with those of transformers.

    The prompts are the first ones of the run's test split, as long as its settings let them be.
    Nothing is left where the texts differ, unless weights are quantized.

    Args:
        run: a run directory.
        to: the format.
        quantize: `int8` (ct2) or `int4` (onnx); None for the weights as they are.

    Returns:
        The folder, how many texts are the same, and of how many.

    Raises:
        ConfigError: the extra is missing, or the format does not hold such a model.
        ModelError: the converter refuses the model.
        RunError: the run has no best checkpoint, or a text differs.
    """
    check_format(run, to, quantize)
    best, engine = run / "best", import_module(f"brim.release.{to}")
    inputs = reopen(run)
    decoding = inputs.config.decoding
    encoder = load_encoder(best)
    examples = inputs.examples(inputs.task.splits()[2])[:NUM_PROMPTS]
    prompts, _ = encoder.prompts(examples, decoding.max_prompt_tokens)
    expected = _write(best, encoder, prompts, decoding.max_tokens)
    folder = run / "export" / (to if quantize is None else f"{to}-{quantize}")
    same = 0

    def convert(place: Path) -> None:
        nonlocal same
        engine.convert(best, place, quantize)
        rows = engine.write(
            place,
            prompts,
            encoder,
            decoding.max_tokens,
        )
        pairs = zip(encoder.texts(expected), encoder.texts(rows), strict=True)
        same = sum(ours == theirs for ours, theirs in pairs)
        if same < len(prompts) and quantize is None:
            raise RunError(
                f"{folder}: {len(prompts) - same} of {len(prompts)} greedy texts differ from those "
                "by transformers; nothing was written"
            )
        package = FORMATS[to].packages[0].replace("_", "-")
        seal(
            place,
            {
                "model": RunDirectory(run).results(RunDirectory(run).tests()[0]).facts.get("model"),
                "converter": f"{package} {metadata.version(package)}",
                "same_texts": same,
                "num_texts": len(prompts),
            },
        )

    replace_directory(folder, convert, num_bytes=(best / "config.json").stat().st_size)
    return folder, same, len(prompts)


@torch.no_grad()
def _write(
    best: Path, encoder: Encoder, prompts: Sequence[Sequence[int]], max_tokens: int
) -> list[list[int]]:
    """Greedy completions by transformers alone, one prompt at a time."""
    auto = AutoModelForSeq2SeqLM if encoder.is_encoder_decoder else AutoModelForCausalLM
    model = auto.from_pretrained(best, dtype=torch.float32, trust_remote_code=False)
    rows = []
    for ids in prompts:
        tokens = torch.tensor([list(ids)])
        written = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=max_tokens,
            do_sample=False,
            num_beams=1,
        )
        rows.append(written[0, 0 if encoder.is_encoder_decoder else len(ids) :].tolist())
    return rows
