"""Many runs from one file: systems × grids × seeds as run directories below one folder.

>>> sweep = load_sweep(Path("sweep.yaml"))
>>> outcome = run_sweep(points(sweep), Path("sweeps/mine"))  # doctest: +SKIP

`spec.py` reads the file, `grid.py` makes points of it, `states.py` says how far each is,
`running.py` runs them here and `cluster.py` elsewhere.
"""

from brim.sweep.grid import Point, points, run_point
from brim.sweep.running import Outcome, run_sweep
from brim.sweep.spec import PAPER_SEEDS, SweepConfig, load_sweep

__all__ = [
    "PAPER_SEEDS",
    "Outcome",
    "Point",
    "SweepConfig",
    "load_sweep",
    "points",
    "run_point",
    "run_sweep",
]
