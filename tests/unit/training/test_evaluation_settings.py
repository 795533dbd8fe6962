"""How the settings say what an evaluation writes, and that old runs keep theirs."""

import pytest

from brim.config.loading import config_hash, dump_config, load_config, without_incidental
from brim.config.yaml import dump, parse
from brim.errors import ConfigError, RunError
from brim.models.settings import EvaluationDecoding
from brim.recipes import find_recipe
from brim.runs.directory import RunDirectory
from brim.runs.train import begin_run, open_run
from brim.support.files import atomic_write_json, atomic_write_text
from brim.training.settings import RunConfig


def make_config(*overrides: str) -> RunConfig:
    return load_config(RunConfig, find_recipe("cmudict/brim"), overrides, search=find_recipe)


def test_greedy_is_the_default():
    decoding = EvaluationDecoding().build(9, 100)
    assert decoding == make_config("decoding.max_tokens=9").decoding.greedy(100)
    assert EvaluationDecoding().describe() == {"strategy": "greedy"}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["strategy=beam"], {"strategy": "beam", "num_beams": 4, "length_penalty": 1.0}),
        (
            ["strategy=beam", "num_beams=2", "length_penalty=0"],
            {"strategy": "beam", "num_beams": 2, "length_penalty": 0.0},
        ),
        (
            ["strategy=sampling", "temperature=0.5", "top_k=3", "num_samples=8"],
            {"strategy": "sampling", "temperature": 0.5, "top_k": 3, "top_p": None,
             "num_samples": 8},
        ),
    ],
)  # fmt: skip
def test_what_is_given_reaches_the_decoding(overrides, expected):
    config = make_config(*(f"evaluation.decoding.{item}" for item in overrides))
    assert config.evaluation.decoding.describe() == expected
    decoding = config.evaluation.decoding.build(7, 50)
    assert (decoding.max_tokens, decoding.batch_tokens) == (7, 50)
    for name in expected.keys() - {"num_samples"}:
        assert getattr(decoding, name) == expected[name]
    assert decoding.engine == ("generate" if expected["strategy"] == "beam" else "loop")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["num_beams=8"], "num_beams=8: is for strategy beam, not greedy"),
        (["num_beams=4"], "num_beams=4: is for strategy beam, not greedy"),
        (["length_penalty=1.0"], "length_penalty=1.0: is for strategy beam, not greedy"),
        (["temperature=1.0"], "temperature=1.0: is for strategy sampling, not greedy"),
        (["top_k=5"], r"top_k=5: is for strategy sampling.*\(null\)"),
        (["strategy=sampling", "num_beams=4"], "num_beams=4: is for strategy beam, not sampling"),
        (["strategy=beam", "num_samples=3"], r"num_samples=3: is for strategy sampling.*\(1\)"),
        (["strategy=beam", "top_p=0.9"], "top_p=0.9: is for strategy sampling"),
        (["strategy=beam", "num_beams=0"], "num_beams=0: 0 must be "),
        (["strategy=beam", "length_penalty=.nan"], "length_penalty=.nan: "),
        (["strategy=beams", "num_beams=4"], "strategy=beams: .*did you mean beam"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_in_a_line(overrides, message):
    with pytest.raises(ConfigError, match=f"evaluation.decoding.{message}") as caught:
        make_config(*(f"evaluation.decoding.{item}" for item in overrides))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", ["top_k=3", "top_p=0.9"])
def test_greedy_rollouts_have_no_settings_of_samples(given):
    message = rf"decoding.{given}: is for strategy sampling, not greedy; .*\(null\)"
    with pytest.raises(ConfigError, match=message):
        make_config("decoding.strategy=greedy", f"decoding.{given}")
    assert make_config(f"decoding.{given}")
    assert make_config("decoding.strategy=greedy", "decoding.temperature=0.5")


def write_config(tmp_path, decoding):
    stored = parse(dump_config(make_config()), str).data
    stored["evaluation"]["decoding"] = decoding
    path = tmp_path / "config.yaml"
    atomic_write_text(path, dump(stored))
    return path


def test_another_strategy_is_chosen_for_a_run_that_has_settings_of_its_own(tmp_path):
    sampled = {"strategy": "sampling", "temperature": 0.5}
    path = write_config(tmp_path, EvaluationDecoding(**sampled).model_dump())
    beam = "evaluation.decoding.strategy=beam"
    with pytest.raises(ConfigError, match=r"evaluation.decoding.temperature: is for strategy"):
        load_config(RunConfig, path, [beam])
    config = load_config(RunConfig, path, [beam, "evaluation.decoding.temperature=null"])
    assert config.evaluation.decoding == EvaluationDecoding(strategy="beam")


@pytest.fixture
def old_run(tmp_path):
    """A run directory of a version that had no `evaluation.decoding`."""
    out = tmp_path / "run"
    with open_run(out, make_config(), "never"):
        begin_run(out, make_config(), [], {})
    stored = parse((out / "config.yaml").read_text(), str).data
    del stored["evaluation"]["decoding"]
    atomic_write_text(out / "config.yaml", dump(stored))
    matters = without_incidental(RunConfig, stored)
    manifest = {**RunDirectory(out).manifest(), "config_hash": config_hash(matters)}
    for newer in ("config_sha256", "sealed", "models"):
        del manifest[newer]
    atomic_write_json(out / "manifest.json", manifest)
    return out


def test_a_run_of_an_older_version_can_be_resumed(old_run):
    with open_run(old_run, make_config("description=other"), "must"):
        pass


def test_what_a_resume_may_change_is_written_even_if_the_first_is_killed(old_run, monkeypatch):
    def killed(path, text):
        raise KeyboardInterrupt

    for description in ("other", "another"):  # such as a teacher's server that moved, twice
        moved = make_config(f"description={description}")
        with monkeypatch.context() as patch, open_run(old_run, moved, "must"):
            patch.setattr("brim.runs.train.atomic_write_text", killed)
            with pytest.raises(KeyboardInterrupt):
                begin_run(old_run, moved, [], {})
        with open_run(old_run, moved, "must"):
            begin_run(old_run, moved, [], {})
        assert RunDirectory(old_run).settings()["description"] == description


@pytest.mark.parametrize(
    ("override", "change"),
    [
        ("evaluation.decoding.strategy=beam", 'evaluation.decoding.strategy: "greedy" → "beam"'),
        ("seed=5", "seed: 0 → 5"),
        ("teacher.train=null", "teacher.train: {.* → null"),
        ("objective.k=4", "objective.k: 2 → 4"),
        ("objective={name: seqkd}", 'objective.name: "brim" → "seqkd"'),
    ],
)
def test_an_old_run_with_other_settings_is_refused(old_run, override, change):
    with (
        pytest.raises(RunError, match=rf"other settings \({change}\);"),
        open_run(old_run, make_config(override), "auto"),
    ):
        pass


def test_settings_that_somebody_edited_are_no_proof(old_run):
    path = old_run / "config.yaml"
    path.write_text(path.read_text().replace("seed: 0\n", "seed: 5\n", 1))
    with (
        pytest.raises(RunError, match="other settings .*config.yaml was edited"),
        open_run(old_run, make_config("seed=5"), "auto"),
    ):
        pass
