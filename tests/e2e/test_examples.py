"""The examples run, and what they print is true."""

import math
import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_brim_loop():
    main = runpy.run_path(str(EXAMPLES / "brim_loop.py"))["main"]
    before, after = main(["--steps", "3", "--teacher-steps", "4"])
    assert math.isfinite(before)
    assert math.isfinite(after)
    assert before != after
