"""Seals: what is written is known by its SHA-256, and compared with it where it is read again.

A folder has a `manifest.json` with size and SHA-256 of every file in it, a file that grows line by
line a record of what it held at a certain moment. JSON documents hold their own
(`files.write_sealed_json`). What an older version wrote has no seals and is read as it is.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from brim.errors import RunError
from brim.support.files import (
    read_json,
    sha256_file,
    write_sealed_json,
)

MANIFEST = "manifest.json"

LOGS = "logs.json"
"""In a checkpoint: the record of each log of the training, as far as it was then."""

Record = Mapping[str, Any]
"""`bytes` and `sha256` of a file, or of its beginning."""


def seal(
    directory: Path,
    facts: Mapping[str, Any],
    *,
    files: Iterable[str] | None = None,
    manifest: str = MANIFEST,
) -> None:
    """Write a manifest of a folder: facts, then `files` (by default all in it) with their records.

    Raises:
        RunError: it cannot be written.
    """
    paths = sorted(directory.rglob("*")) if files is None else [directory / name for name in files]
    records = {
        path.relative_to(directory).as_posix(): record_of(path)
        for path in paths
        if path.is_file() and path != directory / manifest
    }
    write_sealed_json(directory / manifest, {**facts, "files": records})


def is_sealed(directory: Path) -> bool:
    """Whether the folder has a manifest, sound or damaged; one of another program does not count.

    A `manifest.json` without either of a seal's keys is another program's.
    """
    path = directory / MANIFEST
    try:
        value = read_json(path)
    except RunError:
        return path.is_file()
    return isinstance(value, dict) and "files" in value


def find_damage(
    directory: Path,
    wanted: Callable[[str], bool] = lambda name: True,
    *,
    manifest: str = MANIFEST,
) -> str | None:
    """What of a sealed folder is not as it was written; None for a sound one.

    Compared are the `wanted` files, by their names; by default all.
    """
    try:
        files = read_json(directory / manifest)["files"]
        for name, record in files.items():
            damage = file_damage(directory / name, record) if wanted(name) else None
            if damage is not None:
                return f"{name} {damage}"
    except RunError as error:
        return str(error)
    except (OSError, KeyError, TypeError, AttributeError) as error:
        return f"{manifest} or a file of it cannot be read ({error!r})"
    return None


def record_of(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def file_damage(path: Path, record: Record) -> str | None:
    """How a file differs from its record, as `is missing`; None where it does not."""
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != record["bytes"]:
        return f"has {path.stat().st_size} bytes instead of {record['bytes']}"
    if sha256_file(path) != record["sha256"]:
        return "has another SHA-256 than when it was written"
    return None


def beginning_damage(path: Path, record: Record) -> str | None:
    """As `file_damage` of a file that may have grown since."""
    size = path.stat().st_size if path.is_file() else 0
    if size < record["bytes"]:
        return f"has {size} bytes instead of {record['bytes']}" if path.is_file() else "is missing"
    if digest_of_beginning(path, record["bytes"]).hexdigest() != record["sha256"]:
        return "has another SHA-256 than when it was written"
    return None


def digest_of_beginning(path: Path, size: int) -> Any:
    """Return the SHA-256, to be updated, of the first `size` bytes of a file."""
    digest = hashlib.sha256()
    if size:
        with path.open("rb") as file:
            while size and (part := file.read(min(size, 2**20))):
                digest.update(part)
                size -= len(part)
    return digest


OF_A_RESUME = {
    "adapters.safetensors",
    "optimizer.safetensors",
    "optimizer.json",
    "objective.safetensors",
    "objective.json",
    "writer",
    "trainer_state.json",
    LOGS,
    MANIFEST,
}
"""What a checkpoint holds besides the model, by the first part of the names."""


def checkpoints_in(root: Path) -> dict[int, Path]:
    """Step -> folder of a run's checkpoints, the newest first."""
    found = {
        int(match[1]): path
        for path in (root.iterdir() if root.is_dir() else ())
        if (match := re.fullmatch(r"step-(\d+)", path.name)) and path.is_dir()
    }
    return dict(sorted(found.items(), reverse=True))
