"""What two systems wrote for the same examples, read from their directories and checked."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brim.errors import ConfigError, RunError
from brim.judge.prompts import KINDS, Kind, Pair
from brim.runs.directory import RunDirectory
from brim.training.predictions import Prediction

if TYPE_CHECKING:
    from brim.tasks import Split

KIND_OF_TASK: dict[str, Kind] = {
    "xsum": "summarization",
    "synopsis": "summarization",
    "europarl": "translation",
}


@dataclass(frozen=True, slots=True)
class System:
    """A directory with predictions.

    Attributes:
        directory: as it was given.
        name: of the directory, other than that of the other system.
        task: its name in the settings; None for a directory without settings, such as a stage's.
        around: what the run's prompt template has before and behind the example's text; empty
            without a template, for chats, and where the template has several fields.
        rows: one an example.
    """

    directory: Path
    name: str
    task: str | None
    around: tuple[str, str]
    rows: tuple[Prediction, ...]

    def source(self, row: Prediction) -> str:
        """Return the text of the row without the run's template: what a person would be given.

        Raises:
            RunError: the prompt was not made by the template.
        """
        head, tail = self.around
        text = row.prompt.removeprefix(head).removesuffix(tail)
        if len(head) + len(text) + len(tail) != len(row.prompt):
            raise RunError(
                f"{self.directory}: the prompt of example {row.id} was not made by the run's "
                "task.prompt; write the predictions anew by brim evaluate"
            )
        return text


def names_of(a: Path, b: Path) -> tuple[str, str]:
    """Return the parts of two paths in which they differ.

    Raises:
        ConfigError: they are the same directory.
    """
    ours, theirs = a.resolve().parts, b.resolve().parts
    if ours == theirs:
        raise ConfigError(f"{a} and {b} are the same directory; name two systems")
    while ours and theirs and ours[0] == theirs[0]:
        ours, theirs = ours[1:], theirs[1:]
    while ours and theirs and ours[-1] == theirs[-1]:
        ours, theirs = ours[:-1], theirs[:-1]
    return "/".join(ours) or a.resolve().name, "/".join(theirs) or b.resolve().name


def read_systems(a: Path, b: Path, split: Split) -> tuple[System, System]:
    """Read both directories, and check that they hold predictions of the same examples.

    Raises:
        ConfigError: they are the same directory.
        RunError: a file is missing, damaged or empty, or the ids differ.
    """
    names = names_of(a, b)
    ours, theirs = (
        _read_system(directory, name, split) for directory, name in zip((a, b), names, strict=True)
    )
    if [row.id for row in ours.rows] != [row.id for row in theirs.rows]:
        raise RunError(
            f"{RunDirectory(b).predictions_path(split)}: other examples than in {a}; "
            "evaluate both on the same data"
        )
    return ours, theirs


def pairs_of(ours: System, theirs: System, *, max_examples: int | None, seed: int) -> list[Pair]:
    """Return the examples to be judged, in the split's order.

    A subset depends on the ids and the seed alone, and a smaller one is a part of a larger one.

    Raises:
        RunError: the two systems were given different texts.
    """
    # A directory without settings was evaluated beside a run, by the same template.
    reader = ours if ours.task is not None else theirs
    other = theirs if theirs.task is not None else ours
    order = sorted(
        range(len(ours.rows)),
        key=lambda i: hashlib.sha256(f"{seed}:{ours.rows[i].id}".encode()).digest(),
    )
    pairs = []
    for i in sorted(order[:max_examples]):
        mine, its = ours.rows[i], theirs.rows[i]
        source = reader.source(mine)
        if source != other.source(its):
            raise RunError(
                f"{theirs.directory}: example {its.id} has another text than in "
                f"{ours.directory}; evaluate both on the same data"
            )
        pairs.append(Pair(id=mine.id, source=source, a=mine.text, b=its.text))
    return pairs


def kind_of(ours: System, theirs: System) -> Kind:
    """Return what the systems do, as their task says.

    Raises:
        ConfigError: it does not say that they summarize or translate.
    """
    tasks = {system.task for system in (ours, theirs) if system.task is not None}
    kinds = {KIND_OF_TASK.get(task) for task in tasks}
    kind = kinds.pop() if len(kinds) == 1 else None
    if kind is None:
        raise ConfigError(
            f"kind: the paper has prompts for {' and '.join(KINDS)}, and the task "
            f"{' and '.join(sorted(tasks)) or 'of these directories'} is not known as either; say "
            "which it is, or give templates of your own by `prompts` (see docs/judge.md)"
        )
    return kind


def _read_system(directory: Path, name: str, split: Split) -> System:
    run = RunDirectory(directory)
    task = run.settings().get("task", {})
    return System(
        directory=directory,
        name=name,
        task=task.get("name"),
        around=_around(task),
        rows=tuple(run.predictions(split)),
    )


def _around(task: dict[str, Any]) -> tuple[str, str]:
    if task.get("prompt") is None or task.get("messages_column"):
        return "", ""
    from brim.tasks.templates import Template  # brings torch

    template = Template(str(task["prompt"]))
    parts = template.render(dict.fromkeys(template.fields, "\0")).split("\0")
    return (parts[0], parts[1]) if len(parts) == 2 else ("", "")
