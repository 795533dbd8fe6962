import os
import subprocess
import sys

import pytest
import torch

from brim.errors import ConfigError
from brim.training.accelerator import make_accelerator

REPORT = """
import os
from brim.cli.process import flush_denormals, prepare_process
prepare_process()
import torch
flush_denormals(True)
smallest = torch.empty(1_000_000)
smallest.view(torch.int32).fill_(71362)  # 1e-40: fill_(1e-40) would flush it
halves = smallest * 0.5
print(os.environ.get("GOMP_SPINCOUNT"), int(halves.view(torch.int32).count_nonzero()))
"""


def run(script: str, **variables: str) -> list[str]:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    result = subprocess.run(
        [sys.executable, "-c", script],
        env=environment | variables, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return result.stdout.split()


def test_threads_spin_for_a_while_and_flush_denormals():
    spin_count, denormals = run(REPORT)
    assert int(spin_count) > 0
    assert denormals == "0"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "None")],
)
def test_what_is_set_already_is_left_alone(variables, expected):
    assert run(REPORT, **variables)[0] == expected


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
@pytest.mark.parametrize(("variables", "kept"), [({}, True), ({"MALLOC_ARENA_MAX": "4"}, False)])
def test_freed_memory_is_kept(variables, kept):
    script = """
import ctypes
import resource
from brim.cli.process import prepare_process
prepare_process()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def touch():
    block = ctypes.c_void_p(libc.malloc(100_000_000))
    libc.memset(block, 1, 100_000_000)
    libc.free(block)
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = int(run(script, **variables)[0])  # of 24,000 pages
    assert faults < 10 if kept else faults > 1000


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
@pytest.mark.parametrize(
    ("device", "remedy"), [(False, "set ACCELERATE_USE_CPU=true, or"), (True, "by torchrun or")]
)
def test_processes_that_accelerate_does_not_see_are_refused(monkeypatch, variable, device, remedy):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: device)
    monkeypatch.setenv(variable, "2")
    with pytest.raises(ConfigError, match=f"^{variable}=2, .* {remedy} .*unset {variable}$"):
        make_accelerator()


@pytest.mark.parametrize("size", ["1", "", "many"])
def test_one_process_is_one_process(monkeypatch, size):
    monkeypatch.setenv("WORLD_SIZE", size)
    assert make_accelerator().num_processes == 1
