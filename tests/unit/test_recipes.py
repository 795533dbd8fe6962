"""Every recipe that is shipped loads, and the methods of a task differ in their objective only."""

import gzip
from pathlib import Path

import pytest
from makers import configure

from brim.config.loading import dump_config, load_config
from brim.errors import ConfigError
from brim.objectives import OBJECTIVES, make_objective
from brim.objectives.settings import InductionConfig
from brim.recipes import find_recipe, list_recipes
from brim.training.settings import RunConfig

ROOT = Path(__file__).parents[2]
NAMES = [name for name, _ in list_recipes()]
TASKS = ("cmudict", "synopsis", "wordproblems")
DIVERGENCES = {"seqkd", "kl", "rkl", "js", "tvd"}
VARIANTS = {
    "llmr_mean": "llmr",
    "llmr_min_var": "llmr",
    "ppo_anchored": "ppo_llmr",
}
DECODER_ONLY = {
    *("cmudict/anchored_llama", "cmudict/anchored_other_tokenizer"),
    *("synopsis/anchored_smollm2", "wordproblems/anchored_smollm2", "wordproblems/brim_smollm2"),
}
METHODS = {*OBJECTIVES, *VARIANTS}

each_task = pytest.mark.parametrize("task", TASKS)


def objective(name: str, *leave_out: str) -> dict:
    return configure(name).objective.model_dump(exclude=set(leave_out))


def test_each_task_has_a_recipe_of_each_method():
    bundled = {name for name in NAMES if name.startswith(TASKS)}
    expected = {f"{task}/{method}" for task in TASKS for method in METHODS}
    assert bundled == expected | DECODER_ONLY


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:greedy rollouts")
def test_recipe_loads(name, tmp_path):
    config = configure(name)
    assert config.description
    assert make_objective(config.objective, config.decoding)
    # What is written into a run directory can be run again.
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert load_config(RunConfig, path) == config


@each_task
@pytest.mark.parametrize("method", sorted(METHODS))
def test_methods_differ_in_the_objective_only(task, method):
    config, llmr = configure(f"{task}/{method}"), configure(f"{task}/llmr")
    assert config.task.name == task
    assert config.objective.name == VARIANTS.get(method, method)
    assert config.student.predistill is not None
    own = {"description", "objective", "optim"}
    assert config.model_dump(exclude=own) == llmr.model_dump(exclude=own)
    # Gradients of a divergence are of another size, so one learning rate is that family's.
    of_family = configure(f"{task}/kl") if method in DIVERGENCES else llmr
    # Anchored advantages take larger rates, and have their own where one was measured.
    own = {"lr"} if method == "anchored" else set()
    assert config.optim.model_dump(exclude=own) == of_family.optim.model_dump(exclude=own)


@each_task
def test_variants_differ_in_what_they_are_named_for(task):
    for name in ("llmr_mean", "llmr_min_var"):
        assert objective(f"{task}/{name}", "baseline") == objective(f"{task}/llmr", "baseline")
    assert configure(f"{task}/llmr_mean").objective.baseline == "mean"
    assert configure(f"{task}/llmr_min_var").objective.baseline == "min_variance"
    ppo = objective(f"{task}/ppo_anchored")
    assert ppo == {**objective(f"{task}/ppo_llmr"), "critic": "anchored"}
    of_blocks = ("name", "k", "tail")
    assert objective(f"{task}/brim", *of_blocks) == objective(f"{task}/llmr", "name")


@each_task
def test_returns_are_induced_alike(task):
    shared = set(InductionConfig.model_fields)
    llmr = configure(f"{task}/llmr").objective.model_dump(include=shared)
    for method in ("brim", "ppo_llmr", "ppo_brim"):
        assert configure(f"{task}/{method}").objective.model_dump(include=shared) == llmr
    assert configure(f"{task}/ppo_brim").objective.k == configure(f"{task}/brim").objective.k


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean wordproblems/llmr"):
        find_recipe("wordproblem/llmr")


def test_a_run_directory_or_a_file_without_its_ending_is_offered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs/cmudict/brim").mkdir(parents=True)
    Path("runs/cmudict/brim/config.yaml").touch()
    Path("mine.yaml").touch()
    with pytest.raises(ConfigError, match=r"did you mean runs/cmudict/brim/config\.yaml\?"):
        find_recipe("runs/cmudict/brim")
    with pytest.raises(ConfigError, match=r"did you mean mine\.yaml\?"):
        find_recipe("mine")


def test_settings_of_all_recipes_are_those_that_are_kept():
    """A change of any key, default or order shows here; runs of before must still resume.

    Where it is meant, write the text anew: it is `# name` and `dump_config` of each recipe.
    """
    kept = gzip.decompress((ROOT / "tests" / "data" / "recipes.txt.gz").read_bytes()).decode()
    texts = dict(part.split("\n", 1) for part in kept.removeprefix("# ").split("\n# "))
    assert {name: dump_config(configure(name)).rstrip("\n") for name in NAMES} == {
        name: text.rstrip("\n") for name, text in texts.items()
    }
