"""Many runs from one file: systems × grids × seeds as run directories below one folder.

>>> sweep = load_sweep(Path("sweep.yaml"))
>>> outcome = run_sweep(points(sweep), Path("sweeps/mine"))  # doctest: +SKIP

`grid.py` reads the file and makes points of it, `states.py` says how far each is, `launching.py`
starts them, here or elsewhere, and `running.py` runs all.
"""

from brim.sweep.grid import PAPER_SEEDS, Point, load_sweep, points
from brim.sweep.running import Outcome, run_sweep

__all__ = [
    "PAPER_SEEDS",
    "Outcome",
    "Point",
    "load_sweep",
    "points",
    "run_sweep",
]
