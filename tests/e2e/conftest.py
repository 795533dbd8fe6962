"""Fixtures: the numerals as files, recipes and settings on them."""

import json
import random
from pathlib import Path

import pytest
from pairs import RECIPE, roman

from brim.config.loading import load_config
from brim.training.settings import RunConfig


@pytest.fixture(scope="session")
def numerals(tmp_path_factory) -> Path:
    """A folder of JSONL files with the columns `number` and `roman`."""
    folder = tmp_path_factory.mktemp("numerals")
    numbers = list(range(1, 200))
    random.Random(0).shuffle(numbers)
    for split, part in {
        "train": numbers[:160], "validation": numbers[160:176], "test": numbers[176:],
    }.items():  # fmt: skip
        rows = [json.dumps({"number": f"{n}", "roman": roman(n)}) for n in part]
        (folder / f"{split}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def write_recipe(numerals, tmp_path_factory):
    """`write_recipe(model)` is the path of a recipe on the numerals."""

    def write(model: str) -> Path:
        path = tmp_path_factory.mktemp("recipe") / "numerals.yaml"
        path.write_text(RECIPE.format(data=numerals, model=model), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def make_config(write_recipe):
    """`make_config(model, *overrides)` is a run's settings."""

    def make(model: str, *overrides: str) -> RunConfig:
        return load_config(RunConfig, write_recipe(model), overrides)

    return make
