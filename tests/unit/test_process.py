import os
import platform
import subprocess
import sys

import pytest
import torch

from brim.errors import ConfigError
from brim.process import MERGE_FREED, make_accelerator, merge_freed_memory

REPORT = """
import os
from brim.process import flush_denormals, prepare_process
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
from brim.process import prepare_process
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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
@pytest.mark.parametrize(
    ("variables", "expected"),
    [({}, MERGE_FREED), ({"GLIBC_TUNABLES": "a.b.c=1"}, "a.b.c=1"), ({"MALLOC_X": "4"}, "None")],
)
def test_program_starts_over_once_where_nothing_is_set(variables, expected):
    script = """
import os, sys
print(os.getpid())
from brim.process import merge_freed_memory
merge_freed_memory()
merge_freed_memory()
print(os.environ.get("GLIBC_TUNABLES"), sys.argv[1:], sys.flags.dev_mode)
"""
    names = ("GLIBC_TUNABLES", "MALLOC_", "LD_PRELOAD")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(names)}
    result = subprocess.run(
        [sys.executable, "-X", "dev", "-c", script, "a b", ""],
        env={**environment, "PYTHONUNBUFFERED": "1", **variables},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    *pids, said = result.stdout.splitlines()
    assert said == f"{expected} ['a b', ''] True"
    assert len(pids) == (1 if variables else 2)
    assert len(set(pids)) == 1


def test_program_with_torch_does_not_start_over(monkeypatch):
    import torch  # noqa: F401

    monkeypatch.setattr(os, "execv", lambda *args: pytest.fail("it did"))
    for name in [name for name in os.environ if name.startswith(("GLIBC_", "MALLOC_", "LD_"))]:
        monkeypatch.delenv(name)
    merge_freed_memory()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_freed_blocks_merge_around_small_objects():
    # Once aligned blocks are freed, one as large as eight of them has room only if the slivers that
    # were cut off them are merged with them.
    script = """
import ctypes
from brim.process import merge_freed_memory, prepare_process
merge_freed_memory()
prepare_process()
libc = ctypes.CDLL(None)
libc.sbrk.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
def block(size):
    found = ctypes.c_void_p()
    libc.posix_memalign(ctypes.byref(found), 64, size)
    return found
def grown(sizes):
    held = [block(size) for size in sizes]
    for one in held:
        libc.free(one)
    return libc.sbrk(0)
first = grown([2_000_000] * 32)
print((grown([16_000_000] * 4) - first) // 1_000_000)
"""
    assert int(run(script)[0]) < 8
