"""Stages: pieces of a run that are made once, kept on disk and used again.

A stage's folder is named by a hash of everything that it depends on: changed inputs make a new
folder, unchanged ones find the finished work. `done.json` is written last.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from brim._version import __version__
from brim.config.loading import config_hash
from brim.errors import RunError
from brim.models import Decoding, LanguageModel, hash_tensors, plain_tensors
from brim.runs.directory import RunDirectory
from brim.support.files import SEAL, disk_errors, read_json, sha256_file, write_sealed_json
from brim.support.json_lines import JsonLines
from brim.support.locks import hold
from brim.support.progress import Meter
from brim.support.seals import find_damage, seal
from brim.training.evaluation import predict_blocks
from brim.training.predictions import EvaluationSettings, Prediction
from brim.types import Example, Target

logger = logging.getLogger(__name__)

INPUTS = "inputs.json"
DONE = "done.json"


@dataclass(frozen=True, slots=True)
class Stage:
    """A folder that holds the finished or unfinished work of a stage.

    Attributes:
        directory: `{root}/{name}-{hash of the inputs}`.
        inputs: everything the work depends on, as plain values; kept in `inputs.json`.
    """

    directory: Path
    inputs: Mapping[str, Any]

    @classmethod
    def open(cls, root: Path, name: str, inputs: Mapping[str, Any]) -> Stage:
        """The stage of these inputs, its folder made if need be."""
        inputs = {"brim": __version__, **inputs}
        stage = cls(root / f"{name}-{config_hash(inputs)[:12]}", inputs)
        if PartialState().is_main_process and not stage.finished:
            with disk_errors(stage.directory):
                stage.directory.mkdir(parents=True, exist_ok=True)
                write_sealed_json(stage.directory / INPUTS, inputs)
        PartialState().wait_for_everyone()
        return stage

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder while the block runs: runs that share stages wait for each other."""
        if not PartialState().is_main_process:
            PartialState().wait_for_everyone()
            yield
            return
        busy = f"{self.directory}: another run is making it; waiting"
        with hold(self.directory / ".lock", busy, wait=True):
            PartialState().wait_for_everyone()
            yield

    @property
    def finished(self) -> bool:
        """Whether the work is complete."""
        return (self.directory / DONE).exists()

    @property
    def fingerprint(self) -> str:
        """Stands for what the stage makes, in the inputs of later ones."""
        return self.directory.name

    @property
    def digest(self) -> str:
        """SHA-256 of `done.json`, which has that of what the stage made; once it is finished."""
        return sha256_file(self.directory / DONE)

    def is_whole(self) -> bool:
        """Whether the work is complete and as it was written; damaged work is opened again."""
        if not self.finished:
            return False
        damage = stage_damage(self.directory)
        PartialState().wait_for_everyone()  # all have looked before anything changes
        if damage is not None and PartialState().is_main_process:
            logger.warning("%s: damaged: %s; making it again", self.directory, damage)
            write_sealed_json(self.directory / INPUTS, self.inputs)
            with disk_errors(self.directory):
                (self.directory / DONE).unlink()
        PartialState().wait_for_everyone()
        return damage is None

    def finish(self, made: str, **facts: Any) -> None:
        """Mark the work as complete; `made` is the file that stands for it."""
        if PartialState().is_main_process:
            seal(self.directory, facts, files=(made, INPUTS), manifest=DONE)
        PartialState().wait_for_everyone()


def stage_damage(directory: Path) -> str | None:
    """What of a finished stage is not as it was written; None where all of it is.

    Of a stage that an older version finished nothing is known: its `inputs.json` has no hash.
    """
    inputs = directory / INPUTS
    try:
        if inputs.exists() and f'"{SEAL}"'.encode() not in inputs.read_bytes()[:64]:
            known = read_json(directory / DONE)
            if isinstance(known, dict) and "files" not in known:
                return None
    except RunError as error:
        return str(error)
    damage = find_damage(directory, manifest=DONE)
    return damage or (find_damage(directory / "best") if (directory / "best").exists() else None)


def check_stage(directory: Path, digest: str | None) -> None:
    """Check that a stage is as it was written, and what a run was begun with.

    Args:
        directory: of the stage.
        digest: `Stage.digest` as the run knows it; None where an older version began it.

    Raises:
        RunError: it is not, or is not finished.
    """
    damage = stage_damage(directory)
    if damage is not None:
        raise RunError(
            f"{directory}: damaged: {damage}; start again the brim train or brim sweep that wrote "
            "it, which makes it again"
        )
    if digest not in (None, sha256_file(directory / DONE)):
        raise RunError(
            f"{directory}: was made again since the run began, to other weights; bring back the "
            "stages folder that the run was begun with"
        )


def update_manifest(out: Path, facts: Mapping[str, Any]) -> None:
    """Add facts to the provenance of a run."""
    if PartialState().is_main_process:
        write_sealed_json(out / "manifest.json", {**RunDirectory(out).manifest(), **facts})


def fingerprint_model(model: LanguageModel) -> str:
    """SHA-256 of a model: its weights' every byte, its configuration, rules and tokenizer."""
    config = json.loads(model.model.config.to_json_string())
    config.pop("transformers_version", None)
    rules = [sorted(model.rules.excluded), model.rules.forced_start, model.rules.forces_end]
    also = json.dumps([config, rules, _describe_tokenizer(model.tokenizer)], sort_keys=True)
    weights = plain_tensors(model.model.state_dict())
    return hash_tensors(weights, also=also, into=hashlib.sha256())


def _describe_tokenizer(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """All that decides about a tokenizer's ids, but for what is set at each call."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
    rules = {key: value for key, value in rules.items() if key not in ("truncation", "padding")}
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return [rules, special, tokenizer.chat_template]


def describe_model(model: LanguageModel) -> dict[str, str]:
    """What a manifest says of a model: `sha256`, its fingerprint, and the `commit` on the hub."""
    commit = getattr(model.model.config, "_commit_hash", None)
    return {"sha256": fingerprint_model(model), **({"commit": commit} if commit else {})}


def write_completions(
    model: LanguageModel,
    examples: Sequence[Example],
    path: Path,
    decoding: Decoding,
    *,
    max_prompt_tokens: int | None,
    meter: Meter,
) -> None:
    """Decode `examples` into a JSONL file, resuming where a stop left it.

    A row has `id`, `text`, and what the student learns: `token_ids`, and whether they are
    `truncated`. The text does not say them: another split into tokens can spell it, bytes of half
    a character cannot be spelled at all, and it does not show whether it ended.
    """
    state, file = PartialState(), JsonLines(path, recorded=True)
    settings = EvaluationSettings(decoding, max_prompt_tokens=max_prompt_tokens)
    block = settings.block * state.num_processes
    if state.is_main_process:
        damage = file.repair()
        if damage is not None:
            logger.warning("%s %s; writing all completions again", path, damage)
        # The rows of an unfinished block are decoded together again, to round as without the stop.
        offsets = file.offsets()
        file.cut(int(offsets[(len(offsets) - 1) // block * block]))
    state.wait_for_everyone()
    done = len(file.offsets()) - 1
    meter.advance(done)
    for part in predict_blocks(model, examples, settings, first=done // block):
        if state.is_main_process:
            file.append(*(_completion(row) for row in part.predictions))
        meter.advance(len(part.predictions))
    state.wait_for_everyone()


def _completion(row: Prediction) -> dict[str, Any]:
    [written] = row.completions
    return {
        "id": row.id,
        "text": written.text,
        "token_ids": written.token_ids,
        "truncated": written.truncated,
    }


class CompletedExamples(Sequence[Example]):
    """Examples whose one reference is what `write_completions` wrote for them.

    Only the position of each line is kept in memory.

    Raises:
        RunError: the file's lines are not those of the examples.
    """

    def __init__(self, examples: Sequence[Example], path: Path) -> None:
        self._examples = examples
        self._file = JsonLines(path)
        self._offsets = self._file.offsets()
        if len(self._offsets) - 1 != len(examples):
            raise RunError(
                f"{path}: {len(self._offsets) - 1} completions for {len(examples)} examples; "
                "delete the stage's folder to write them anew"
            )

    def __len__(self) -> int:
        return len(self._examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        example = self._examples[index]
        row = self._file.row_at(int(self._offsets[range(len(self))[index]]))
        if row["id"] != example.id:
            raise RunError(
                f"{self._file.path}:{index + 1}: holds {row['id']!r} where {example.id!r} is "
                "expected; delete the stage's folder to write it anew"
            )
        target = Target(tuple(row["token_ids"]), row["truncated"])
        return replace(example, references=(row["text"],), target=target)
