"""What quickstart prints: four systems and how much the methods gained, without any training."""

from __future__ import annotations

import re

from run_folders import make_folder, results_of
from rundirs import write_run

from brim import quickstart as module
from brim.support.progress import Reporter

RETURNS = {"teacher": 9.0, "predistill": 1.0, "llmr": 2.0, "brim": 3.0}


def write_outputs(directory, name):
    """Each example's sampled return is the system's own and a bit of noise that all share."""
    scores = {"exact_match": 20.0, "expected_return": RETURNS[name], "length": 7.0}
    results = results_of(scores, num_parameters=12_345, seconds=61.4)
    rows = [
        {
            "id": f"word{i}", "prompt": "p", "references": ["R"], "text": "R", "num_tokens": 3,
            "sampled_text": f"{name} {i}", "sampled_return": RETURNS[name] + i % 3,
        }
        for i in range(6)
    ]  # fmt: skip
    write_run(directory, rows=rows, results=results)


def test_four_systems_and_the_gains_are_printed(tmp_path, monkeypatch):
    stages = {"teacher": "teacher-1", "predistill": "predistill-1"}

    def train(config, run, *, stages_dir, **options):
        manifest = {"stages_dir": "../stages", "stages": stages}
        objective = config.objective.model_dump()
        make_folder(run, objective, config.seed, None, manifest=manifest, predictions=False)
        write_outputs(run, run.name)

    def evaluate_stage(run, name, **options):
        directory = run.parent / "stages" / stages[name]
        write_outputs(directory, name)
        return directory

    monkeypatch.setattr(module, "train", train)
    monkeypatch.setattr(module, "evaluate_stage", evaluate_stage)
    text = module.quickstart(tmp_path, seed=0, short=True, reporter=Reporter(quiet=True))

    for label, name in (
        ("Teacher", "teacher"),
        ("Pre-distilled student", "predistill"),
        ("LLMR", "llmr"),
        ("BRIM (K = 2)", "brim"),
    ):
        line = next(line for line in text.splitlines() if line.startswith(f"{label} "))
        assert "20.0 [19.0, 21.0]" in line
        assert f" {RETURNS[name]:.2f} [" in line
        assert re.search(r"12,345 +61$", line)
    assert re.search(r"^LLMR +\+1\.00 \[\+1\.00, \+1\.00\] +[\d.e-]+$", text, re.MULTILINE)
    assert re.search(r"^BRIM +\+2\.00 \[\+2\.00, \+2\.00\]", text, re.MULTILINE)
    assert f"brim generate {tmp_path / 'brim'}" in text
    assert max(map(len, text.split("report:")[0].splitlines())) < 110
    assert (tmp_path / "report" / "report.html").exists()
