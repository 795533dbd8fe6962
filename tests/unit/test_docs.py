"""The documentation says what is there: commands parse, links resolve, settings are up to date."""

import doctest
import re
import runpy
import shlex
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import pytest
from pydantic import BaseModel
from typer.main import get_command

from brim.cli import app
from brim.cli.app import overrides_and_paths
from brim.config.loading import load_config
from brim.config.yaml import parse
from brim.judge import JudgeConfig
from brim.preview import DataConfig
from brim.recipes import find_recipe
from brim.serve.settings import ServeConfig
from brim.sweep import load_sweep, points
from brim.training.settings import RunConfig

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```(\w+)?([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^]]*\]\(([^)\s]+)\)|!\[[^]]*\]\(([^)\s]+)\)")
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


class Block(NamedTuple):
    language: str
    title: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [
        Block(language, "".join(re.findall('title="(.*?)"', rest)), text)
        for language, rest, text in FENCE.findall(page.read_text(encoding="utf-8"))
    ]


def prose(page: Path) -> str:
    return re.sub("`[^`]*`", "", FENCE.sub("", page.read_text(encoding="utf-8")))


def commands(page: Path) -> list[list[str]]:
    """The arguments of each call of `brim` in the shell blocks of a page."""
    lines = []
    for block in blocks(page):
        text = block.text.replace("\\\n", " ")
        if block.language == "bash":
            lines += text.splitlines()
        elif block.language == "console":
            lines += [line[2:] for line in text.splitlines() if line.startswith("$ ")]
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        for i, word in enumerate(words):
            if word == "brim" and (i == 0 or words[i - 1] in ("|", "&&", "-m")):
                found.append(list(takewhile(lambda word: word != ">", words[i + 1 :])))
    return found


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_settings_page_is_up_to_date():
    script = runpy.run_path(str(ROOT / "docs" / "generate_settings.py"))
    assert script["PAGE"].read_text(encoding="utf-8") == script["render"](), (
        "run: python docs/generate_settings.py"
    )


def test_there_are_commands_to_check():
    names = {arguments[0] for page in PAGES for arguments in commands(page)}
    assert names == {"train", "evaluate", "generate", "recipes", "quickstart", "plan", "data"} | {
        *("analyze", "compare", "judge", "report", "sweep", "init", "schema", "serve"),
        *("card", "push", "export"),
    }


@pytest.fixture
def recipes(tmp_path, monkeypatch):
    """`recipes(page)` writes the recipes of all pages into a new folder, the page's own last."""
    monkeypatch.chdir(tmp_path)

    def write(page: Path) -> list[Path]:
        own = [block for block in blocks(page) if block.title]
        for block in [*(b for other in PAGES for b in blocks(other) if b.title), *own]:
            Path(block.title).write_text(block.text, encoding="utf-8")
        return [Path(block.title) for block in own]

    return write


@each_page
def test_recipes_load(page, recipes):
    for path in recipes(page):
        load_config(class_of(path), path, search=find_recipe)


def class_of(path: Path) -> type[BaseModel]:
    kinds = {"judge": JudgeConfig, "serve": ServeConfig}
    return kinds.get(re.split("[_.]", path.name)[0], RunConfig)


@pytest.mark.parametrize(("name", "kind"), [("judge", JudgeConfig), ("serve", ServeConfig)])
def test_a_commands_page_has_all_settings_with_their_defaults(name, kind):
    page = ROOT / f"docs/{name}.md"
    (block,) = (b for b in blocks(page) if b.title == f"{name}_defaults.yaml")
    settings = parse(block.text, str).data
    assert kind(**settings) == kind(model=settings["model"])
    assert settings.keys() == kind.model_fields.keys()
    assert settings["limits"].keys() == kind.model_fields["limits"].annotation.model_fields.keys()


@each_page
def test_commands_parse(page, recipes):
    recipes(page)
    group = get_command(app)
    for arguments in commands(page):
        with group.make_context("brim", list(arguments)) as context:
            name, command, rest = group.resolve_command(context, list(arguments))
            with command.make_context(name, rest, parent=context) as inner:
                check_settings(inner.params)


def check_settings(params: dict) -> None:
    """Recipes and settings files exist, and keys and values of overrides are known."""
    words = params.get("words") or ()
    if words and "file" in params:  # of brim judge
        overrides, _ = overrides_and_paths(words)
        load_config(JudgeConfig, Path(params["file"]), overrides)
    if params.get("settings") is not None:  # of brim serve
        load_config(ServeConfig, None, [f"model={params['model']}", *params["settings"]])
    overrides = params.get("overrides") or []
    if "show" in params and not params["source"].endswith(".yaml"):  # a file, for brim data
        load_config(DataConfig, None, [f"task.train={params['source']}", *overrides])
        return
    shown = words[1] if words[:1] == ("show",) else "cmudict/brim"  # by brim recipes
    recipe = params.get("recipe", shown)
    if recipe.startswith("docs/results/"):  # a sweep, for brim plan
        assert points(load_sweep(ROOT / recipe))
    elif not recipe.startswith("runs/"):
        load_config(RunConfig, find_recipe(recipe), overrides, search=find_recipe)


@each_page
def test_links_resolve(page):
    for target in filter(None, (a or b for a, b in LINK.findall(prose(page)))):
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{target}: no such file"
        assert not anchor or anchor in anchors(path), f"{target}: no such heading"


def test_every_page_is_in_the_navigation():
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    navigation = re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(navigation) == sorted(pages)


def test_results_that_are_kept_are_small():
    files = [path for path in (ROOT / "docs" / "results").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 2e6
    assert len([path for path in files if path.suffix == ".png"]) <= 6


@each_page
def test_python_compiles_and_examples_are_true(page):
    for block in blocks(page):
        if block.language == "python" and not block.text.startswith(">>>"):
            compile(block.text, str(page), "exec")
    examples = doctest.DocTestParser().get_doctest(
        page.read_text(encoding="utf-8"), {}, page.name, str(page), 0
    )
    report: list[str] = []
    assert doctest.DocTestRunner().run(examples, out=report.append).failed == 0, "".join(report)


def test_docs_stay_small():
    others = ("settings.md", "summary.md")  # made by scripts
    pages = [page for page in (ROOT / "docs").rglob("*.md") if page.name not in others]
    words = sum(len(page.read_text(encoding="utf-8").split()) for page in pages)
    assert words + len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 40_000
    results = (path for path in (ROOT / "docs" / "results").rglob("*") if path.is_file())
    assert sum(path.stat().st_size for path in results) <= 2 * 2**20
