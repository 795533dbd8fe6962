"""The gallery's examples: recipes and sweeps load, the data is whole, the scripts make it again."""

import bz2
import gzip
import json
import lzma
import runpy
from datetime import date
from itertools import product
from pathlib import Path

import pytest

from brim.config.loading import load_config
from brim.plan import plan
from brim.sweep import load_sweep, points
from brim.training.settings import RunConfig

EXAMPLES = Path(__file__).parents[3] / "examples"
SIZES = {"translation": (15_000, 300, 500), "dates": (12_000, 300, 500)}
SPLITS = ("train", "validation", "test")

each_example = pytest.mark.parametrize("name", SIZES)


def read(folder: Path, split: str) -> list[dict[str, str]]:
    text = gzip.decompress((folder / f"{split}.jsonl.gz").read_bytes()).decode()
    return [json.loads(line) for line in text.splitlines()]


@each_example
def test_recipe_and_sweep_load(name, monkeypatch):
    monkeypatch.chdir(EXAMPLES.parent)
    config = load_config(RunConfig, EXAMPLES / name / "recipe.yaml")
    assert all(Path(getattr(config.task, split)).is_file() for split in SPLITS)
    teacher, student = plan(config).models
    assert student.num_parameters <= teacher.num_parameters / 4
    stages = {point.stage_keys for point in points(load_sweep(EXAMPLES / name / "sweep.yaml"))}
    assert len(stages) == 1, "all methods start from one student of one teacher"


@each_example
def test_data_is_whole_and_no_prompt_is_in_two_splits(name):
    task = load_config(RunConfig, EXAMPLES / name / "recipe.yaml").task
    rows = {split: read(EXAMPLES / name, split) for split in SPLITS}
    assert tuple(map(len, rows.values())) == SIZES[name]
    both = {task.prompt_column, task.target_column}
    assert all(row.keys() == both and all(row.values()) for part in rows.values() for row in part)
    prompts = [{row[task.prompt_column] for row in part} for part in rows.values()]
    assert len(set.union(*prompts)) == sum(map(len, prompts))
    assert (EXAMPLES / name / "NOTICE").is_file()
    assert sum(path.stat().st_size for path in (EXAMPLES / name).glob("*.gz")) < 600_000


def test_pairs_are_made_of_two_files_of_an_archive(tmp_path):
    both = {
        "game of war": "krigsspil til alle",
        "game of war (data files)": "krigsspil til alle (datafiler)",
        "game of war - server": "krigsspil til alle - server",
        "tool for text files": "værktøj til tekstfiler",
        "Lua bindings for X": "Lua-bindinger for X",
        "the same text twice": "the same text twice",
        "too short": "alt for kort",
    }
    english = [*both, "without any translation"]
    write(tmp_path / "en.xz", lzma.compress, "en", enumerate(english))
    write(tmp_path / "da.bz2", bz2.compress, "da", enumerate([*both.values()]))
    files = [str(tmp_path / "en.xz"), str(tmp_path / "da.bz2")]
    script = runpy.run_path(str(EXAMPLES / "translation" / "make_data.py"))
    script["SIZES"].update(test=1, validation=1)
    made = []
    for out in (tmp_path / "one", tmp_path / "two"):
        out.mkdir()
        script["main"]([*files, "--out", str(out)])
        made.append([path.read_bytes() for path in sorted(out.iterdir())])
    assert made[0] == made[1]
    parts = [read(tmp_path / "one", split) for split in SPLITS]
    rows = [row for part in parts for row in part]
    assert all(both[row["en"]] == row["da"] for row in rows)
    assert {"tool for text files", "Lua bindings for X"} < {row["en"] for row in rows}
    assert not {"the same text twice", "too short"} & {row["en"] for row in rows}
    assert sum(any("game of war" in row["en"] for row in part) for part in parts) == 1


def write(path, compress, language, texts):
    paragraphs = (
        f"Package: p{number}\nDescription-md5: {number:032x}\nDescription-{language}: {text}\n"
        " More of it\n over two lines.\n\n"
        for number, text in texts
    )
    path.write_bytes(compress("".join(paragraphs).encode()))


@pytest.fixture(scope="module")
def dates():
    return runpy.run_path(str(EXAMPLES / "dates" / "make_data.py"))


def test_dates_are_made_again(dates, tmp_path):
    dates["main"](["--out", str(tmp_path)])
    for split in SPLITS:
        assert read(tmp_path, split) == read(EXAMPLES / "dates", split)


def test_no_two_days_are_written_alike(dates):
    """The days that could be taken for one another, also between languages."""
    days = [date(2026, month, day) for month, day in product(range(1, 13), range(1, 13))]
    seen: dict[str, date] = {}
    for day, locale, form in product(days, dates["LOCALES"], dates["FORMATS"]):
        text = dates["write_date"](day, locale, form)
        assert text is None or seen.setdefault(text, day) == day, text
    assert len(seen) > 100 * len(days)
