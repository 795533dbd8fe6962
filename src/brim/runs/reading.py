"""What runs and evaluations left in a directory: provenance, settings, logs, scores, texts.

Everything that looks at a finished run reads it here, without torch, and compared with its hashes.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brim.config.yaml import parse
from brim.errors import BrimError, RunError
from brim.metrics import Score
from brim.support.files import read_json, sha256_file
from brim.support.seals import LOGS, beginning_damage, checkpoints_in, file_damage, find_damage

logger = logging.getLogger(__name__)

# What Python says to JSON of another shape than we write, or to half a character.
_DAMAGE = (KeyError, TypeError, ValueError, AttributeError)


@dataclass(frozen=True, slots=True)
class Results:
    """A split of a `results.json`.

    Attributes:
        directory: that holds it.
        scores: by name, in the file's order.
        num_examples: in the split.
        data: SHA-256 of the split's examples, where the file has it.
        facts: all that the file has of the split: the above, further counts, the training's facts.
    """

    directory: Path
    scores: Mapping[str, Score]
    num_examples: int
    data: str | None
    facts: Mapping[str, Any]

    @property
    def decoding(self) -> str | None:
        """How the texts were decoded, in words; None where the file does not say it."""
        kept = self.facts.get("decoding")
        return decoding_in_words(kept) if isinstance(kept, dict) else None

    @property
    def stopped_at(self) -> str | None:
        """`step 11 of 120` where the model's training had not ended; None where it had."""
        return stopped_at(self.directory, self.facts)


@dataclass(frozen=True, slots=True)
class Written:
    """A row of `predictions/SPLIT.jsonl`; None and {} stand for what an evaluation left out.

    Attributes:
        id, prompt, references: of the example.
        texts: what is scored: the decoded text, or all samples of a sampled evaluation.
        num_tokens, teacher_return: of it, their mean over the samples.
        sampled_text, sampled_return: of a sample of the policy that was drawn beside.
        statistics: by metric the additive statistics, summed over the samples.
    """

    id: str
    prompt: str
    references: tuple[str, ...]
    texts: tuple[str, ...]
    num_tokens: float | None
    teacher_return: float | None
    sampled_text: str | None
    sampled_return: float | None
    statistics: Mapping[str, Sequence[float]]

    @property
    def text(self) -> str:
        """The one that is shown: the first."""
        return self.texts[0]


def find_results(directory: Path, split: str) -> Results | None:
    """The results of a split; None where there are none yet.

    Raises:
        RunError: they are damaged.
    """
    path = directory / "results.json"
    try:
        facts = read_splits(directory, split).get(split)
        if not isinstance(facts, dict) or "scores" not in facts:  # somebody else's file
            return None
        if predictions_path(directory, split).exists():
            check_predictions(directory, split, facts)
        return Results(
            directory=directory,
            scores={name: Score(**fields) for name, fields in facts["scores"].items()},
            num_examples=int(facts["num_examples"]),
            data=facts.get("data", {}).get("sha256"),
            facts=facts,
        )
    except _DAMAGE as error:
        raise RunError(f"{path}: damaged: {error!r}; {_again(directory, split)}") from None


def read_splits(directory: Path, split: str) -> dict[str, Any]:
    """All that `results.json` holds, by split; nothing where there is none.

    Raises:
        RunError: it is damaged; the remedy is for `split`.
    """
    path = directory / "results.json"
    if not path.exists():
        return {}
    try:
        splits = read_json(path)
        if not isinstance(splits, dict):
            raise RunError(f"{path}: damaged: not an object of splits")
    except RunError as error:
        raise RunError(f"{error}; remove it, and {_again(directory, split)}") from None
    return {name: facts for name, facts in splits.items() if isinstance(facts, dict)}


def stopped_at(directory: Path, facts: Mapping[str, Any]) -> str | None:
    """How far the training of an evaluated model was, in words, if it had not ended.

    Args:
        directory: of the results; if it is a run's, its settings say how many steps were planned
            where results of an older version do not.
        facts: of a split.

    Returns:
        `step 11 of 120`, or None where the training had ended, there was none, or nobody knows.
    """
    step = facts.get("steps")
    if step is None:
        return None
    planned = facts.get("planned_steps") or planned_steps(directory)
    return None if planned is None or step >= planned else f"step {step:,} of {planned:,}"


# Keys of a run's manifest.json that are relied upon, and what they hold.
_MANIFEST_TYPES = {
    "config_hash": str,
    "config_sha256": str,
    "stages_dir": str,
    "stages": dict,
    "stages_sha256": dict,
    "models": dict,
    "data": dict,
    "versions": dict,
    "num_processes": int,
}


def read_manifest(run: Path) -> dict[str, Any]:
    """Read the provenance of a run; empty where none has begun.

    Raises:
        RunError: it is damaged.
    """
    path = run / "manifest.json"
    if not path.exists():
        return {}
    try:
        manifest: dict[str, Any] = read_json(path, sealed_with="config_sha256")
        if "config_hash" not in manifest:
            raise RunError(f"{path}: damaged: it is not that of a run")
        for key, kind in _MANIFEST_TYPES.items():
            if key in manifest and not isinstance(manifest[key], kind):
                raise RunError(f"{path}: damaged: {key} is {manifest[key]!r}")
        for key in ("stages", "stages_sha256"):
            if not all(isinstance(value, str) for value in manifest.get(key, {}).values()):
                raise RunError(f"{path}: damaged: {key} is {manifest[key]!r}")
        for key in ("data", "models"):
            if not all(isinstance(facts, dict) for facts in manifest.get(key, {}).values()):
                raise RunError(f"{path}: damaged: {key} is {manifest[key]!r}")
    except TypeError:
        raise RunError(f"{path}: damaged: it is no object; bring it back") from None
    except RunError as error:
        raise RunError(f"{error}; bring it back, or begin the run again elsewhere") from None
    return manifest


def settings_damage(run: Path) -> str | None:
    """What is wrong with a run's `config.yaml`; None where it is as it was written, or of old."""
    path = run / "config.yaml"
    if not path.is_file():
        return "is missing"
    known = read_manifest(run).get("config_sha256")
    return None if known in (None, sha256_file(path)) else "is not what the run was begun with"


def settings_text(directory: Path) -> str:
    """The `config.yaml` of a run.

    Raises:
        RunError: it is missing, damaged, or not what the run was begun with.
    """
    path = directory / "config.yaml"
    damage = settings_damage(directory)
    if damage is not None:
        raise RunError(
            f"{path}: {damage}; bring it back, or start again the brim train that began the run, "
            "which writes it again"
        )
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from None


def text_of_settings(directory: Path) -> str:
    """A run's `config.yaml`, or a stage's `inputs.json`; "" where there is neither.

    Raises:
        RunError: it is damaged.
    """
    if (directory / "config.yaml").exists():
        return settings_text(directory)
    path = directory / "inputs.json"
    if not path.exists():
        return ""
    read_json(path)  # compared with its hash
    return path.read_text(encoding="utf-8")


def read_log(directory: Path, name: str) -> list[dict[str, Any]]:
    """The lines of a log of a training; none where there is no log.

    They are compared with what the newest checkpoint knows of them; later ones, and those of an
    older version, are taken as they are.

    Args:
        directory: of the training.
        name: `metrics.jsonl`, `timings.jsonl` or `samples.jsonl`.

    Raises:
        RunError: the log is damaged.
    """
    path = directory / name
    damage = _log_damage(path)
    if damage is not None:
        raise RunError(
            f"{path}: {damage}; bring it back, or start again the brim train that wrote it, which "
            "makes it again where a checkpoint allows it"
        )
    rows = []
    whole = path.read_bytes().split(b"\n")[:-1] if path.exists() else []  # one may be under way
    for number, line in enumerate(whole, start=1):
        try:
            rows.append(json.loads(line))
            rows[-1]["step"] += 0
        except (*_DAMAGE, RecursionError):
            raise RunError(
                f"{path}:{number}: damaged: no row with a step; resume the run to write it anew"
            ) from None
    return rows


def _log_damage(path: Path) -> str | None:
    for checkpoint in checkpoints_in(path.parent / "checkpoints").values():
        damage = find_damage(checkpoint, lambda name: name == LOGS)
        try:
            if damage is None:
                if not (checkpoint / LOGS).exists():  # of an older version
                    return None
                return beginning_damage(path, read_json(checkpoint / LOGS)[path.name])
        except (RunError, KeyError, TypeError) as error:
            damage = f"{LOGS}: {error!r}"
        if checkpoint.exists():  # a run that is under way deletes old ones
            logger.warning(
                "%s: damaged: %s; %s is compared with the checkpoint before it, if there is one",
                *(checkpoint, damage, path),
            )
    return None


def planned_steps(directory: Path) -> int | None:
    """How many steps the run in a directory is to have; None where there is no run or no saying."""
    if not (directory / "config.yaml").exists() or not (directory / "manifest.json").exists():
        return None
    try:
        trainer = parse(settings_text(directory), str).data["trainer"]
        if trainer.get("max_steps") is not None:
            return int(trainer["max_steps"])
        examples = read_manifest(directory)["data"]["train"]["num_examples"]
        planned: int = math.ceil(trainer["num_epochs"] * examples / trainer["rollout_batch_size"])
        return planned
    except (BrimError, *_DAMAGE):
        return None


def check_run(run: Path) -> None:
    """Raise a RunError where there is no run in a directory."""
    if not (run / "config.yaml").exists():
        if below := _run_below(run):
            raise RunError(f"{run}: holds runs and is none; name one, such as {below}")
        raise RunError(f"{run}: no run directory (it has no config.yaml); check the path")


def decoding_in_words(decoding: Mapping[str, Any]) -> str:
    """The strategy, then all that is set."""
    own = {key: value for key, value in decoding.items() if key != "strategy" and value is not None}
    return ", ".join(
        [str(decoding.get("strategy", "greedy")), *(f"{key} = {own[key]}" for key in own)]
    )


def different_decodings(a: Results, b: Results) -> tuple[str, str] | None:
    """How the texts of each were decoded; None where it is the same, or not known of both."""
    ours, theirs = a.decoding, b.decoding
    return None if ours is None or theirs is None or ours == theirs else (ours, theirs)


def read_results(directory: Path, split: str) -> Results:
    """Read the results of a split.

    Raises:
        RunError: no such directory, or its results are missing or damaged.
    """
    results = find_results(directory, split)
    if results is None:
        raise _absent("results", directory / "results.json", directory, split)
    return results


def predictions_path(directory: Path, split: str) -> Path:
    """Where the predictions of a split are."""
    return directory / "predictions" / f"{split}.jsonl"


def check_predictions(directory: Path, split: str, facts: Mapping[str, Any]) -> None:
    """Compare the predictions of a split with their record in its results, if they have one.

    Raises:
        RunError: they are not what was written with those results.
    """
    path, record = predictions_path(directory, split), facts.get("predictions")
    damage = None if record is None else file_damage(path, record)
    if damage is not None:
        raise RunError(
            f"{path}: {damage}, or results.json is of others; {_again(directory, split)}"
        )


def read_written(
    directory: Path, split: str, *, count: int | None = None, at: Collection[int] | None = None
) -> Iterator[Written]:
    """Read what was written for each example of a split, one after the other.

    Args:
        directory: of the evaluation.
        split: of the data.
        count: how many examples `results.json` counts; None to take what is there.
        at: places in the split, from 0, whose rows are wanted; the other lines are not parsed.
            None for all.

    Raises:
        RunError: no such directory, or the file is missing, empty, damaged in a wanted line, or has
            another number of lines than `count`.
    """
    path = predictions_path(directory, split)
    if not path.exists():
        raise _absent("predictions", path, directory, split)
    check_predictions(directory, split, read_splits(directory, split).get(split, {}))
    again = _again(directory, split)
    number = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if at is not None and number - 1 not in at:
                continue
            try:
                row = _parse(json.loads(line))
            except _DAMAGE as error:
                raise RunError(f"{path}:{number}: damaged: {error!r}; {again}") from None
            yield row
    if count is not None and number != count:
        raise RunError(f"{path}: {number} predictions where results.json counts {count}; {again}")
    if not number:
        raise RunError(f"{path}: holds no predictions; name a split with examples")


def _parse(row: Mapping[str, Any]) -> Written:
    completions: Sequence[Mapping[str, Any]] = row.get("samples") or [row]
    written = Written(
        id=row["id"],
        prompt=row["prompt"],
        references=tuple(row["references"]),
        texts=tuple(completion["text"] for completion in completions),
        num_tokens=_mean([completion.get("num_tokens") for completion in completions]),
        teacher_return=_mean([completion.get("teacher_return") for completion in completions]),
        sampled_text=row.get("sampled_text"),
        sampled_return=_mean([row.get("sampled_return")]),
        statistics=dict(row.get("statistics") or {}),
    )
    # Text, all of it, and fit to be written again.
    texts = [written.id, written.prompt, *written.references, *written.texts]
    "".join([*texts, written.sampled_text or ""]).encode()
    return written


def _mean(values: Sequence[Any]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _absent(what: str, path: Path, directory: Path, split: str) -> RunError:
    if not directory.is_dir():
        return RunError(f"{directory}: no such directory; check the path")
    if not (directory / "results.json").exists() and (run := _run_below(directory)):
        return RunError(f"{directory}: holds runs and is none; name one, such as {run}")
    return RunError(
        f"{path}: no {what} of the {split} split; "
        f"write them by brim evaluate {directory} --split {split}"
    )


def _run_below(directory: Path) -> Path | None:
    """A run in a directory that is none itself, such as runs/ or a sweep's."""
    if (directory / "config.yaml").exists():
        return None
    found = [*directory.glob("*/config.yaml"), *directory.glob("*/*/config.yaml")]
    return min((path.parent for path in found), default=None)


def _again(directory: Path, split: str) -> str:
    return f"write it anew by brim evaluate {directory} --split {split}"
