"""Run directories without any training: each file comes from what writes it in a real run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from brim.config.yaml import dump
from brim.runs.directory import RunDirectory
from brim.runs.evaluate import add_results
from brim.runs.train import update_manifest
from brim.support.files import atomic_write_jsonl, atomic_write_text
from brim.support.json_lines import JsonLines
from brim.support.seals import record_of
from brim.training.predictions import Prediction

Facts = Mapping[str, Any]


def write_run(
    directory: Path,
    *,
    settings: Facts | None = None,
    manifest: Facts | None = None,
    metrics: Iterable[Facts] | None = None,
    rows: Iterable[Facts] | None = None,
    results: Facts | None = None,
    split: str = "test",
) -> Path:
    """Add what is given to a directory: settings make it a run's, rows and results an evaluation's.

    Rows and results are of `split`; a row may lack all but `id`, `prompt`, `references` and `text`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if settings is not None:
        text = dump(settings)
        atomic_write_text(directory / "config.yaml", text)
        known = {"config_hash": "0", "config_sha256": sha256(text.encode()).hexdigest()}
        update_manifest(directory, {**known, **(manifest or {}), "sealed": True})
    if metrics is not None:
        JsonLines(directory / "metrics.jsonl").append(*metrics)
    path = RunDirectory(directory).predictions_path(split)
    if rows is not None:
        path.parent.mkdir(exist_ok=True)
        atomic_write_jsonl(path, (Prediction.from_dict(row).as_dict() for row in rows))
    if results is not None:
        record = {"predictions": record_of(path)} if path.exists() else {}
        add_results(directory, split, {"split": split, **results, **record})
    return directory


def change_results(directory: Path, split: str = "test", **facts: Any) -> None:
    """Write facts of a split again, as another evaluation would."""
    known = RunDirectory(directory).splits(split)[split]
    add_results(directory, split, {**known, **facts})


def unseal(directory: Path) -> Path:
    """Take the hashes out of a directory, which makes it an older version's; it may be edited then.

    What is spoiled in such a directory is noticed by its shape alone.
    """
    for name in ("manifest.json", "results.json"):
        path = directory / name
        if path.exists():
            kept = json.loads(path.read_text(encoding="utf-8"))
            for key in ("sha256", "sealed", "config_sha256"):
                kept.pop(key, None)
            for facts in kept.values() if name == "results.json" else ():
                facts.pop("predictions", None)
            path.write_text(json.dumps(kept), encoding="utf-8")
    return directory
