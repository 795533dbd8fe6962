"""The predictions of an evaluation on the disk while the rest is being written."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState

from brim.support.files import atomic_write_jsonl, read_jsonl
from brim.support.locks import hold
from brim.support.seals import RecordedFile
from brim.training.predictions import Block, Prediction

logger = logging.getLogger(__name__)


class Journal:
    """The finished blocks of an evaluation on the disk, from which a stopped one goes on.

    A file of JSON lines: first what the evaluation depends on, then a line a block. The main
    process writes it, all of them read it.

    Args:
        path: the file; its folder is made if need be.
        inputs: all that the predictions depend on, as values that JSON has. A file of other inputs
            is begun anew.
    """

    def __init__(self, path: Path, inputs: Mapping[str, Any]) -> None:
        self.path = path
        self._file = RecordedFile(path)
        self._inputs: dict[str, Any] = json.loads(json.dumps(inputs))

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the file while the block runs, ready to go on.

        Raises:
            RunError: another process holds it, or the folder cannot be written.
        """
        if not PartialState().is_main_process:
            PartialState().wait_for_everyone()
            yield
            return
        busy = (
            f"{self.path.parent}: another process is writing these predictions; wait, stop it, or "
            "choose another --out"
        )
        with hold(self.path.with_suffix(".lock"), busy):
            self._mend()
            PartialState().wait_for_everyone()
            yield

    def blocks(self) -> Iterator[Block]:
        """The finished blocks, in order."""
        lines = read_jsonl(self.path)
        next(lines)
        for line in lines:
            predictions = tuple(Prediction.from_dict(row) for row in line["predictions"])
            yield Block(predictions, line["num_truncated_prompts"])

    def append(self, block: Block) -> None:
        """Keep one more block; it is on the disk when this returns.

        Raises:
            RunError: the file cannot be written.
            ValueError: a number that is not finite, which JSON does not have.
        """
        if not PartialState().is_main_process:
            return
        line = {
            "num_truncated_prompts": block.num_truncated_prompts,
            "predictions": [prediction.as_dict() for prediction in block.predictions],
        }
        text = json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"
        self._file.append(text.encode())

    def publish(self, path: Path) -> None:
        """Write all predictions to `path`, one a line, durably and as a whole."""
        rows = (prediction.as_dict() for block in self.blocks() for prediction in block.predictions)
        atomic_write_jsonl(path, rows)

    def remove(self) -> None:
        """Forget the blocks, once nobody needs them."""
        PartialState().wait_for_everyone()
        if PartialState().is_main_process:
            self._file.remove()

    def _mend(self) -> None:
        """Cut off what a stop left unfinished; begin anew where inputs changed, or on damage."""
        damage = self._file.mend()
        if damage is not None:
            logger.warning("%s %s; thrown away", self.path, damage)
        known = next(read_jsonl(self.path), None)
        if known == self._inputs:
            return
        if known is not None:
            changed = {**known, **self._inputs}
            names = [key for key in changed if known.get(key) != self._inputs.get(key)]
            logger.warning(
                "%s: of an evaluation with another %s; thrown away", self.path, ", ".join(names)
            )
        self._file.cut(0)
        self._file.append(json.dumps(self._inputs, ensure_ascii=False).encode() + b"\n")
