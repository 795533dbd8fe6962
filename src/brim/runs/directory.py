"""The run directory: opened for one run only, with what is needed to know and repeat it."""

from __future__ import annotations

import logging
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from accelerate import PartialState

from brim._version import __version__
from brim.config.loading import config_hash, describe_changes, dump_config, load_config
from brim.config.yaml import parse
from brim.errors import ConfigError, RunError
from brim.runs.reading import read_manifest, settings_damage, settings_text
from brim.support.files import atomic_write_text, write_sealed_json
from brim.support.locks import acquire
from brim.support.seals import MANIFEST, is_sealed
from brim.training.checkpoints import check_processes, latest_state
from brim.training.resuming import foreign_best
from brim.training.settings import RunConfig

logger = logging.getLogger(__name__)

Resume = Literal["auto", "must", "never"]

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "datasets",
    "sacrebleu",
    "rouge-score",
)

# What a stop before the run had begun leaves: data that it had read, a manifest half-written.
_BEFORE_THE_RUN = re.compile(r"\.lock|data|\.manifest\.json\..*\.tmp")

_SHOWN_CHANGES = 5


@contextmanager
def open_run(
    out: Path, config: RunConfig, resume: Resume, *, other_processes: bool = False
) -> Iterator[None]:
    """Hold `out` for a run of `config` while the block runs.

    Settings that cannot change results (description, trackers) may differ from the ones that the
    directory was begun with. Where the block fails before anything of worth was written, a
    directory that was made here is removed again.

    Args:
        out: the run directory.
        config: the run's settings.
        resume: whether to go on with a run, or to begin one.
        other_processes: go on with a run that another number of processes began.

    Raises:
        RunError: `out` holds another run or something else, is in use, or does not suit `resume`.
    """
    if not PartialState().is_main_process:
        PartialState().wait_for_everyone()
        yield
        return
    begun = out.exists()
    _check(out, config, resume, other_processes)
    try:
        lock = acquire(
            out / ".lock", f"{out}: another process is working on this run; wait or stop it"
        )
    except OSError as error:
        raise RunError(
            f"{out}: cannot be written: {error.strerror}; choose another --out"
        ) from None
    try:
        PartialState().wait_for_everyone()
        yield
    except BaseException:
        if not begun and not (out / "config.yaml").exists():
            lock.release()
            shutil.rmtree(out, ignore_errors=True)
        raise
    finally:
        lock.release()


def begin_run(
    out: Path, config: RunConfig, command: Sequence[str], models: Mapping[str, Any]
) -> None:
    """Write the resolved settings and the provenance; from here on `out` is this run's.

    Args:
        out: the run directory.
        config: the run's settings.
        command: what was typed.
        models: what is known of teacher and student before any training.
    """
    if not PartialState().is_main_process:
        return
    text, manifest = dump_config(config), read_manifest(out)
    facts = {"num_processes": PartialState().num_processes, "models": dict(models)}
    if manifest:
        update_manifest(out, facts)
    else:
        manifest = {
            "config_hash": _identity(config),
            "config_sha256": sha256(text.encode()).hexdigest(),
            "command": list(command),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "seed": config.seed,
            "versions": {
                "brim": __version__,
                "python": platform.python_version(),
                **{name: metadata.version(name) for name in PACKAGES},
            },
            "platform": f"{sys.platform} {platform.machine()}",
            "sealed": True,  # all that is written from here on has its hash
            **facts,
        }
        write_sealed_json(out / "manifest.json", manifest)
    damage = settings_damage(out)
    if damage is not None:
        if (out / "config.yaml").exists():
            logger.warning("%s: %s; written again", out / "config.yaml", damage)
        atomic_write_text(out / "config.yaml", text)
        update_manifest(out, {"config_sha256": sha256(text.encode()).hexdigest()})


def update_manifest(out: Path, facts: Mapping[str, Any]) -> None:
    """Add facts to the provenance of a run."""
    if PartialState().is_main_process:
        write_sealed_json(out / "manifest.json", {**read_manifest(out), **facts})


def check_best(run: Path) -> None:
    """Check that a run has a best checkpoint, its own and, where this version began it, sealed.

    What is in it is compared with its manifest where it is loaded.

    Raises:
        RunError: it has not.
    """
    if not (run / "best").exists():
        raise RunError(f"{run}: has no best checkpoint yet; finish it by brim train --resume must")
    manifest, damage = read_manifest(run), None
    if is_sealed(run / "best"):
        state = latest_state(run / "checkpoints")
        damage = state and foreign_best(run / "best", state)
    elif "sealed" in manifest:
        damage = f"{MANIFEST} is missing"
    if damage:
        raise RunError(
            f"{run / 'best'}: damaged: {damage}; start again the brim train that wrote it, which "
            "makes it again where it can"
        )


def _check(out: Path, config: RunConfig, resume: Resume, other_processes: bool) -> None:
    if out.exists() and not out.is_dir():
        raise RunError(f"{out}: is a file; choose another --out")
    manifest = read_manifest(out)
    if not manifest:
        if resume == "must":
            raise RunError(f"{out}: no run to resume; check --out, or use --resume auto")
        names = sorted(path.name for path in out.iterdir()) if out.exists() else []
        if "config.yaml" in names or "checkpoints" in names:
            raise RunError(
                f"{out}: the run's manifest.json is missing; bring it back, or choose another --out"
            )
        strangers = [name for name in names if not _BEFORE_THE_RUN.fullmatch(name)]
        if strangers:
            raise RunError(
                f"{out}: is not empty and no run directory (it holds {strangers[0]}); "
                "choose another --out"
            )
        return
    if resume == "never":
        raise RunError(f"{out}: holds a run already; choose another --out, or --resume auto")
    if manifest["config_hash"] != _identity(config) and not _same_settings(out, manifest, config):
        settings_text(out)  # or it is damaged
        raise RunError(
            f"{out}: holds a run with other settings ({changed_settings(out, config)}); "
            "choose another --out, or resume with the settings that it was begun with"
        )
    if not other_processes:
        check_processes(out, manifest.get("num_processes"), PartialState().num_processes)


def changed_settings(out: Path, config: RunConfig) -> str:
    """In which settings a run differs from these, the first few as `objective.k: 2 → 4`.

    Settings that cannot change results are left out.
    """
    path = out / "config.yaml"
    if not path.exists():
        return "its config.yaml is missing"
    try:
        stored = load_config(RunConfig, path).model_dump(mode="json")
    except ConfigError:  # another version's, or edited
        stored = parse(path.read_text(encoding="utf-8"), lambda line: f"{path}:{line}").data
    asked = config.model_dump(mode="json")
    for settings in (stored, asked):
        for name in RunConfig.incidental():
            settings.pop(name, None)
    changes = describe_changes(stored, asked)
    more = [f"{len(changes) - _SHOWN_CHANGES} more"] if len(changes) > _SHOWN_CHANGES else []
    return ", ".join([*changes[:_SHOWN_CHANGES], *more]) or "its config.yaml was edited"


def _identity(config: RunConfig) -> str:
    return config_hash(config.model_dump(exclude=RunConfig.incidental(), mode="json"))


def _same_settings(out: Path, manifest: Mapping[str, Any], config: RunConfig) -> bool:
    """Whether a run of an older version has these settings: new ones are then at their defaults."""
    path = out / "config.yaml"
    if settings_damage(out) is not None:
        return False
    stored = parse(path.read_text(encoding="utf-8"), lambda line: f"{path}:{line}").data
    if not isinstance(stored, dict):
        return False
    incidental = RunConfig.incidental()
    stored = {key: value for key, value in stored.items() if key not in incidental}
    if config_hash(stored) != manifest["config_hash"]:  # somebody edited it
        return False
    return _identity(load_config(RunConfig, path)) == _identity(config)
