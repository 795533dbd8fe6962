"""Training works with the oldest and the newest transformers that the package allows."""

import os
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from environments import environment_with
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
(ALLOWED,) = (
    requirement
    for requirement in map(Requirement, PROJECT["dependencies"])
    if requirement.name == "transformers"
)
BOUNDS = {one.operator: one.version for one in ALLOWED.specifier}
# Runs of both kinds of model, stages and students that are loaded again, and whatever is saved.
TRAINS = ["tests/e2e/test_train.py", "-k", "run_directory or shared or evaluate_again or layers"]
# "Two ends" are chosen from what random weights write, which another version draws otherwise.
SAVES = ["tests/unit/models/test_saving.py", "-k", "plain_transformers and not ends"]


def test_the_range_has_two_ends_and_the_tested_version_is_in_it():
    assert BOUNDS.keys() == {">=", "<"}
    assert ALLOWED.specifier.contains(version("transformers"))


@pytest.mark.slow
@pytest.mark.parametrize("end", [f"=={BOUNDS['>=']}", f"<{BOUNDS['<']}"], ids=["oldest", "newest"])
def test_training_and_saving(end, tmp_path, capsys):
    python = environment_with(tmp_path / "other", f"transformers{end}")
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
    asks = [python, "-c", "import transformers; print(transformers.__version__)"]
    found = subprocess.run(asks, env=env, capture_output=True, text=True, check=True).stdout.strip()
    for tests in (TRAINS, SAVES):
        command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"transformers {found}: {done.stdout[-3000:]}"
        with capsys.disabled():
            print(f"\ntransformers {found}: {tests[0]}: {done.stdout.splitlines()[-1]}")
