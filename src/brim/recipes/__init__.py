"""The recipes that come with the package, named `task/method` or `task/pair/method`."""

from __future__ import annotations

import difflib
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
    return [
        (_name(path), _description(path))
        for path in sorted(ROOT.rglob("*.yaml"))
        if not path.name.startswith("_")
    ]


def run_directory(recipe: Path) -> Path:
    """Where a recipe runs unless told otherwise: `runs/task/method`, or by its file's name."""
    if recipe.is_relative_to(ROOT):
        return Path("runs") / _name(recipe)
    return Path("runs") / recipe.parent.name / recipe.stem


def _name(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").as_posix()


def _description(path: Path) -> str:
    from brim.config.yaml import parse

    document = parse(path.read_text(encoding="utf-8"), lambda line: f"{path}:{line}")
    return str(document.data.get("description", ""))
