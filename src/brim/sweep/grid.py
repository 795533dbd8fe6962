"""The file of a sweep, and its points: each is one run, its settings resolved, its folder named."""

from __future__ import annotations

import itertools
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from pydantic import Field, field_validator

from brim.config.loading import Config, config_hash, dump_config, load_config
from brim.config.yaml import dump, parse
from brim.errors import ConfigError
from brim.recipes import find_recipe
from brim.support.files import atomic_write_text, disk_errors
from brim.support.progress import Reporter
from brim.training.settings import RunConfig

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
    with suppress(ConfigError):  # of none, or of one that is another sweep's
        if load_sweep(path) == sweep:
            return path
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
    # As a mapping's value: a document of its own would end with `...`.
    text = dump({"v": value}, flow=True).removeprefix("{v: ").rstrip().removesuffix("}")
    try:
        if parse(text, lambda line: key).data == value and "\n" not in text:
            return text
    except ConfigError:
        pass
    raise ConfigError(f"{key}: {value!r} cannot be given on a command line; put it into a recipe")


# A file's name may have 255 bytes; a log's has the seed and an ending too.
LONGEST_LABEL = 180


@dataclass(frozen=True, eq=False)
class Point:
    """One run of a sweep.

    Attributes:
        number: from 1, in the order in which points run: all systems of a seed, then the next seed.
        label: the system with its grid values, such as `brim-k=4`.
        recipe: name or path.
        overrides: the settings on top of it, as `brim train` takes them.
        config: all of it resolved.
    """

    number: int
    label: str
    seed: int
    recipe: str
    overrides: tuple[str, ...]
    config: RunConfig

    @property
    def name(self) -> str:
        """The run directory below the sweep's."""
        return f"{self.label}/seed={self.seed}"

    def arguments(self, out: Path) -> list[str]:
        """What follows `brim` on the command line that makes this run below `out`."""
        where = ["--out", str(out / self.name), "--stages", str(out / "stages")]
        return ["train", self.recipe, *self.overrides, *where]

    def command(self, out: Path) -> str:
        """The same for a shell."""
        return shlex.join(["brim", *self.arguments(out)])

    @cached_property
    def stage_keys(self) -> tuple[str, ...]:
        """What stands for the run's stages: teacher and outputs, then the pre-distilled student.

        Points with a key in common are taken to share that stage. What is compared is more than a
        stage depends on, so points with different keys may share one all the same: then one waits.
        """
        config, seed = self.config, self.config.seed
        shared = {
            "task": config.task,
            "teacher": config.teacher,
            "decoding": [config.decoding.max_prompt_tokens, config.decoding.max_tokens],
            "validation": config.evaluation.max_validation_examples,
            "precision": config.trainer.precision,
        }
        if config.teacher.build is not None or config.teacher.train is not None:
            shared["seed"] = seed if config.teacher.seed is None else config.teacher.seed
        keys = [config_hash(shared)]
        if config.student.predistill is not None:
            keys.append(config_hash({"after": keys[0], "student": config.student, "seed": seed}))
        return tuple(keys)


@dataclass(frozen=True)
class StageTest:
    """The test of a teacher or a student that runs begin with, for the first rows of a report.

    Attributes:
        run: name of a point whose run has the model.
        folder: of its stage, or of its tests alone where it is loaded, below the sweep's `stages`.
        stage_keys: of a point; a test makes no stage, and needs none that is still being made.
    """

    run: str
    stage: str
    folder: str
    stage_keys: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The stage's folder below the sweep's; no system has the name `stages`."""
        return f"stages/{self.folder}"

    def arguments(self, out: Path) -> list[str]:
        """What follows `brim` on the command line of this test."""
        return ["evaluate", str(out / self.run), "--stage", self.stage]

    def command(self, out: Path) -> str:
        """The same for a shell."""
        return shlex.join(["brim", *self.arguments(out)])


Task = Point | StageTest
"""What a sweep runs as a process of its own."""


def points(sweep: SweepConfig, source: str = "sweep") -> list[Point]:
    """The runs of a sweep, every setting of each checked; errors call the file `source`.

    Raises:
        ConfigError: a recipe or setting that cannot be used, or two points with one folder.
    """
    systems = []
    for name, system in sweep.systems.items():
        try:
            systems += list(_combinations(sweep, name, system))
        except ConfigError as error:
            text = str(error).replace("command line: ", "", 1)
            raise ConfigError(f"{source}: systems.{name}: {text}") from None
    # Some file systems take `A` and `a` for one name.
    count = Counter(label.lower() for label, *_ in systems)
    for label, *_ in systems:
        if count[label.lower()] > 1:
            raise ConfigError(
                f"{source}: systems: two of them have the folder {label}; "
                "rename one, or remove the value that the grid has twice"
            )
    return [
        # No setting depends on the seed, so one check is enough for all of them.
        Point(
            number, label, seed, recipe, (*overrides, f"seed={seed}"),
            config.model_copy(update={"seed": seed}),
        )
        for number, (seed, (label, recipe, overrides, config)) in enumerate(
            itertools.product(sweep.seed_list, systems), start=1
        )
    ]  # fmt: skip


def run_point(
    point: Point, out: Path, *, reporter: Reporter | None = None, command: Sequence[str] = ()
) -> dict[str, Any]:
    """Make one run of a sweep in this process; gives and raises what `brim.runs.train` does."""
    from brim.runs.train import train

    return train(
        point.config,
        out / point.name,
        stages_dir=out / "stages",
        reporter=reporter,
        command=command or ["brim", *point.arguments(out)],
    )


_Combination = tuple[str, str, tuple[str, ...], RunConfig]


def _combinations(sweep: SweepConfig, name: str, system: SystemConfig) -> Iterator[_Combination]:
    """Label, recipe, overrides and settings of each combination of a system's grid."""
    settings = [as_overrides(sweep.settings), as_overrides(system.settings)]
    common = {key: values for key, values in sweep.grid.items() if key not in system.grid}
    grid = {**system.grid, **common}
    if "seed" in as_overrides(dict.fromkeys(grid)) or any("seed" in texts for texts in settings):
        raise ConfigError("seed: is what the sweep's `seeds` are for; remove it here")
    for key, values in grid.items():
        if not values:
            raise ConfigError(f"grid: {key}: has no values; give some, or remove it")
    path, short = find_recipe(system.recipe), _short_names(grid)
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        label = "".join([name, *(f"-{short[key]}={_name_of(chosen[key])}" for key in grid)])
        if len(label) > LONGEST_LABEL:
            label = f"{label[: LONGEST_LABEL - 9]}-{config_hash({'label': label})[:8]}"
        texts: dict[str, str] = {}
        for more in (*settings, *(as_overrides({key: chosen[key]}) for key in grid)):
            texts = {key: text for key, text in texts.items() if key not in more} | more
        overrides = tuple(f"{key}={text}" for key, text in texts.items())
        config = load_config(RunConfig, path, overrides, search=find_recipe)
        yield label, system.recipe, overrides, config


def _short_names(keys: Mapping[str, Any]) -> dict[str, str]:
    """The last part of each key, or the whole key where last parts are the same."""
    last = {key: key.rpartition(".")[2] for key in keys}
    count = Counter(last.values())
    return {key: quote(key if count[last[key]] > 1 else last[key], safe="") for key in keys}


def _name_of(value: Any) -> str:
    """A value as a part of a file's name; different values of a type have different names."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        text = f"{Decimal(repr(value)).normalize():e}".replace("e+", "e")  # 1e-4, not 0.0001
        return text if 0 < abs(value) < 0.01 or abs(value) >= 1e5 else repr(value)
    if isinstance(value, Mapping):
        return ",".join(f"{_name_of(key)}={_name_of(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ",".join(map(_name_of, value))
    return quote(str(value), safe="+")
