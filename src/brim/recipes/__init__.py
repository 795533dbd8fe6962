"""The recipes that come with the package, named `task/method` or `task/pair/method`."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Sequence
from os.path import abspath
from pathlib import Path

from brim.errors import ConfigError

ROOT = Path(__file__).parent


def find_recipe(name: str) -> Path:
    """The YAML file of a recipe's name, or of a path to one's own.

    Raises:
        ConfigError: there is none; the text gives the nearest name.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"{name}: no such file; check the path, or see brim recipes")
        return path
    path = ROOT / f"{name}.yaml"
    if not path.is_file():
        own = [file for file in (Path(name, "config.yaml"), Path(f"{name}.yaml")) if file.is_file()]
        near = own or difflib.get_close_matches(name, [known for known, _ in list_recipes()], n=1)
        hint = f"did you mean {near[0]}?" if near else "brim recipes lists them"
        raise ConfigError(f"{name}: no such recipe; {hint}")
    return path


def list_recipes() -> list[tuple[str, str]]:
    """Names and descriptions; files that begin with `_` are what recipes have in common."""
    return [(_name(path), _description(path)) for path in _files()]


def recipe_table(
    recipes: Sequence[tuple[str, str]], words: Sequence[str] = (), *, width: int = 80
) -> str:
    """Return names and descriptions within so many columns, of recipes that have all of the words.

    Raises:
        ConfigError: none has them, in whatever case.
    """
    wanted = [word.casefold() for word in words]
    found = [row for row in recipes if all(word in " ".join(row).casefold() for word in wanted)]
    if not found:
        raise ConfigError(f"{' '.join(words)}: no recipe has all of it; brim recipes lists them")
    margin = max(len(name) for name, _ in found) + 2
    return "\n".join(
        textwrap.fill(f"{name:<{margin}}{description}", width, subsequent_indent=" " * margin)
        for name, description in found
    )


def complete(incomplete: str) -> list[str]:
    """Return the recipes, then the YAML files and folders, whose names begin so."""
    folder = Path(incomplete if incomplete.endswith("/") else Path(incomplete).parent)
    paths = [path for path in sorted(folder.glob("*")) if not path.name.startswith(".")]
    own = [f"{path}/" if path.is_dir() else str(path) for path in paths]
    names = [
        *map(_name, _files()),
        *(name for name in own if name.endswith((".yaml", ".yml", "/"))),
    ]
    return [name for name in names if name.startswith(incomplete)]


def run_directory(recipe: Path) -> Path:
    """Where a recipe runs unless told otherwise: `runs/task/method`, or by its file's name."""
    if recipe.is_relative_to(ROOT):
        return Path("runs") / _name(recipe)
    folder = recipe.parent
    # abspath: `..` has no name of its own, and a link keeps the one that was typed.
    return Path("runs") / ("" if folder == Path() else Path(abspath(folder)).name) / recipe.stem


def _files() -> list[Path]:
    return [path for path in sorted(ROOT.rglob("*.yaml")) if not path.name.startswith("_")]


def _name(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").as_posix()


def _description(path: Path) -> str:
    from brim.config.yaml import parse

    document = parse(path.read_text(encoding="utf-8"), lambda line: f"{path}:{line}")
    return str(document.data.get("description", ""))
