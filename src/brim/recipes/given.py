"""Settings of a run from what Python gives: names, mappings, objects, and rows or models in memory.

Rows and models become files, and are from there on what any path is.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any, TypedDict, get_args

from pydantic import BaseModel

from brim.config.loading import FROM_PYTHON, given_settings, load_config
from brim.errors import ConfigError
from brim.models.settings import ModelSettings
from brim.objectives.method import MethodConfig
from brim.recipes import find_recipe
from brim.recipes.first_row import read_first_row
from brim.recipes.memory import Kept
from brim.tasks import SPLITS, AnyTask, Task
from brim.training.settings import RunConfig, StudentConfig
from brim.training.teacher_settings import TeacherConfig

TASKS = {
    name
    for task in get_args(get_args(AnyTask)[0])
    for name in get_args(task.model_fields["name"].annotation)
}
FILES = "files"
_ROLES: dict[str, type[ModelSettings]] = {"teacher": TeacherConfig, "student": StudentConfig}
# What is of the model that another takes the place of.
_OF_A_SOURCE = (
    *("model", "key_env", "api", "requests"),
    *("revision", "trust_remote_code", "dtype", "tokenizer"),
)
_COLUMNS = {"prompt", "prompt_column", "messages_column", "target_column"}
_SOURCE = {"path", "weight"}  # of a list of sources, which is no list of rows

Recipe = str | PurePath | Mapping[str, Any] | RunConfig | None
"""A recipe's name or file, or all settings; None where the sections say all."""


class Sections(TypedDict, total=False):
    """The groups of a recipe, each as a mapping or an object of settings, or shorter.

    A `task` may be a name, a path, rows or data sets; a model a name, a path, a model in memory or
    a pair of it and its tokenizer; an `objective` a name.
    """

    description: str
    seed: int
    task: Any
    teacher: Any
    student: Any
    objective: str | Mapping[str, Any] | MethodConfig
    decoding: Any
    optim: Any
    trainer: Any
    evaluation: Any
    tracking: Any


def configure(
    recipe: Recipe,
    overrides: Mapping[str, Any],
    sections: Mapping[str, Any],
    keep: Kept,
) -> RunConfig:
    """Return the settings of a run: the recipe's, below the sections, below the overrides.

    A model that is given, by whatever name, takes the place of the recipe's: that one's sources,
    tokenizer and, of a teacher, training are gone. Rows, or a path of data, take the place of all
    splits, and columns are found by the first row, as `brim init` does, unless they are named.

    Args:
        recipe: where the settings begin.
        overrides: by keys such as `optim.lr`, or mappings.
        sections: see `Sections`.
        keep: of what is in memory.

    Raises:
        ConfigError: settings that cannot be used.
        DataError: rows that cannot be used.
    """
    path, layers = None, [dict(sections)]
    if isinstance(recipe, str | PurePath):
        path = find_recipe(str(recipe))
    elif isinstance(recipe, RunConfig):
        layers.insert(0, recipe.model_dump(mode="json"))
    elif isinstance(recipe, Mapping):
        layers.insert(0, dict(recipe))
    elif recipe is not None:
        raise ConfigError(f"{FROM_PYTHON}: {type(recipe).__name__} is no recipe; give its name")
    elif "trainer" not in sections:
        layers.insert(0, {"trainer": {"num_epochs": 1}})
    layers.append(dict(overrides))
    given = given_settings(
        *({key: _section(key, value, keep) for key, value in layer.items()} for layer in layers)
    )
    _guess_columns(given.data.get("task"), path)
    return load_config(RunConfig, path, given, search=find_recipe)


def _guess_columns(task: Any, path: Path | None) -> None:
    """Name the columns of data that is given without, unless a recipe on files may know them."""
    train = task.get("train") if isinstance(task, dict) else None
    if not isinstance(train, str) or not Path(train).is_file() or task.keys() & _COLUMNS:
        return
    with suppress(ConfigError):  # of a recipe that is whole with what is given only
        if path is not None and load_config(RunConfig, path, search=find_recipe).task.name == FILES:
            return
    task.update(read_first_row(train).settings)


def _section(name: str, value: Any, keep: Kept) -> Any:
    match name:
        case "objective" if isinstance(value, str):
            return {"name": value}
        case "task":
            return _task(value, keep)
        case "teacher" | "student":
            return _role(name, value, keep)
    return value


def _task(value: Any, keep: Kept) -> Any:
    if isinstance(value, Task | BaseModel):
        return value
    if isinstance(value, str) and value in TASKS - {FILES}:
        return {"name": value}
    splits = value if isinstance(value, Mapping) else {"train": value}
    given = {split: splits[split] for split in SPLITS if splits.get(split) is not None}
    if "train" not in given:
        return value
    kept = {
        split: str(keep.rows(split, rows)) if _is_rows(rows) else rows
        for split, rows in given.items()
    }
    # What is given is all of the data: a recipe's own splits would be of another.
    return {"name": FILES, **dict.fromkeys(SPLITS), **splits, **kept}


def _is_rows(value: Any) -> bool:
    if isinstance(value, str | PurePath):
        return False
    if not isinstance(value, list | tuple):
        return True
    return not value or any(
        not isinstance(item, str | PurePath | BaseModel)
        and not (isinstance(item, Mapping) and _SOURCE >= item.keys() > set())
        for item in value
    )


def _role(name: str, value: Any, keep: Kept) -> Any:
    if isinstance(value, BaseModel):
        return value
    if isinstance(value, Mapping):
        return _with_path(name, value, keep)
    if isinstance(value, list):
        several = [_with_path(f"{name}-{i}", item, keep) for i, item in enumerate(value)]
        own: dict[str, Any] = {"several": several}
    else:
        own = _with_path(name, value, keep)
    fields = _ROLES[name].model_fields
    source = [key for key in (*_ROLES[name].sources, *_OF_A_SOURCE) if key in fields]
    if name == "teacher":
        source.append("train")  # it is given as the teacher that it is
    unset = {key: fields[key].get_default(call_default_factory=True) for key in source}
    return {**unset, **own}


def _with_path(name: str, value: Any, keep: Kept) -> dict[str, Any]:
    """A model as settings: by its name or path, or by where it is kept."""
    settings = dict(value) if isinstance(value, Mapping) else {"path": value}
    path = settings.get("path")
    if path is not None and not isinstance(path, str | PurePath):
        settings["path"] = keep.model(name, path)
        if name != "student":  # what is trained is float32
            settings.setdefault("dtype", "auto")
    return settings
