"""Settings from Python: names, mappings, objects, single keys, and what takes the place of what."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from brim.config.loading import dump_config
from brim.errors import ConfigError
from brim.objectives.settings import BRIMConfig
from brim.recipes.given import configure as from_python

configure = partial(from_python, keep=None)  # nothing is in memory here
MODELS = {"teacher": "a/teacher", "student": "a/student"}
WHOLE = {"task": "cmudict", **MODELS, "objective": "brim", "trainer": {"max_steps": 3}}


def test_overrides_are_above_sections_and_these_above_the_recipe():
    config = configure(
        "cmudict/brim",
        {"trainer.max_steps": np.int64(7), "optim": {"lr": np.float32(0.5)}},
        {"trainer": {"max_steps": 5, "save_every": 3}},
    )
    assert (config.trainer.max_steps, config.trainer.save_every, config.optim.lr) == (7, 3, 0.5)
    assert config.objective.k == configure("cmudict/brim", {}, {}).objective.k


@pytest.mark.parametrize("given", ["llmr", {"name": "llmr"}])
def test_another_method_has_none_of_the_settings_of_the_first(given):
    found = configure("cmudict/brim", {}, {"objective": given}).objective
    assert found.name == "llmr"
    assert configure("cmudict/brim", {"objective": given}, {}).objective == found


def test_objects_of_settings():
    assert configure("cmudict/llmr", {}, {"objective": BRIMConfig(k=8)}).objective.k == 8
    config = configure(WHOLE, {}, {})
    assert dump_config(configure(config, {}, {})) == dump_config(config)
    assert configure(config, {"seed": 5}, {}).seed == 5


def test_without_a_recipe_the_sections_say_all():
    config = configure(None, {}, {"task": "cmudict", **MODELS, "objective": "anchored"})
    assert (config.task.name, config.objective.name) == ("cmudict", "anchored")
    assert (config.teacher.path, config.student.path) == ("a/teacher", "a/student")
    assert (config.trainer.num_epochs, config.trainer.max_steps) == (1, None)


def test_a_model_takes_the_place_of_the_recipes():
    built = configure("cmudict/brim", {}, {})
    assert built.teacher.build
    assert built.teacher.train
    assert built.student.predistill
    config = configure("cmudict/brim", {}, MODELS)
    assert (config.teacher.path, config.teacher.train) == ("a/teacher", None)
    assert config.student.predistill == built.student.predistill
    served = {
        "server": "http://localhost:1",
        "model": "m",
        "key_env": "K",
        "requests": {"tokens": 9},
    }
    behind = configure(WHOLE, {}, {"teacher": {**served, "path": None}})
    assert configure(behind, {}, {"teacher": Path("a/teacher")}) == configure(WHOLE, {}, {})
    several = configure(WHOLE, {}, {"teacher": ["a/b", {"path": "c/d", "weight": 2.0}]})
    assert [one.path for one in several.teacher.several or ()] == ["a/b", "c/d"]


def test_columns_of_a_file_are_found_by_its_first_row_unless_they_are_named(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"question": "?", "answer": "!", "hint": "…"}) + "\n")
    task = configure({**WHOLE, "task": file}, {}, {}).task
    assert (task.train, task.prompt_column, task.target_column) == (str(file), "question", "answer")
    task = configure(WHOLE, {"task.prompt": "{hint}"}, {"task": str(file)}).task
    assert (task.prompt, task.target_column) == ("{hint}", "target")
    # A recipe on files keeps its columns, and none of its splits.
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "task: {name: files, train: a.jsonl, test: b.jsonl, prompt_column: hint, "
        "target_column: answer}\nteacher: {path: a}\nstudent: {path: b}\n"
        "trainer: {max_steps: 1}\n"
    )
    task = configure(recipe, {}, {"task": file}).task
    assert (task.prompt_column, task.test) == ("hint", None)


@pytest.mark.parametrize(
    ("recipe", "overrides", "sections", "text"),
    [
        ("cmudict/bri", {}, {}, "no such recipe; did you mean cmudict/brim"),
        ("cmudict/brim", {"trainer.max_stepz": 1}, {}, "from Python: trainer.max_stepz: unknown"),
        ("cmudict/brim", {}, {"max_steps": 1}, "did you mean trainer.max_steps"),
        ("cmudict/brim", {}, {"trainer": {"max_steps": "x"}}, '"x" must be a whole number'),
        ("cmudict/brim", {1: 2}, {}, "1: write a setting as key.sub"),
        ("cmudict/brim", {"optim..lr": 2}, {}, "write a setting as key.sub"),
        ("cmudict/brim", {"optim.lr": {1, 2}}, {}, "optim.lr: set is no type of a setting"),
        (3, {}, {}, "int is no recipe"),
        (None, {}, MODELS, "from Python: task: missing"),
        (WHOLE, {"trainer.patience": 0}, {}, "trainer.patience: 0 must be at least 1"),
        (WHOLE, {"trainer.callbacks": ["a.b"]}, {}, "write MODULE:NAME"),
    ],
)
def test_mistakes_are_a_line(recipe, overrides, sections, text):
    with pytest.raises(ConfigError) as caught:
        configure(recipe, overrides, sections)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
