"""The examples run, and what they print is true."""

import math
import runpy
from importlib import import_module
from pathlib import Path

from brim.objectives import OBJECTIVES

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_brim_loop():
    main = runpy.run_path(str(EXAMPLES / "brim_loop.py"))["main"]
    before, after = main(["--steps", "3", "--teacher-steps", "4"])
    assert math.isfinite(before)
    assert math.isfinite(after)
    assert before != after


def test_custom_objective(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    try:
        before, after = import_module("custom_objective").main(["--steps", "20"])
    finally:
        OBJECTIVES.pop("best_of_n", None)
    assert math.isfinite(before)
    assert after > before


def test_custom_task(tmp_path):
    main = runpy.run_path(str(EXAMPLES / "custom_task.py"))["main"]
    results = main(["--steps", "2", "--out", str(tmp_path / "run")])
    assert {"exact_match", "ter", "return"} <= results["scores"].keys()
    assert "name: backwards\n" in (tmp_path / "run" / "config.yaml").read_text()
    assert main(["--steps", "2", "--out", str(tmp_path / "run")]) == results  # found again
