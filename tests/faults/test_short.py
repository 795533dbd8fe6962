"""A few faults of every kind; `make faults` puts in all of them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def told() -> subprocess.CompletedProcess:
    # A process of its own, for it forks: threads of other tests would not come along.
    command = [sys.executable, "-m", "tests.faults", "--short"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_all_are_handled(told):
    rows = re.findall(r"\| (.+?) +\|" + r" +([\d,]+) \|" * 4, told.stdout)
    assert told.returncode == 0, told.stderr + told.stdout
    assert {name.split(":")[0] for name, *_ in rows} >= {
        "kill -9 at a random moment", "crash after a rename or fsync",
        "the same, and the power goes", "SIGINT at a random moment",
        "files as large as is allowed", "not finite", "damage",
    }  # fmt: skip
    for name, tried, handled, silent, tracebacks in rows:
        assert (handled, silent, tracebacks) == (tried, "0", "0"), name
