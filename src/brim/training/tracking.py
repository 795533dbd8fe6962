"""What a run writes down at each step: JSON lines always, other trackers on request.

`metrics.jsonl` and `samples.jsonl` hold only what the seed decides, so a run that was stopped and
resumed writes the same bytes as one that was not. Seconds never repeat: they have a file of their
own, `timings.jsonl`.
"""

from __future__ import annotations

import importlib
import json
import math
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from brim.errors import ConfigError
from brim.support.files import atomic_open, atomic_write_text
from brim.support.json_lines import JsonLines
from brim.support.seals import Record

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Row = Mapping[str, Any]

OBJECTIVE = "objective"
"""The stage that is the run's own training."""

_MODULES = {
    "tensorboard": "torch.utils.tensorboard",
    "trackio": "trackio",
    "wandb": "wandb",
}
LOG_FILES = ("metrics.jsonl", "timings.jsonl", "samples.jsonl")


class Tracker:
    """Writes the metrics, timings and samples of a run; one process of a run has one.

    Each line has its `step`; lines of one step stay in the order of their logging. JSON has no NaN
    or infinity: these are the texts "nan", "inf" and "-inf".

    Args:
        directory: of the run; its files are continued if they are there.
        backends: any of `tensorboard`, `trackio`, `wandb`, each imported only when named. Accounts
            and keys come from their own environment variables or logins. After a resume they see
            the steps since the checkpoint again, with equal values.
        run_name: shown by the back ends.
        project: groups runs in trackio and wandb.
        run: the run's directory, whose folder `tensorboard/` has the curves of all its stages;
            `directory` by default.
        stage: whose metrics these are: those of all but the objective have it before their tags.
        config: settings that the back ends show beside the curves.

    Raises:
        ConfigError: a back end is unknown, not installed, or does not start.
        RunError: `directory` cannot be written.
    """

    def __init__(
        self,
        directory: Path,
        backends: Sequence[str] = (),
        *,
        run_name: str = "",
        project: str = "brim",
        config: Mapping[str, Any] | None = None,
        run: Path | None = None,
        stage: str = OBJECTIVE,
    ) -> None:
        self._logs = {name: JsonLines(directory / name) for name in LOG_FILES}
        self._metrics, self._timings, self._samples = self._logs.values()
        run_name = run_name or directory.name
        board = partial(_TensorBoard, (run or directory) / "tensorboard", stage, config or {})
        hosted = partial(_HostedRun, directory, run_name, project, config or {})
        self._backends = [_start(name, board, hosted) for name in backends]

    def log(
        self,
        step: int,
        metrics: Mapping[str, float],
        timings: Mapping[str, float] | None = None,
    ) -> None:
        """Write a line of metrics and one of timings, each if there are any.

        Args:
            step: updates done so far.
            metrics: by namespaced key, such as `train/loss`; the same in every run of the seed.
            timings: what is not, such as `time/rollout` in seconds.
        """
        metrics = {key: float(value) for key, value in metrics.items()}
        timings = {key: float(value) for key, value in (timings or {}).items()}
        if metrics:
            self._metrics.append(_row(step, metrics))
        if timings:
            self._timings.append(_row(step, timings))
        for backend in self._backends:
            backend.log(step, {**metrics, **timings})

    def log_samples(self, step: int, rows: Sequence[Row]) -> None:
        """Write one line a sample; a row holds what JSON can, under the same keys as the others."""
        if rows:
            self._samples.append(*(_row(step, row) for row in rows))
            for backend in self._backends:
                backend.log_samples(step, rows)

    def rewind(self, step: int, records: Mapping[str, Record] | None = None) -> None:
        """Forget what was logged after `step`, as a run resumed from that checkpoint must.

        Args:
            step: of the checkpoint; -1 to forget everything.
            records: what `sync` gave then; without it the lines are looked through.

        Raises:
            RunError: a line before the last one is damaged.
        """
        for name, log in self._logs.items():
            if step < 0:
                log.cut(0)
            elif records is not None:
                log.cut(records[name]["bytes"])
            else:
                log.cut_after("step", step)
        for backend in self._backends:
            backend.rewind(step)

    def sync(self) -> dict[str, Record]:
        """Force the lines to the disk, as must be before a checkpoint that counts on them.

        Returns:
            Size and SHA-256 of each file, by its name.
        """
        for log in self._logs.values():
            log.sync()
        for backend in self._backends:
            backend.flush()
        return {name: log.record for name, log in self._logs.items()}

    def close(self) -> None:
        """Finish the back ends; nothing can be logged any more."""
        for backend in self._backends:
            backend.close()
        self._backends = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _row(step: int, values: Row) -> Row:
    """A row that begins with its step; JSON has no NaN or infinity."""
    finite = {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }
    return {"step": step, **finite}


def check_backends(names: Iterable[str]) -> None:
    """Import these back ends.

    Raises:
        ConfigError: one is unknown or not installed.
    """
    for name in names:
        if name not in _MODULES:
            raise ConfigError(f"tracking.backends: {name!r} is not one of {', '.join(_MODULES)}")
        try:
            importlib.import_module(_MODULES[name])
        except ImportError as error:
            raise ConfigError(
                f"tracking.backends: {name} is not installed ({error}); "
                f"pip install 'brim-distill[{name}]'"
            ) from error


def _start(
    name: str, board: Callable[[], _TensorBoard], hosted: Callable[[str], _HostedRun]
) -> _TensorBoard | _HostedRun:
    check_backends([name])
    try:
        return board() if name == "tensorboard" else hosted(name)
    except Exception as error:  # whatever a service answers: no key, no network, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"tracking.backends: {name} does not start: {reason}") from error


class _TensorBoard:
    """A stage's part of a run's folder: files that end in its name, tags that begin with it."""

    def __init__(self, directory: Path, stage: str, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._directory, self._stage = directory, stage
        self._prefix = "" if stage == OBJECTIVE else f"{stage}/"
        self._open = partial(SummaryWriter, str(directory), filename_suffix=f".{stage}")
        self._config = f"```json\n{json.dumps(config, indent=2)}\n```"
        self._writer: SummaryWriter | None = None

    def _get_writer(self) -> SummaryWriter:
        """Opened when first needed, after older steps were cut."""
        if self._writer is None:
            begun = bool(self._files())
            self._writer = self._open()
            if not begun and not self._prefix:
                self._writer.add_text("config", self._config, 0)
        return self._writer

    def _files(self) -> list[Path]:
        found = self._directory.glob(f"events.*.{self._stage}")
        # Older versions wrote the objective's without an ending.
        older = self._directory.glob("events.*[0-9]") if not self._prefix else ()
        return sorted([*found, *older])

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for key, value in metrics.items():
            self._get_writer().add_scalar(f"{self._prefix}{key}", value, step)

    def log_samples(self, step: int, rows: Sequence[Row]) -> None:
        self._get_writer().add_text(f"{self._prefix}samples", _markdown_table(rows), step)

    def rewind(self, step: int) -> None:
        """Cut the files: what TensorBoard has for this, `purge_step`, purges other stages too."""
        from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.close()
        for path in self._files():
            if step < 0:
                path.unlink()
                continue
            with atomic_open(path) as file:
                writer = RecordWriter(file)
                for record in RawEventFileLoader(str(path)).Load():
                    if Event.FromString(record).step <= step:
                        writer.write(record)

    def flush(self) -> None:
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class _HostedRun:
    """A run of trackio or wandb, whose interfaces agree on all that is used here."""

    def __init__(
        self,
        directory: Path,
        run_name: str,
        project: str,
        config: Mapping[str, Any],
        name: str,
    ) -> None:
        self._module = importlib.import_module(name)
        identity = _identity(directory)
        settings: dict[str, Any] = {"project": project, "config": dict(config), "resume": "allow"}
        if name == "wandb":
            settings |= {"id": identity, "name": run_name, "dir": str(directory)}
        else:  # which knows a run by its name
            settings |= {"name": f"{run_name}-{identity}"}
        self._run = self._module.init(**settings)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def log_samples(self, step: int, rows: Sequence[Row]) -> None:
        if hasattr(self._module, "Markdown"):
            table = self._module.Markdown(_markdown_table(rows))
        else:
            columns = list(rows[0])
            table = self._module.Table(
                columns=columns, data=[[str(row[column]) for column in columns] for row in rows]
            )
        self._run.log({"samples": table}, step=step)

    def rewind(self, step: int) -> None:
        """Neither can forget; wandb passes over steps that it has, trackio shows them twice."""

    def flush(self) -> None:
        """Both send what they have by themselves."""

    def close(self) -> None:
        self._run.finish()


def _identity(directory: Path) -> str:
    """What the services know this run directory by, also after a resume."""
    path = directory / "tracking_id"
    known = path.read_text(errors="replace") if path.exists() else ""
    if not re.fullmatch("[0-9a-f]{12}", known):
        known = secrets.token_hex(6)
        atomic_write_text(path, known)
    return known


def _markdown_table(rows: Sequence[Row]) -> str:
    def line(cells: Sequence[object]) -> str:
        texts = (str(cell).replace("|", "\\|").replace("\n", "<br>") for cell in cells)
        return f"| {' | '.join(texts)} |"

    columns = list(rows[0])
    table = [line(columns), line(["---"] * len(columns))]
    return "\n".join(table + [line([row[column] for column in columns]) for row in rows])
