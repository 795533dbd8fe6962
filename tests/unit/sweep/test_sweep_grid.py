"""From a file to points: what is run, in which folder, and what is refused."""

import re
import shlex
from pathlib import Path

import pytest

from brim.config.loading import load_config
from brim.config.yaml import parse
from brim.errors import ConfigError
from brim.recipes import find_recipe
from brim.sweep import PAPER_SEEDS, Point, load_sweep, points
from brim.sweep.grid import as_overrides, keep_sweep
from brim.training.settings import RunConfig

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def read(text: str) -> list[Point]:
    path = Path("sweep.yaml")
    path.write_text(text, encoding="utf-8")
    return points(load_sweep(path), str(path))


def of(system: str, more: str = "") -> list[Point]:
    return read(f"systems: {{a: {{recipe: cmudict/brim, {system}}}}}\n{more}")


GRID = """\
seeds: [1, 2]
settings: {teacher.seed: 0, student: {predistill: {trainer: {save_every: 50}}}}
grid: {optim.lr: [1e-4, 3e-4]}
systems:
  llmr: {recipe: cmudict/llmr}
  brim: {recipe: cmudict/brim, grid: {objective.k: [2, 4]}}
  seqkd: {recipe: cmudict/seqkd, settings: {trainer: {max_steps: 7}}, grid: {optim.lr: [0.5]}}
"""


def test_a_point_is_a_system_with_its_grid_the_common_grid_and_a_seed():
    found = read(GRID)
    assert [point.name for point in found[:7]] == [
        "llmr-lr=1e-4/seed=1",
        "llmr-lr=3e-4/seed=1",
        "brim-k=2-lr=1e-4/seed=1",
        "brim-k=2-lr=3e-4/seed=1",
        "brim-k=4-lr=1e-4/seed=1",
        "brim-k=4-lr=3e-4/seed=1",
        "seqkd-lr=0.5/seed=1",
    ]
    assert [point.seed for point in found] == [1] * 7 + [2] * 7
    assert [point.number for point in found] == list(range(1, 15))


def test_a_point_is_what_its_command_line_means():
    for point in read(GRID):
        words = shlex.split(point.command(Path("out")))
        assert words[:2] == ["brim", "train"]
        recipe, *rest = words[2:]
        overrides = rest[: rest.index("--out")]
        config = load_config(RunConfig, find_recipe(recipe), overrides, search=find_recipe)
        assert config == point.config
        assert (config.seed, config.teacher.seed) == (point.seed, 0)
        assert config.student.predistill.trainer.save_every == 50
        assert rest[rest.index("--out") :] == [
            "--out", f"out/{point.name}", "--stages", "out/stages",
        ]  # fmt: skip
    assert point.config.trainer.max_steps == 7


def test_the_grid_goes_over_the_system_and_the_system_over_the_sweep():
    own = "settings: {trainer.max_steps: 6, optim: {lr: 2e-3}}, grid: {optim.lr: [4e-3]}"
    (point,) = of(own, "settings: {optim.lr: 1e-3, trainer.max_steps: 5}")
    assert (point.config.optim.lr, point.config.trainer.max_steps) == (4e-3, 6)


def test_sizes_variants_and_mappings_are_grids_too(tmp_path):
    sizes = of("grid: {student.build.d_model: [16, 32]}")
    assert [point.config.student.build["d_model"] for point in sizes] == [16, 32]
    variants = read("systems: {a: {recipe: xsum/brim, grid: {size: [small, large]}}}")
    assert [point.label for point in variants] == ["a-size=small", "a-size=large"]
    assert [point.config.student.path for point in variants] == [
        "google/flan-t5-small", "google/flan-t5-large",
    ]  # fmt: skip
    file = tmp_path / "rates.yaml"
    file.write_text("extends: xsum/brim\nvariants: {rate: {1e-4: {optim: {lr: 1e-4}}, no: {}}}\n")
    (rate,) = read(f"systems: {{a: {{recipe: {file}, grid: {{rate: [1e-4]}}}}}}")
    assert (rate.label, rate.config.optim.lr) == ("a-rate=1e-4", 1e-4)
    (point,) = of("grid: {student.build: [{d_model: 16, layers: 2}]}")
    assert point.label == "a-build=d_model=16,layers=2"
    assert point.config.student.build["layers"] == 2
    assert point.config.student.build["d_ff"] == 192  # merged, as in a recipe


def test_the_whole_key_where_last_parts_are_the_same():
    (point,) = of("grid: {optim.lr: [1], teacher.train.optim.lr: [0.5], objective.k: [3]}")
    assert point.label == "a-optim.lr=1-teacher.train.optim.lr=0.5-k=3"


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("1e-4", "1e-4"),
        ("0.00015", "1.5e-4"),
        ("0.25", "0.25"),
        ("0.0", "0.0"),
        ("200000.0", "2e5"),
        ("10.0", "10.0"),
        ("-1e-3", "-1e-3"),
        ("true", "true"),
        ("null", "null"),
        ("[0.9, 0.999]", "0.9,0.999"),
        ("google/flan-t5", "google%2Fflan-t5"),
        ("../../etc", "..%2F..%2Fetc"),
        ('"a b%$(rm)\\n"', "a%20b%25%24%28rm%29%0A"),
        ("ä", "%C3%A4"),
    ],
)
def test_values_become_names_of_files(value, name, monkeypatch):
    monkeypatch.setattr(
        "brim.sweep.grid.load_config",
        lambda cls, *args, **kwargs: (
            RunConfig.model_construct() if cls is RunConfig else load_config(cls, *args, **kwargs)
        ),
    )
    (point,) = of(f"grid: {{objective.k: [{value}]}}")
    assert point.label == f"a-k={name}"


def test_long_names_are_cut_and_stay_different():
    texts = [f"{'x' * 300}{end} {{source}}" for end in "ab"]
    one, two = of(f"grid: {{task.prompt: ['{texts[0]}', '{texts[1]}']}}")
    assert one.label != two.label
    assert max(len(one.label), len(two.label)) <= 180
    assert (one.config.task.prompt, two.config.task.prompt) == tuple(texts)


TEXTS = [
    "{source}", "say: {source}", "a, [b] #c {source}", "'q' \"d\" \\ {source}", " {source} ",
    "é😀\u2028{source}", "line\nbreak {source}", "- {source}", "{source}: 3", "* {source}",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_text_arrives_as_it_is(text):
    path = Path("out/sweep.yaml")
    read("systems: {a: {recipe: cmudict/brim}}")
    sweep = load_sweep(Path("sweep.yaml")).model_copy(update={"settings": {"task.prompt": text}})
    assert points(sweep)[0].config.task.prompt == text
    assert load_sweep(keep_sweep(sweep, path.parent)) == sweep
    mine = f"# why\n{path.read_text(encoding='utf-8')}"
    path.write_text(mine, encoding="utf-8")
    keep_sweep(load_sweep(path), path.parent)  # the folder of a sweep's own file
    assert path.read_text(encoding="utf-8") == mine
    keep_sweep(load_sweep(Path("sweep.yaml")), path.parent)
    assert "# why" not in path.read_text(encoding="utf-8")


VALUES = [
    1, 1.5e-7, True, None, "1", "true", "null", "", [], {}, [1, "a, b", "x: y", "{z}", None],
    [{"a": 1}],
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES)
def test_values_keep_their_types(value):
    ((key, text),) = as_overrides({"group.key": value}).items()
    assert key == "group.key"
    read_back = parse(text, str).data
    assert (type(read_back), read_back) == (type(value), value)


BRIM = "{recipe: cmudict/brim}"


def with_grid(grid: str) -> str:
    return f"systems: {{a: {{recipe: cmudict/brim, grid: {{{grid}}}}}}}"


def with_settings(settings: str) -> str:
    return f"systems: {{a: {{recipe: cmudict/brim, settings: {{{settings}}}}}}}"


BAD = {
    "systems: {a: {recipe: cmudict/brin}}": (
        "sweep.yaml: systems.a: cmudict/brin: no such recipe; did you mean cmudict/brim?"
    ),
    with_grid("objective.kk: [3]"): (
        "sweep.yaml: systems.a: objective.kk=3: unknown key; did you mean objective.k?"
    ),
    f"systems: {{a: {BRIM}, b: {{recipe: cmudict/llmr}}}}\ngrid: {{objective.k: [2]}}": (
        "systems.b: objective.k=2: "
    ),
    with_grid("optim.lr: [1, -1]"): "systems.a: optim.lr=-1: ",
    with_grid("optim.lr: []"): "systems.a: grid: optim.lr: has no values",
    with_grid("optim: [null], optim.lr: [1]"): "optim.lr: given twice",
    with_grid("seed: [1]"): "systems.a: seed: ",
    with_settings("seed: 1"): "systems.a: seed: ",
    f"systems: {{a: {BRIM}}}\nsettings: {{seed: 1}}": "systems.a: seed: ",
    with_settings("optim: {lr: 1}, optim.lr: 2"): "optim.lr: given twice",
    with_settings("optim: null, optim.lr: 2"): "optim.lr: given twice",
    with_settings("'optim.lr=1 x': 2"): "is no setting",
    with_settings("'optim..lr': 2"): "is no setting",
    f"systems: {{../x: {BRIM}}}": "'../x' cannot be a folder's name",
    f"systems: {{'a b': {BRIM}}}": "'a b' cannot be a folder's name",
    f"systems: {{'..': {BRIM}}}": "'..' cannot be a folder's name",
    f"systems: {{Stages: {BRIM}}}": "'Stages' cannot be a folder's name",
    f'systems: {{"a\\n": {BRIM}}}': "cannot be a folder's name",
    f"systems: {{a: {BRIM}, A: {BRIM}}}": "two of them have the folder a",
    with_grid("objective.k: [2, 2]"): "two of them have the folder a-k=2",
    f"{with_grid('objective.k: [2]')[:-1]}, a-k=2: {BRIM}}}": "two of them have the folder a-k=2",
    f"systems: {{a: {BRIM}}}\nseeds: [1, 1]": "sweep.yaml:2: seeds: a seed is given twice",
    f"systems: {{a: {BRIM}}}\nseeds: []": "at least one seed",
    f"systems: {{a: {BRIM}}}\nseeds: [-1]": "none below 0",
    f"systems: {{a: {BRIM}}}\nseeds: papers": "'paper' or a list",
    "systems: {}": "sweep.yaml:1: systems: ",
    f"systems: {{a: {BRIM}}}\nsytems: {{}}": "sytems: unknown key; did you mean systems?",
    "systems: {a: {recipe: mine.yaml}}": "systems.a: ",
}


@pytest.mark.parametrize("text", BAD)
def test_what_cannot_be_used_is_one_line_that_names_it(text):
    with pytest.raises(ConfigError) as error:
        read(text)
    assert BAD[text] in str(error.value)
    assert "\n" not in str(error.value)


def test_recipes_that_are_files_are_found_from_the_sweep_s_folder(tmp_path, monkeypatch):
    (tmp_path / "of").mkdir()
    (tmp_path / "of" / "mine.yaml").write_text("extends: cmudict/brim\nobjective: {k: 9}")
    (tmp_path / "of" / "sweep.yaml").write_text("systems: {a: {recipe: mine.yaml}}")
    kept = keep_sweep(load_sweep(Path("of/sweep.yaml")), tmp_path / "out")
    monkeypatch.chdir(tmp_path.parent)
    (point,) = points(load_sweep(kept))
    assert point.config.objective.k == 9


def test_points_with_equal_stages_have_equal_keys():
    found = {point.name: point.stage_keys for point in read(GRID)}
    llmr, brim, other = (
        found[f"{name}/seed={seed}"]
        for name, seed in (("llmr-lr=1e-4", 1), ("brim-k=4-lr=3e-4", 1), ("llmr-lr=1e-4", 2))
    )
    assert llmr == brim
    assert llmr[0] == other[0]  # one teacher
    assert llmr[1] != other[1]  # a student for each seed
    own = read(GRID.replace("teacher.seed: 0, ", ""))
    assert own[0].stage_keys[0] != own[-1].stage_keys[0]
    larger = of("grid: {student.build.d_model: [16, 32]}")
    assert larger[0].stage_keys[0] == larger[1].stage_keys[0]
    assert larger[0].stage_keys[1] != larger[1].stage_keys[1]


# Runs, tasks, and systems with each K.
SHIPPED = {
    "cmudict": (70, 1, 1),
    "wordproblems": (70, 1, 1),
    "paper_t5": (195, 3, 3),
    "paper_qwen": (105, 3, 3),
    "paper_sizes": (30, 1, 0),
}


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.filterwarnings("ignore:greedy rollouts")
def test_sweeps_that_are_shipped_load(name):
    found = points(load_sweep(ROOT / "docs" / "results" / f"{name}.yaml"))
    num_runs, num_tasks, num_of_k = SHIPPED[name]
    assert len(found) == num_runs
    assert {point.seed for point in found} == set(PAPER_SEEDS)
    first = found[: len(found) // 5]
    assert {point.seed for point in first} == {PAPER_SEEDS[0]}
    # One teacher a task, whatever the seed.
    assert len({point.stage_keys[0] for point in found}) == num_tasks
    for label, k in (("brim-k=2", 2), ("brim-k=4", 4), ("brim-k=8", 8), ("brim-k=16", 16)):
        of_k = [point.config.objective.k for point in first if point.label.endswith(label)]
        assert of_k == [k] * num_of_k


@pytest.mark.parametrize("name", ["paper_t5", "paper_qwen"])
@pytest.mark.filterwarnings("ignore:greedy rollouts")
def test_other_readings_of_the_paper_are_lines_of_its_sweeps(tmp_path, name):
    text = (ROOT / "docs" / "results" / f"{name}.yaml").read_text(encoding="utf-8")
    for line in ("warmup: micro_batches", "adamw: pytorch"):
        assert f"  # {line}" in text
        text = text.replace(f"  # {line}", f"  {line}")
    path = tmp_path / "other.yaml"
    path.write_text(text, encoding="utf-8")
    shipped = points(load_sweep(ROOT / "docs" / "results" / f"{name}.yaml"))
    for point, printed in zip(points(load_sweep(path)), shipped, strict=True):
        assert point.config.optim.warmup_steps in (156, 313)
        assert point.config.optim.weight_decay == 0.01
        assert point.stage_keys == printed.stage_keys  # the same teachers and students


def test_the_example_of_the_docs_is_55_runs():
    page = (ROOT / "docs" / "sweep.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    found = read(example)
    assert len(found) == 55
    assert "brim-k=4-lr=1e-4/seed=310" in {point.name for point in found}
