"""Partial results: the predictions of an evaluation on the disk while the rest is being written."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState

from brim.support.files import atomic_write_jsonl
from brim.support.json_lines import JsonLines
from brim.training.accelerator import hold_together
from brim.training.predictions import Block, Prediction

logger = logging.getLogger(__name__)


class PartialResults:
    """The finished blocks of an evaluation on the disk, from which a stopped one resumes.

    The first row is what the evaluation depends on, then comes a row a block. The main process
    writes the file, all of them read it.

    Args:
        path: the file; its folder is made if need be.
        inputs: all that the predictions depend on, as values that JSON has. A file of other inputs
            is begun anew.
    """

    def __init__(self, path: Path, inputs: Mapping[str, Any]) -> None:
        self.path = path
        self._rows = JsonLines(path, recorded=True)
        self._inputs: dict[str, Any] = json.loads(json.dumps(inputs))

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the file while the block runs, ready to resume.

        Raises:
            RunError: another process holds it, or the folder cannot be written.
            KeyboardInterrupt: says that nothing is lost.
        """
        busy = (
            f"{self.path.parent}: another process is writing these predictions; wait, stop it, or "
            "choose another --out"
        )
        try:
            with hold_together(self.path.with_suffix(".lock"), busy, prepare=self._repair):
                yield
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                "stopped; what was finished is kept, and the same command goes on"
            ) from None

    def blocks(self) -> Iterator[Block]:
        """Yield the finished blocks, in order."""
        rows: Iterator[dict[str, Any]] = self._rows.rows()
        next(rows)
        for row in rows:
            predictions = tuple(map(Prediction.from_dict, row["predictions"]))
            yield Block(predictions, row["num_truncated_prompts"])

    def append(self, block: Block) -> None:
        """Keep one more block; it is on the disk when this returns.

        Raises:
            RunError: the file cannot be written.
            ValueError: a number that is not finite, which JSON does not have.
        """
        if PartialState().is_main_process:
            predictions = [prediction.as_dict() for prediction in block.predictions]
            number = block.num_truncated_prompts
            self._rows.append({"num_truncated_prompts": number, "predictions": predictions})

    def publish(self, path: Path) -> None:
        """Write all predictions to `path`, one a line, durably and as a whole."""
        rows = (prediction.as_dict() for block in self.blocks() for prediction in block.predictions)
        atomic_write_jsonl(path, rows)

    def remove(self) -> None:
        """Delete the blocks, once all is published."""
        PartialState().wait_for_everyone()
        if PartialState().is_main_process:
            self._rows.remove()

    def _repair(self) -> None:
        """Cut off what a stop left unfinished; begin anew where inputs changed, or on damage."""
        damage = self._rows.repair()
        if damage is not None:
            logger.warning("%s %s; thrown away", self.path, damage)
        known = next(self._rows.rows(), None)
        if known == self._inputs:
            return
        if known is not None:
            changed = {**known, **self._inputs}
            names = [key for key in changed if known.get(key) != self._inputs.get(key)]
            logger.warning(
                "%s: of an evaluation with another %s; thrown away", self.path, ", ".join(names)
            )
        self._rows.cut(0)
        self._rows.append(self._inputs)
