"""Tables 1 and 7 from the paper's recipes: models that are loaded have rows like all others."""

import json
import re
from pathlib import Path

import pytest
from pairs import T5, roman
from typer.testing import CliRunner

from brim.cli import app
from brim.errors import RunError
from brim.models import build_model, train_tokenizer
from brim.report import report
from brim.runs.evaluate import evaluate_stage
from brim.runs.train import train
from brim.sweep import launching
from brim.sweep.launching import Job
from brim.sweep.states import log_of

SIZES = {"layers": 1, "heads": 2, "d_model": 16, "d_ff": 32, "dropout": 0.1}
SWEEP = """\
seeds: [19083, 34007]
settings:
  task.path: {folder}
  teacher: {{path: {folder}/t5_teacher, seed: 0}}
  student.path: {folder}/t5_student
  student.predistill.trainer: &short
    {{num_epochs: null, max_steps: 1, rollout_batch_size: 4, evaluate_every: 1, save_every: 1}}
  trainer: *short
  decoding: {{max_prompt_tokens: 24, max_tokens: 6}}
  evaluation.num_resamples: 100
systems:
  t5: {{recipe: xsum/kl}}
  qwen:
    recipe: xsum/qwen/kl
    settings:
      teacher: {{path: {folder}/qwen2_teacher, train.trainer: *short}}
      student.path: {folder}/qwen2_student
"""


def brim(*arguments: object) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


class Here:
    """A launcher that runs each task in this process, and counts them."""

    slots = threads = 1

    def __init__(self) -> None:
        self.started: list[str] = []

    def start(self, task, out: Path) -> Job:
        self.started.append(task.name)
        log_of(task, out).write_text(brim(*task.arguments(out), "--quiet"))
        return self

    def poll(self) -> int:
        return 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Articles, and two pairs of models that are not trained."""
    folder = tmp_path_factory.mktemp("loaded")
    rows = [
        {"document": f"the number {n} is {roman(n)}", "summary": roman(n)} for n in range(1, 25)
    ]
    for split, part in {"train": rows[:8], "validation": rows[8:16], "test": rows[16:]}.items():
        lines = "\n".join(map(json.dumps, part))
        (folder / f"{split}.jsonl").write_text(f"{lines}\n", encoding="utf-8")
    texts = [f"summarize: {row['document']}\n\nin one sentence:\n {row['summary']}" for row in rows]
    for family in ("t5", "qwen2"):
        sizes = {key: SIZES[key] for key in SIZES if family == "t5" or key != "dropout"}
        tokenizer = train_tokenizer(texts, kind="bpe", vocab_size=300)
        for seed, role in enumerate(("teacher", "student")):
            model = build_model({"family": family, **sizes}, tokenizer, seed=seed)
            model.save(folder / f"{family}_{role}")
    (folder / "paper.yaml").write_text(SWEEP.format(folder=folder), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def swept(folder):
    """The sweep's folder, and what was started for it."""
    launcher, out = Here(), folder / "sweep"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launching, "local_launcher", lambda jobs, threads: launcher)
        assert "4 done\nstages: 8 done" in brim("sweep", folder / "paper.yaml", "--out", out)
        first = list(launcher.started)
        brim("sweep", folder / "paper.yaml", "--out", out)
    assert launcher.started == first  # nothing is tested twice
    return out, first


def test_each_loaded_model_is_tested_once(swept):
    _, started = swept
    # Runs test their teachers, and what both seeds made of each student. A student of each pair as
    # it is before any training is left.
    tests = [re.sub("-[0-9a-f]{12}$", "", name) for name in started[4:]]
    assert tests == ["stages/student"] * 2


def test_teacher_and_student_are_the_first_rows_of_the_papers_tables(swept, tmp_path, monkeypatch):
    out, _ = swept
    monkeypatch.setattr(report, "_figures", lambda *arguments: [])
    brim("report", out, "--paper", "--out", tmp_path)
    for table, teacher, student in (("table1", "41.32", "19.60"), ("table7", "38.15", "8.80")):
        rows = (tmp_path / f"{table}.md").read_text().split("| Teacher |")[1].splitlines()
        assert f"paper {teacher}" in rows[0]
        assert rows[1].startswith("| Student |")
        assert f"paper {student}" in rows[1]
        assert all(
            re.search(r"\d\.\d\d \[", row) for row in rows[:2]
        )  # our scores, of one run each
    assert "not in the tables" not in (tmp_path / "summary.md").read_text()


def test_the_row_is_that_of_the_model_evaluated_alone(swept, folder, tmp_path):
    out, _ = swept
    run = out / "t5" / "seed=19083"
    stage = json.loads((run / "manifest.json").read_text())["stages"]["student"]
    rows = {}
    for name, place in (("sweep", out / "stages" / stage), ("alone", tmp_path / "alone")):
        if name == "alone":
            brim("evaluate", run, "--model", folder / "t5_student", "--out", place)
        results = json.loads((place / "results.json").read_text())["test"]
        rows[name] = {key: results[key] for key in ("scores", "model", "num_examples")}
    assert rows["sweep"] == rows["alone"]
    assert str(out / "stages" / stage) in brim("compare", run, out / "stages" / stage)


def test_a_student_of_random_weights_has_no_row(make_config, tmp_path):
    settings = ("student.predistill=null", "trainer.max_steps=1", "trainer.evaluate_every=1")
    train(make_config(T5, *settings), tmp_path / "run")
    assert "student" not in json.loads((tmp_path / "run" / "manifest.json").read_text())["stages"]
    assert evaluate_stage(tmp_path / "run", "teacher").name.startswith("teacher-")
    with pytest.raises(RunError, match="loaded no student"):
        evaluate_stage(tmp_path / "run", "student")
