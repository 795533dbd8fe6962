"""The built files hold the package whole, describe it, and work away from the checkout."""

import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Mapping
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

from brim import __version__

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "brim"
OFFLINE = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}


def build(folder: Path) -> dict[str, Path]:
    """Build both files; by their kinds, `.whl` and `.gz`."""
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    settled = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
    subprocess.run(command, cwd=ROOT, env=settled, check=True, capture_output=True)
    return {path.suffix: path for path in folder.iterdir()}


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> dict[str, Path]:
    return build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="session")
def metadata(built) -> Message:
    with zipfile.ZipFile(built[".whl"]) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
        return Parser().parsestr(wheel.read(name).decode())


def test_a_second_build_is_the_same(built, tmp_path):
    again = build(tmp_path)
    assert again.keys() == {".whl", ".gz"}
    for kind, path in again.items():
        assert path.name == built[kind].name
        assert path.read_bytes() == built[kind].read_bytes(), path.name


def test_they_hold_the_package_and_nothing_else(built):
    package = {
        f"brim/{path.relative_to(SOURCE)}"
        for path in SOURCE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"brim/py.typed", "brim/recipes/cmudict/brim.yaml", "brim/report/page.js"} <= package
    with zipfile.ZipFile(built[".whl"]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == package
    with tarfile.open(built[".gz"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    beside = {
        *("README.md", "CHANGELOG.md", "LICENSE", "CITATION.cff", "pyproject.toml", "PKG-INFO"),
        *("constraints.txt", "requirements.lock", ".gitignore"),
    }
    assert names == {f"src/{name}" for name in package} | beside


def test_metadata_is_complete(metadata):
    assert (metadata["Name"], metadata["Version"]) == ("brim-distill", __version__)
    assert metadata["License-Expression"] == "Apache-2.0"
    notices = {path.relative_to(ROOT).as_posix() for path in SOURCE.glob("data/*/NOTICE")}
    assert {*metadata.get_all("License-File")} == {"LICENSE", *notices}
    for key in ("Summary", "Author", "Keywords", "Requires-Python"):
        assert metadata[key], key
    kinds = {one.partition(" :: ")[0] for one in metadata.get_all("Classifier")}
    assert {"Development Status", "Intended Audience", "Operating System", "Programming Language",
            "Topic", "Typing"} <= kinds  # fmt: skip
    urls = dict(url.split(", ") for url in metadata.get_all("Project-URL"))
    assert urls.keys() == {"Homepage", "Repository", "Documentation", "Issues", "Changelog"}
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert all(url.startswith(citation["repository-code"]) for url in urls.values())
    assert citation["version"] == __version__
    assert citation["authors"][0]["name"] == metadata["Author"]


def test_the_readme_renders_on_an_index(built, metadata):
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, built.values())]
    check = subprocess.run(command, capture_output=True, text=True)
    assert check.returncode == 0, check.stdout
    text = str(metadata.get_payload())
    here = re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    there = re.findall(r"\]\(([^)]+)\)", text)
    assert len(there) == len(here) > 20
    for target, source in zip(there, here, strict=True):
        if "://" in source:
            assert target == source
            continue
        assert re.match(r"https://\S+/brim-distill/brim/(blob/)?v" + __version__ + "/", target)
        assert target.endswith(f"/v{__version__}/{source}")
        assert ("raw." in target) == source.endswith(".svg")
    assert "title=" not in text  # of a code block, which an index would not color


def run(command: list[str], cwd: Path, env: Mapping[str, str]) -> str:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **env}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def test_the_wheel_works_outside_the_checkout(built, tmp_path):
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    run([*pip, "--target", str(site), str(built[".whl"])], tmp_path, {})
    env = {**OFFLINE, "PYTHONPATH": str(site)}
    where = "import brim; print(brim.__file__)"
    assert run([sys.executable, "-c", where], tmp_path, env).startswith(str(site))
    brim = [sys.executable, "-m", "brim"]
    assert run([*brim, "--version"], tmp_path, env).strip() == __version__
    assert "cmudict/anchored" in run([*brim, "recipes"], tmp_path, env)
    assert "no bad rows" in run([*brim, "data", "cmudict/brim"], tmp_path, env)
    assert (site / "bin" / "brim").is_file()


@pytest.mark.slow
def test_the_wheel_in_a_clean_environment_passes_the_quickstart(built, tmp_path_factory):
    """As the README says; `make release-check` lists what is installed there."""
    folder = tmp_path_factory.getbasetemp() / "clean"
    venv.create(folder, with_pip=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip"]
    install = [*pip, "install", "--quiet"]
    run([*install, "-c", "constraints.txt", "torch"], ROOT, OFFLINE)
    locked = ["--require-hashes", "--no-deps", "-r", "requirements.lock"]
    run([*install, *locked], ROOT, OFFLINE)
    run([*install, "--no-deps", str(built[".whl"])], ROOT, OFFLINE)
    run([*pip, "check"], ROOT, OFFLINE)
    out = folder.with_name("quickstart")
    brim = [str(folder / "bin" / "brim"), "quickstart", "--short", "--out", str(out)]
    assert "anchored" in run(brim, folder, OFFLINE)
    assert (out / "report" / "report.html").is_file()
