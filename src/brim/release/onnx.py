"""ONNX Runtime GenAI: an ONNX graph of a decoder-only model, its settings and its tokenizer."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import onnxruntime_genai

from brim.errors import ModelError
from brim.models.encoding import Encoder


def convert(best: Path, out: Path, quantize: str | None) -> None:
    """Convert a folder of transformers' into the empty folder `out`.

    Raises:
        ModelError: the converter ends with an error, such as for an unknown family.
    """
    cache = out / ".cache"
    words = ["-m", "onnxruntime_genai.models.builder", "-i", best, "-o", out, "-c", cache,
             "-p", quantize or "fp32", "-e", "cpu"]  # fmt: skip
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True)
    shutil.rmtree(cache, ignore_errors=True)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ModelError(f"{best}: ONNX Runtime GenAI cannot convert it: {why}")


def write(
    folder: Path, prompts: Sequence[Sequence[int]], encoder: Encoder, max_tokens: int
) -> list[list[int]]:
    """Return the ids of greedy completions of prompt ids; ends are those in its own settings."""
    model, rows = onnxruntime_genai.Model(str(folder)), []
    for ids in prompts:
        limits = onnxruntime_genai.GeneratorParams(model)
        limits.set_search_options(do_sample=False, max_length=len(ids) + max_tokens)
        generator = onnxruntime_genai.Generator(model, limits)
        generator.append_tokens(list(ids))
        row: list[int] = []
        while not generator.is_done():
            generator.generate_next_token()
            row.append(int(generator.get_next_tokens()[0]))
        rows.append(row)
    return rows
