"""What a run is given in memory, as files of its directory: the run is whole without the session.

Rows are `inputs/SPLIT.jsonl`, models folders as `save_pretrained` writes them, such as
`inputs/teacher`. A run that has begun keeps what it began with: other rows or weights are refused.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from brim.errors import DataError, ModelError, RunError, first_line
from brim.models import LanguageModel
from brim.models.loading import fingerprint_parts
from brim.support.files import atomic_write_jsonl, disk_errors, hold, read_json, sha256_file
from brim.support.seals import MANIFEST, find_damage, is_sealed, seal
from brim.training.accelerator import this_process
from brim.training.checkpoints import replace_directory


class Kept:
    """Keeps rows and models in `out/inputs`.

    Args:
        out: the run directory.
        tokenizer: of models that come without their own.
        weights: false to keep of a model what its shapes are known by, for a plan.
    """

    def __init__(
        self, out: Path, tokenizer: PreTrainedTokenizerBase | None = None, *, weights: bool = True
    ) -> None:
        # Settings name it, and a run is resumed from whatever folder.
        self.out = out.absolute()
        self.folder, self._tokenizer, self._weights = self.out / "inputs", tokenizer, weights

    def rows(self, split: str, rows: Iterable[Any]) -> Path:
        """Write rows as JSON lines, or find them written.

        Raises:
            DataError: there are none, or one is no mapping of what JSON has.
            RunError: the run began with others.
        """
        path, new = self.folder / f"{split}.jsonl", self.folder / f".{split}.jsonl"
        with self._alone() as main:
            if main:
                try:
                    atomic_write_jsonl(new, _checked(split, rows))
                    if not path.exists() or sha256_file(new) != sha256_file(path):
                        self._check_new(path, f"other rows of task.{split}")
                        new.replace(path)
                finally:
                    new.unlink(missing_ok=True)
        return path

    def model(self, name: str, model: Any) -> Path:
        """Save a model with its tokenizer, or find it saved; it is not changed.

        Raises:
            ModelError: it is no language model of transformers, has no tokenizer, or cannot be
                saved.
            RunError: the run began with another.
        """
        own, tokenizer = model if isinstance(model, tuple) and len(model) == 2 else (model, None)
        if isinstance(own, LanguageModel):
            own, tokenizer = own.model, tokenizer or own.tokenizer
        tokenizer = tokenizer or self._tokenizer
        if not isinstance(own, PreTrainedModel):
            raise ModelError(
                f"{name}: {type(own).__name__} is no model of transformers; give a PreTrainedModel "
                "(of adapters, model.merge_and_unload()), a LanguageModel, a path or a hub name"
            )
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise ModelError(
                f"{name}: a model in memory needs its tokenizer; give (model, tokenizer), or "
                "tokenizer="
            )
        path = self.folder / name
        if not self._weights:
            copy.deepcopy(own.config).save_pretrained(path)
            tokenizer.save_pretrained(path)
            return path
        rules = getattr(own, "generation_config", None)
        said = {} if rules is None else json.loads(rules.to_json_string())
        said.pop("transformers_version", None)
        digest = fingerprint_parts(own, tokenizer, said)
        with self._alone() as main:
            known = read_json(path / MANIFEST) if is_sealed(path) else {}
            same = known.get("given") == digest
            if main and not (same and find_damage(path) is None):
                if not same:
                    self._check_new(path, f"another {name}")

                def write(folder: Path) -> None:
                    _save(name, model, own, tokenizer, folder)
                    seal(folder, {"given": digest})

                replace_directory(path, write, own.get_memory_footprint())
        return path

    @contextmanager
    def removed_unless_begun(self) -> Iterator[None]:
        """Remove what was kept where the block fails before a run has begun."""
        new = next((path for path in (self.out, self.folder) if not path.exists()), None)
        try:
            yield
        except BaseException:
            if new is not None and not (self.out / "config.yaml").exists():
                shutil.rmtree(new, ignore_errors=True)
            raise

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Whether this process writes; the others go on when it has."""
        process = this_process()
        if process.is_main_process:
            busy = f"{self.out}: another process is writing its inputs; wait or stop it"
            with disk_errors(self.folder), hold(self.folder / ".lock", busy):
                yield True
        else:
            yield False
        process.wait_for_everyone()

    def _check_new(self, path: Path, what: str) -> None:
        if (self.out / MANIFEST).exists():
            raise RunError(
                f"{self.out}: holds a run that began with {what} ({path}); choose another out"
            )


def _checked(split: str, rows: Iterable[Any]) -> Iterator[Mapping[str, Any]]:
    number = -1
    for number, row in enumerate(rows):
        place = f"task.{split}[{number}]"
        if not isinstance(row, Mapping):
            raise DataError(
                f"{place}: {type(row).__name__} is no row; give dicts of columns, or a Dataset"
            )
        try:
            json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{place}: is no JSON ({first_line(error)}); leave that column out"
            ) from None
        yield row
    if number < 0:
        raise DataError(f"task.{split}: no rows; give some")


def _save(
    name: str, given: Any, own: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    if isinstance(given, LanguageModel):
        given.save(folder)
        return
    # Saving writes into the configurations, and what is the user's stays as it is.
    twin = copy.copy(own)
    twin.config = copy.deepcopy(own.config)
    if getattr(own, "generation_config", None) is not None:
        twin.generation_config = copy.deepcopy(own.generation_config)
    try:
        twin.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except (TypeError, ValueError, NotImplementedError, AttributeError) as error:
        raise ModelError(
            f"{name}: cannot be saved ({first_line(error)}); give its folder or hub name"
        ) from error
