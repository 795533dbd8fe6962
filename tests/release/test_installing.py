"""What is said of installing is true: extras, hashes, the image, and what a release demands."""

import re
import shlex
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from brim import __version__

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SOURCES = sorted((ROOT / "src").rglob("*.py"))
# In a clone, as long as no index has brim; a message finds brim installed, and then pip does.
IN_A_CLONE = re.compile(r"pip install '\.\[([\w,-]+)\]'")
INSTALLED = re.compile(r"pip install 'brim-distill\[([\w,{}-]+)\]'")


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def pins(name: str) -> dict[str, str]:
    found = re.findall(r"^([\w.-]+)==([\w.]+)", read(ROOT / name), re.M)
    return {canonicalize_name(package): version for package, version in found}


def named(pattern: re.Pattern[str], text: str) -> set[str]:
    return {extra for names in pattern.findall(text) for extra in names.split(",")}


def test_pages_name_extras_that_exist_as_they_are_installed_today():
    for page in PAGES:
        text = read(page)
        assert named(IN_A_CLONE, text) | named(INSTALLED, text) <= EXTRAS.keys(), page
        every = re.findall(r"pip install [^\n`]*\[[^\n`]*", text)
        good = IN_A_CLONE.findall(text) + INSTALLED.findall(text)
        assert len(every) == len(good), f"{page}: {every}"
        assert not INSTALLED.search(text) or page.name == "README.md", page  # which explains it
    said = read(ROOT / "README.md").partition("## Installing")[2]
    users = EXTRAS.keys() - {"dev", "docs", "release"}  # the others are the Makefile's
    assert not [extra for extra in users if f"`{extra}`" not in said]


def test_messages_name_extras_that_exist():
    found = set()
    for source in SOURCES:
        text = read(source)
        extras = {extra for extra in named(INSTALLED, text) if "{" not in extra}
        assert extras <= EXTRAS.keys(), source
        found |= extras
        assert text.count("brim-distill") == len(INSTALLED.findall(text)), source
    assert found == {"bitsandbytes", "judge", "lora", "ray", "serve", "vllm"}
    # Those that a setting names.
    assert {"tensorboard", "trackio", "wandb", "torchao"} <= EXTRAS.keys()


def test_pip_needs_no_index_to_find_what_a_message_names():
    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps"]
    done = subprocess.run(
        [*pip, "--dry-run", "brim-distill[serve]"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_lock_is_of_the_constraints_and_has_hashes():
    locked, constraints = pins("requirements.lock"), pins("constraints.txt")
    assert locked.items() <= constraints.items(), "run: make lock"
    for block in re.split(r"\n(?=[\w.-]+==)", read(ROOT / "requirements.lock"))[1:]:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), block
    assert "://" not in read(ROOT / "requirements.lock")


def test_the_lock_is_complete_but_for_torch():
    locked, wanted, seen = pins("requirements.lock"), [*PROJECT["dependencies"]], set()
    while wanted:
        requirement = Requirement(wanted.pop())
        name = canonicalize_name(requirement.name)
        applies = any(
            requirement.marker is None or requirement.marker.evaluate({"extra": extra})
            for extra in ("", *requirement.extras)
        )
        if name in {*seen, "torch"} or not applies:
            continue
        seen.add(name)
        assert name in locked, f"{name}: run make lock"
        assert requirement.specifier.contains(locked[name]), requirement
        try:
            wanted += [one for one in requires(name) or [] if "extra ==" not in one]
        except PackageNotFoundError:
            pytest.fail(f"{name} is not installed")
    assert "torch" not in locked


def test_the_image_copies_what_there_is():
    lines = read(ROOT / "Dockerfile").replace("\\\n", " ").splitlines()
    sent = {line[1:] for line in read(ROOT / ".dockerignore").splitlines() if line[0] == "!"}
    copied = set()
    for words in (shlex.split(line) for line in lines if line.startswith("COPY ")):
        copied |= {*words[1:-1]}
    assert copied == sent
    assert all((ROOT / name).exists() for name in copied)
    (version,) = re.findall(r"^FROM python:([\d.]+)-slim$", "\n".join(lines), re.M)
    assert SpecifierSet(PROJECT["requires-python"]).contains(version)
    assert f"Programming Language :: Python :: {version}" in PROJECT["classifiers"]
    (entry,) = (line for line in lines if line.startswith("ENTRYPOINT "))
    assert entry == f'ENTRYPOINT ["{next(iter(PROJECT["scripts"]))}"]'
    assert [line for line in lines if line.startswith("USER ")] == ["USER 1000"]


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.mark.release
def test_the_checkout_is_the_version():
    assert not git("status", "--porcelain"), "commit first"
    assert git("remote", "get-url", "origin").removesuffix(".git") == PROJECT["urls"]["Repository"]
    assert f"v{__version__}" in git("tag", "--points-at", "HEAD").split()
    heading = rf"^## \[{re.escape(__version__)}\] - \d{{4}}-\d\d-\d\d$"
    assert re.search(heading, read(ROOT / "CHANGELOG.md"), re.M), "CHANGELOG.md: date the version"
    cited = yaml.safe_load(read(ROOT / "CITATION.cff"))
    assert cited["version"] == __version__
    assert "date-released" in cited
