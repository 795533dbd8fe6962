"""Scripts for SLURM: read by a real shell, whatever the names are."""

import json
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from brim.errors import ConfigError, RunError
from brim.sweep import load_sweep, points
from brim.sweep.launching import ray_launcher, sbatch_script

SWEEP = "seeds: [1, 2, 3]\nsystems: {a: {recipe: cmudict/llmr}, b: {recipe: cmudict/brim}}"
HOSTILE = [
    "plain",
    "a b",
    "it's",
    '"$(touch hacked)"',
    "`touch hacked`",
    "a\n#SBATCH --wrap=x",
    "%j;x",
]


@pytest.fixture
def found(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(SWEEP)
    return points(load_sweep(path))


def directives(script: str) -> list[str]:
    """The options as SLURM finds them: before the first command."""
    options = []
    for line in script.splitlines():
        if line.startswith("#SBATCH "):
            options.append(line.removeprefix("#SBATCH "))
        elif not line.startswith("#"):
            break
    return options


@pytest.mark.parametrize("name", HOSTILE)
def test_a_shell_reads_the_script_as_it_is_meant(found, tmp_path, monkeypatch, name):
    folder = tmp_path / "work" / name
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    python = tmp_path / "python"
    python.write_text(
        f"#!{sys.executable} -IS\nimport json, os, sys\n"
        "print(json.dumps([sys.argv[1:], os.getcwd(), os.environ['OMP_NUM_THREADS']]))\n"
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    script = sbatch_script(found, Path(f"{name}.yaml"), Path(f"out {name}"), name=name, cpus=3)
    result = subprocess.run(
        ["bash"], input=script, capture_output=True, text=True, timeout=60, check=True,
        env={**os.environ, "SLURM_ARRAY_TASK_ID": "4", "SLURM_CPUS_PER_TASK": "3"},
    )  # fmt: skip
    arguments, where, threads = json.loads(result.stdout)
    assert arguments == [
        "-m", "brim", "sweep", str(folder / f"{name}.yaml"),
        "--out", str(folder / f"out {name}"), "--point", "4",
    ]  # fmt: skip
    assert (where, threads) == (str(folder), "3")
    assert list(tmp_path.rglob("hacked")) == []
    names = {shlex.split(option)[0].partition("=")[0] for option in directives(script)}
    assert names == {"--job-name", "--array", "--cpus-per-task", "--signal"}


def test_a_task_for_each_point(found):
    script = sbatch_script([*found[:3], found[5]], Path("s"), Path("o"), name="s", gpus=2, jobs=7)
    options = directives(script)
    assert "--array=1-3,6%7" in options
    assert {"--gpus-per-task=2", "--ntasks=1", "--cpus-per-task=1"} <= set(options)
    assert sbatch_script(found[4:5], Path("s"), Path("o"), name="s").count("--array=5") == 2
    with pytest.raises(ConfigError, match="whole GPUs"):
        sbatch_script(found, Path("s"), Path("o"), name="s", gpus=0.5)


def test_without_ray_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with pytest.raises(ConfigError, match=r"pip install 'brim-distill\[ray\]'"):
        ray_launcher("local")


def test_an_address_where_nobody_is(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", object())  # never asked
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(RunError, match="nothing listens there"):
            ray_launcher(f"127.0.0.1:{free.getsockname()[1]}")
