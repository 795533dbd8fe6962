"""The file of a sweep."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from brim.config.loading import Config, dump_config, load_config
from brim.config.yaml import dump, parse
from brim.errors import ConfigError
from brim.recipes import find_recipe
from brim.support.files import atomic_write_text, disk_errors

PAPER_SEEDS = (19083, 34007, 84122, 310, 55080)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,99}\Z")
_TAKEN = ("stages", "logs", "sweep.yaml")


class SystemConfig(Config):
    """One of the systems that are compared."""

    recipe: str
    """A recipe's name, or a YAML file, found from the folder of the sweep's file."""
    settings: dict[str, Any] = Field({})
    """On top of the recipe and of the sweep's settings: a tree, or keys with dots."""
    grid: dict[str, tuple[Any, ...]] = Field({})
    """Setting -> values; each combination is a system of its own. Before the sweep's grid, whose
    values of the same setting it replaces."""


class SweepConfig(Config):
    """A sweep: each system with each combination of its grid, with each seed."""

    description: str = ""
    """One line about it."""
    seeds: Literal["paper"] | tuple[int, ...] = (0,)
    """The runs' seeds; `paper` for the five of the paper."""
    settings: dict[str, Any] = Field({})
    """On top of every recipe: a tree, or keys with dots."""
    grid: dict[str, tuple[Any, ...]] = Field({})
    """Setting -> values, for every system."""
    systems: dict[str, SystemConfig] = Field(min_length=1)
    """Name -> system. The name becomes a folder's."""

    @field_validator("seeds")
    @classmethod
    def _some_seeds_once(cls, seeds: tuple[int, ...] | str) -> tuple[int, ...] | str:
        if not isinstance(seeds, str) and (not seeds or min(seeds) < 0):
            raise ValueError("give at least one seed, and none below 0")
        if len(set(seeds)) < len(seeds) and not isinstance(seeds, str):
            raise ValueError("a seed is given twice; remove one")
        return seeds

    @field_validator("systems")
    @classmethod
    def _names_of_folders(cls, systems: dict[str, SystemConfig]) -> dict[str, SystemConfig]:
        for name in systems:
            if not _NAME.match(name) or name.lower() in _TAKEN:
                raise ValueError(
                    f"{name!r} cannot be a folder's name here; use up to 100 letters, digits and "
                    f". _ + = - and none of {', '.join(_TAKEN)}"
                )
        return systems

    @property
    def seed_list(self) -> tuple[int, ...]:
        """The seeds as numbers."""
        return PAPER_SEEDS if self.seeds == "paper" else self.seeds


def load_sweep(path: Path) -> SweepConfig:
    """Read a sweep's file; recipes that are files get absolute paths.

    Raises:
        ConfigError: the file cannot be read, or a key or value in it cannot be used.
    """
    sweep = load_config(SweepConfig, path, search=find_recipe)
    folder = path.parent.resolve()
    systems = {
        name: system.model_copy(update={"recipe": str(folder / system.recipe)})
        if system.recipe.endswith((".yaml", ".yml"))
        else system
        for name, system in sweep.systems.items()
    }
    return sweep.model_copy(update={"systems": systems})


def keep_sweep(sweep: SweepConfig, out: Path) -> Path:
    """Write the file as it was understood into the sweep's folder; returns its path."""
    path = out / "sweep.yaml"
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, dump_config(sweep))
    return path


def as_overrides(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings as `brim train` takes them on its command line: dotted key -> text of the value.

    Raises:
        ConfigError: a key given twice, also as a part of another one, or no key at all.
    """
    texts: dict[str, str] = {}
    for key, value in _leaves(settings):
        if not all(re.fullmatch(r"[^\s=]+", part) for part in key.split(".")):
            raise ConfigError(f"{key!r} is no setting; write key.sub")
        for other in texts:
            if f"{key}.".startswith(f"{other}.") or other.startswith(f"{key}."):
                raise ConfigError(f"{key}: given twice, also by {other}; remove one")
        texts[key] = _value_text(key, value)
    return texts


def _leaves(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _value_text(key: str, value: Any) -> str:
    """The YAML of a value on one line, which reads back as the value, text as text."""
    text = _flow(value)
    try:
        if parse(text, lambda line: key).data == value and "\n" not in text:
            return text
    except ConfigError:
        pass
    raise ConfigError(f"{key}: {value!r} cannot be given on a command line; put it into a recipe")


def _flow(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_flow, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_flow(k)}: {_flow(v)}' for k, v in value.items())}}}"
    # A mapping's value, not a document of its own, which would end with `...`.
    text = dump({"v": value}).removeprefix("v: ").removesuffix("\n")
    plain = text == value
    return (
        json.dumps(value, ensure_ascii=False) if plain and re.search(r"[\[\]{},:]", text) else text
    )
