"""Text by a run's student for prompts of one's own."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from brim.errors import DataError
from brim.examples import Example
from brim.models import Decoding, load_model
from brim.runs.directory import RunDirectory
from brim.seeding import derive_seed
from brim.training.accelerator import make_accelerator


def generate(
    source: Path | str,
    prompts: Sequence[str],
    *,
    decoding: Decoding,
    seed: int = 0,
    block: int = 32,
) -> Iterator[str]:
    """Complete prompts, in order, as batches get done.

    Args:
        source: a run directory, whose best checkpoint writes, or a model's folder or hub name.
        prompts: rendered prompts.
        decoding: how to write.
        seed: of the sampling.
        block: prompts that are completed before the first of them is given out.

    Raises:
        RunError: the run has no best checkpoint, or a damaged one.
    """
    run = Path(source)
    if (run / "config.yaml").exists():
        RunDirectory(run).check_best()
    model = load_model(run / "best" if (run / "best").exists() else source)
    model = model.to(make_accelerator().device)
    for start in range(0, len(prompts), block):
        rows = range(start, min(start + block, len(prompts)))
        batch = model.encode(
            [Example(id=str(i), prompt=prompts[i]) for i in rows],
            max_tokens=None,
            seeds=[derive_seed(seed, "generate", i) for i in rows],
        )
        yield from model.decode(model.generate(batch.to(model.device), decoding))


_ESCAPE = re.compile(r"\\([n\\])")


def read_prompts(path: Path | None) -> list[str]:
    r"""Prompts of a text file or of standard input, one a line; `\n` is a line break, `\\` a `\`.

    Raises:
        DataError: the file cannot be read, is not UTF-8, or holds an empty line.
    """
    where = path or "standard input"
    try:
        raw = sys.stdin.buffer.read() if path is None else path.read_bytes()
        text = raw.decode("utf-8-sig").removesuffix("\n")
    except OSError as error:
        raise DataError(f"{where}: {error.strerror}; check the path") from None
    except UnicodeDecodeError:
        raise DataError(f"{where}: is not UTF-8 text; convert it first") from None
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise DataError(f"{where}:{number}: empty prompt; write one prompt a line")
    return [_ESCAPE.sub(lambda match: "\n" if match[1] == "n" else "\\", line) for line in lines]


def escape_line(text: str) -> str:
    r"""A text on one line, as `read_prompts` reads it back."""
    return text.replace("\\", "\\\\").replace("\n", "\\n")
