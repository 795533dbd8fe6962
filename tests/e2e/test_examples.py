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
