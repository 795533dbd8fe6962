"""A file imports only from floors below its own; the rooms of floor 2 never import each other."""

import ast
from pathlib import Path

import pytest

import brim

SOURCE = Path(brim.__file__).parent

FLOORS = [
    {
        "_version",
        "seeding",
        "masking",
        "returns",
        "advantages",
        "divergences",
        "losses",
        "numerals",
    },
    {"errors", "types", "yaml12", "config_errors", "config", "files", "timing", "progress"}
    | {"seals"}
    | {"bucketing", "process", "plotting"},
    {"models", "tasks", "metrics", "judge"},
    {"objectives"},
    {
        "ordering",
        "settings",
        "optimization",
        "resuming",
        "sharding",
        "checkpoints",
        "tracking",
        "evaluation",
    }
    | {"evaluation", "predictions", "written", "journal", "stages", "learner", "trainer"},
    {"rundir", "materials", "pipeline", "results", "runs"} | {"comparison", "judging", "analysis"},
    {"report", "recipes", "quickstart", "plan", "sweep"},
    {"cli"},
    {"__main__"},
]
FLOOR = {room: number for number, floor in enumerate(FLOORS) for room in floor}
# Rooms of these floors are independent of each other.
SEPARATE = {2}


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module]
            if node.module == "brim":
                modules = [f"brim.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            continue
        rooms |= {module.split(".")[1] for module in modules if module.startswith("brim.")}
    return rooms


FILES = [path for path in sorted(SOURCE.rglob("*.py")) if room_of(path) != "__init__"]


def test_every_room_has_a_floor():
    assert {room_of(path) for path in FILES} == set(FLOOR)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_down(path):
    room = room_of(path)
    for other in imported_rooms(path) - {room}:
        assert FLOOR[other] <= FLOOR[room], f"{room} imports {other}, which is above it"
        if FLOOR[other] == FLOOR[room]:
            assert FLOOR[room] not in SEPARATE, f"{room} imports {other}, a room of its own floor"
