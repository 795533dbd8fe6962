"""What a directory says of a split: its scores, and what was written for each example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brim.errors import RunError
from brim.files import read_json, read_jsonl
from brim.metrics import Score


@dataclass(frozen=True, slots=True)
class Results:
    """A split of a `results.json`.

    Attributes:
        directory: that holds it.
        scores: by name, in the file's order.
        num_examples: in the split.
        data: SHA-256 of the split's examples, where the file has it.
    """

    directory: Path
    scores: Mapping[str, Score]
    num_examples: int
    data: str | None


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


def read_results(directory: Path, split: str) -> Results:
    """Read the scores of a split.

    Raises:
        RunError: no such directory, or its results are missing or damaged.
    """
    path = directory / "results.json"
    if not directory.is_dir():
        raise RunError(f"{directory}: no such directory; check the path")
    if not path.exists():
        raise RunError(f"{path}: missing; write it by brim evaluate {directory}")
    splits = read_json(path)
    if not isinstance(splits, dict) or not isinstance(splits.get(split), dict):
        raise RunError(
            f"{path}: no results of the {split} split; "
            f"write them by brim evaluate {directory} --split {split}"
        )
    results = splits[split]
    try:
        return Results(
            directory=directory,
            scores={name: Score(**fields) for name, fields in results["scores"].items()},
            num_examples=int(results["num_examples"]),
            data=results.get("data", {}).get("sha256"),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(
            f"{path}: damaged: {error!r}; write it anew by brim evaluate {directory}"
        ) from None


def read_written(results: Results, split: str) -> list[Written]:
    """Read what was written for each example of the split.

    Raises:
        RunError: the file is missing, damaged, or has another number of rows than the results say.
    """
    path = predictions_path(results.directory, split)
    again = f"brim evaluate {results.directory} --split {split}"
    if not path.exists():
        raise RunError(f"{path}: missing; write it by {again}")
    rows = []
    for number, row in enumerate(read_jsonl(path), start=1):
        try:
            rows.append(_parse(row))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunError(
                f"{path}:{number}: damaged: {error!r}; write it anew by {again}"
            ) from None
    if len(rows) != results.num_examples:
        raise RunError(
            f"{path}: {len(rows)} predictions where results.json counts {results.num_examples}; "
            f"write both anew by {again}"
        )
    if not rows:
        raise RunError(f"{path}: holds no predictions; name a split with examples")
    return rows


def predictions_path(directory: Path, split: str) -> Path:
    """Where the predictions of a split are."""
    return directory / "predictions" / f"{split}.jsonl"


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
        statistics=row.get("statistics") or {},
    )
    # Text, all of it, and fit to be written again.
    texts = [written.id, written.prompt, *written.references, *written.texts]
    "".join([*texts, written.sampled_text or ""]).encode()
    return written


def _mean(values: Sequence[Any]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None
