"""Of all tests: the command line in this process, where torch is imported already."""

import gc
import io
import sys

import pytest
from hypothesis import HealthCheck, settings

import brim.cli

# No test depends on how fast, or how busy, a machine is.
settings.register_profile("brim", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("brim")


def pytest_collection_finish():
    """Leave modules out of garbage collection, which accelerate does after each training."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def brim_says(tmp_path, monkeypatch, capsys):
    """Exit code, standard output and standard error of a command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("prepare_process", "leave_processes"):
        monkeypatch.setattr(brim.cli, name, lambda: None)

    def run(*arguments, stdin=""):
        monkeypatch.setattr(sys, "argv", ["brim", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            brim.cli.main()
        return exit.value.code or 0, *capsys.readouterr()

    return run
