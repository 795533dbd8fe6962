"""What an evaluation left in a directory: the scores of a split, and the texts of its examples.

Everything that looks at a finished evaluation reads it here, without torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brim.errors import BrimError, RunError
from brim.files import read_json
from brim.metrics import Score
from brim.yaml12 import parse

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
    return splits


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


def planned_steps(directory: Path) -> int | None:
    """How many steps the run in a directory is to have; None where there is no run or no saying."""
    config, manifest = directory / "config.yaml", directory / "manifest.json"
    if not config.exists() or not manifest.exists():
        return None
    try:
        trainer = parse(config.read_text(encoding="utf-8"), str).data["trainer"]
        if trainer.get("max_steps") is not None:
            return int(trainer["max_steps"])
        examples = read_json(manifest)["data"]["train"]["num_examples"]
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
