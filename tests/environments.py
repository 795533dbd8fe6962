"""Environments of other versions, beside the one that the tests run in."""

import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest


def environment_with(folder: Path, requirement: str) -> Path:
    """The Python of a new environment with a requirement, which borrows all else from this one.

    The test is skipped where the requirement cannot be had.
    """
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    install = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", requirement], capture_output=True, text=True
    )
    if install.returncode:
        pytest.skip(
            f"{requirement} cannot be installed: {install.stderr.strip().splitlines()[-1:]}"
        )
    paths = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    site = subprocess.run([python, "-c", paths], capture_output=True, text=True, check=True)
    # Searched last, so what was just installed comes first.
    borrowed = dict.fromkeys(sysconfig.get_paths()[key] for key in ("purelib", "platlib"))
    (Path(site.stdout.strip()) / "borrowed.pth").write_text("\n".join(borrowed), encoding="utf-8")
    return python
