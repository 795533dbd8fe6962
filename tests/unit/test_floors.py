"""Files import from floors below their own, and never in a circle."""

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import brim

SOURCE = Path(brim.__file__).parent
ROOT = Path(__file__).parents[2]

FLOORS = [
    {"_version", "seeding", "masking", "returns", "advantages", "divergences", "losses"},
    {"errors", "examples", "types", "support", "config"},
    {"models", "tasks", "metrics"},
    {"objectives"},
    {"training"},
    {"runs"},
    {
        *("recipes", "compare", "judge", "analysis", "plan", "preview", "sweep", "report"),
        *("serve", "quickstart", "release"),
    },
    {"api", "cli", "__main__"},
]
FLOOR = {room: number for number, floor in enumerate(FLOORS) for room in floor}
# Rooms of this floor are independent of each other.
APART = {"models", "tasks", "metrics"}


def module_of(path: Path) -> str:
    parts = ("brim", *path.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in sorted(SOURCE.rglob("*.py"))}
FILES = {name: path for name, path in MODULES.items() if name != "brim"}


@cache
def imports_of(path: Path) -> frozenset[str]:
    """The modules of brim that a file names, also where only types need them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in MODULES else node.module for name in full}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return frozenset(name for name in found if name.partition(".")[0] == "brim")


def room_of(module: str) -> str:
    return module.split(".")[1]


def test_every_room_has_a_floor():
    assert {room_of(name) for name in FILES} == set(FLOOR)


@pytest.mark.parametrize("name", FILES)
def test_imports_go_down(name):
    room = room_of(name)
    for other in imports_of(FILES[name]) - {"brim"}:
        below = room_of(other)
        assert FLOOR[below] <= FLOOR[room], f"{name} imports {other}, which is above it"
        assert below == room or not {below, room} <= APART, f"{name} imports {other}, beside it"


def test_nothing_imports_in_a_circle():
    graph = {name: imports_of(path) - {name} for name, path in FILES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize("folder", ["tests", "benchmarks", "examples", "docs"])
def test_what_stands_beside_the_package_imports_what_there_is(folder):
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "brim":
                module = import_module(str(node.module))
                for name in (alias.name for alias in node.names):
                    known = hasattr(module, name) or f"{node.module}.{name}" in MODULES
                    assert known, f"{path}: {node.module} has no {name}"


def test_few_files_stand_loose():
    loose = {path.stem for path in SOURCE.glob("*.py")} - {"__init__", "__main__", "_version"}
    assert len(loose) <= 10, sorted(loose)
