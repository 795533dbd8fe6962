"""Every recipe that is shipped loads, and the methods of a task differ in their objective only."""

import pytest

from brim.config import dump_config, load_config
from brim.errors import ConfigError
from brim.objectives import OBJECTIVES
from brim.recipes import find_recipe, list_recipes
from brim.settings import RunConfig

NAMES = [name for name, _ in list_recipes()]


def load(name: str) -> RunConfig:
    return load_config(RunConfig, find_recipe(name), search=find_recipe)


def test_names():
    bundled = {f"{t}/{m}" for t in ("cmudict", "synopsis", "wordproblems") for m in OBJECTIVES}
    assert set(NAMES) == bundled | {"wordproblems/brim_smollm2"}


@pytest.mark.parametrize("name", NAMES)
def test_recipe_loads(name, tmp_path):
    config = load(name)
    task, method = name.split("/")
    assert config.task.name == task
    assert config.objective.name == method.split("_")[0]
    assert config.description
    assert config.objective.build(config.decoding.build())
    # What is written into a run directory can be run again.
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert load_config(RunConfig, path) == config


@pytest.mark.parametrize("task", ["cmudict", "synopsis", "wordproblems"])
def test_methods_differ_in_the_objective_only(task):
    llmr, brim = load(f"{task}/llmr"), load(f"{task}/brim")
    different = {"objective", "description"}
    assert llmr.model_dump(exclude=different) == brim.model_dump(exclude=different)
    own = {"name", "k", "tail"}
    assert llmr.objective.model_dump(exclude=own) == brim.objective.model_dump(exclude=own)


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean wordproblems/llmr"):
        find_recipe("wordproblem/llmr")
