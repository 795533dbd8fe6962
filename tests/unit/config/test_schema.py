"""The JSON Schema of settings files takes what the loader takes, and finds common mistakes."""

import itertools
import json
import re
from copy import deepcopy
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from makers import configure
from pydantic import ValidationError

from brim.config.loading import dump_config
from brim.config.schema import DIALECT, file_schema
from brim.config.yaml import parse
from brim.judge import JudgeConfig
from brim.recipes import ROOT as RECIPES
from brim.sweep.grid import SweepConfig
from brim.training.settings import RunConfig

ROOT = Path(__file__).parents[3]
CLASSES = {"run": RunConfig, "judge": JudgeConfig, "sweep": SweepConfig}
CHECK = {
    kind: Draft202012Validator(file_schema(cls, f"brim {kind}")) for kind, cls in CLASSES.items()
}
BLOCK = re.compile(r'^```yaml[^\n]*title="(.*?)"[^\n]*\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def mistakes(kind: str, data: object) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in CHECK[kind].iter_errors(data)]


def read(text: str) -> object:
    return parse(text, str).data


def files() -> dict[str, tuple[str, str]]:
    """Kind and text of every settings file that is shipped or shown."""
    found = {}
    for path in RECIPES.rglob("*.yaml"):
        found[str(path.relative_to(RECIPES))] = ("run", path.read_text(encoding="utf-8"))
    for path in (ROOT / "docs" / "results").glob("*.yaml"):
        found[f"results/{path.name}"] = ("sweep", path.read_text(encoding="utf-8"))
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for title, text in BLOCK.findall(page.read_text(encoding="utf-8")):
            if title.startswith("serve"):  # which takes no file
                continue
            kind = "judge" if title.startswith("judge") else "run"
            kind = "sweep" if "\nsystems:" in text else kind
            found[f"{page.relative_to(ROOT)}: {title}"] = (kind, text)
    return found


@pytest.mark.parametrize("kind", CLASSES)
def test_it_is_a_schema_of_its_dialect_that_closes_its_mappings(kind):
    schema = CHECK[kind].schema
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == DIALECT
    assert schema["title"] == f"brim {kind}"
    assert "required" not in json.dumps([*schema, *schema["$defs"].values()])
    for group in (schema, *(group for group in schema["$defs"].values() if "properties" in group)):
        assert group["additionalProperties"] is False
    assert schema["properties"].keys() == {"extends", "variants", *CLASSES[kind].model_fields}


def test_every_file_that_is_shipped_or_shown_passes():
    found = files()
    assert {kind for kind, _ in found.values()} == set(CLASSES)
    assert {
        name: bad for name, (kind, text) in found.items() if (bad := mistakes(kind, read(text)))
    } == {}


WRONG = [
    ("run", "objectiv: {name: brim}", "objectiv"),
    ("run", "objective: {name: brim, kk: 2}", "kk"),
    ("run", "objective: {name: llmr, k: 2}", "'k'"),
    ("run", "objective: {name: brimm}", "brimm"),
    ("run", "optim: {lr: fast}", "fast"),
    ("run", "optim: {lr: 0}", "0"),
    ("run", "optim: {schedule: cosin}", "cosin"),
    ("run", "optim: {betas: [0.9]}", "betas"),
    ("run", "trainer: {max_steps: 1.5}", "1.5"),
    ("run", "trainer: {compile: 1}", "compile"),
    ("run", "teacher: {train: {trainer: {steps: 3}}}", "steps"),
    ("run", "teacher: {build: {family: t6}}", "t6"),
    ("run", "student: {build: {family: gpt2, decoder_layers: 2}}", "decoder_layers"),
    ("run", "task: {name: files, metrics: [chrF]}", "chrF"),
    ("run", "variants: {size: {small: {optim: {rate: 1}}}}", "rate"),
    ("run", "variants: {size: {small: null}}", "None"),
    ("run", "variants: {optim: {small: {}}}", "optim"),
    ("run", "extends: [a.yaml, b.yaml]", "a.yaml"),
    ("judge", "modle: m", "modle"),
    ("judge", "limits: {concurrency: 0}", "0"),
    ("sweep", "systems: {a: {recipe: x, grids: {}}}", "grids"),
    ("sweep", "grid: {objective.k: 2}", "2"),
    ("sweep", "seeds: papers", "papers"),
]


@pytest.mark.parametrize(("kind", "text", "named"), WRONG, ids=lambda value: str(value))
def test_a_wrong_key_type_or_choice_is_found(kind, text, named):
    [mistake] = mistakes(kind, read(text))
    assert named in mistake


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "extends: cmudict/brim",
        "objective: {k: 8}",
        "teacher: {build: {d_model: 8}}",
        "student: {path: null, keep_layers: 2}",
        "variants: null",
        "variants: {size: null, rate: {1: {optim: {lr: 1e-3}}, 2: {}}}",
    ],
)
def test_a_file_may_leave_out_whatever_another_one_has(text):
    assert mistakes("run", read(text)) == []


def paths(data: object, path: tuple = ()) -> list[tuple]:
    """The places of a tree, the mappings and lists among them too."""
    items = data.items() if isinstance(data, dict) else enumerate(data)
    found = []
    for key, value in items:
        found.append((*path, key))
        if isinstance(value, dict | list):
            found += paths(value, (*path, key))
    return found


def changed(data: dict, path: tuple, value: object) -> dict:
    data = deepcopy(data)
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return data


def loads(data: dict) -> bool:
    try:
        RunConfig.model_validate_json(json.dumps(data), strict=True)
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize("name", ["cmudict/anchored", "xsum/ppo_llmr"])
def test_whatever_the_loader_takes_in_place_of_a_value_passes(name):
    data = read(dump_config(configure(name)))
    taken = 0
    for path, value in itertools.product(paths(data), (None, True, 2, 0.5, "x", ["x"], {})):
        other = changed(data, path, value)
        if loads(other):
            taken += 1
            assert mistakes("run", other) == [], (path, value)
    assert taken > 100


def test_an_unknown_key_is_found_in_each_mapping():
    data = read(dump_config(configure("synopsis/brim")))
    groups = [(), *(path for path in paths(data) if isinstance(at(data, path), dict))]
    assert len(groups) > 10
    for path in groups:
        assert mistakes("run", changed(data, (*path, "nonsense"), 1)), path


def at(data: object, path: tuple) -> object:
    for key in path:
        data = data[key]
    return data


def test_descriptions_are_the_docstrings_without_their_line_ends():
    group = CHECK["run"].schema["$defs"]["LoopConfig"]["properties"]["gradient_checkpointing"]
    assert group["description"] == (
        "Keep only what enters each layer, and make the rest again for the gradient: less memory, "
        "and a third more work in an update."
    )
    assert group["default"] is False
    name = CHECK["run"].schema["$defs"]["LLMRConfig"]["properties"]["name"]
    assert name["description"].startswith("LLMR (Li et al. 2024)")
