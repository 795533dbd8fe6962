"""`python -m tests.faults --seed 0`: all kinds at length, and one table of what came of them."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import tempfile
import time
from pathlib import Path

from .rows import table

# How often each kind is put in at length, and in the short form that the default tests run.
KINDS = {
    "kills": (200, 2),
    "crashes": (0, 1),
    "signals": (40, 1),
    "disk": (20, 1),
    "nonfinite": (0, 2),
    "mutations": (500, 4),
}


def main() -> None:
    """Run the kinds asked for; exit code 1 if a fault was not handled."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of what is random [0]")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of %(default)s")
    parser.add_argument("--short", action="store_true", help="a few of each")
    parser.add_argument("--count", type=int, help="so many of each; 0 for all there are")
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    rows = []
    with tempfile.TemporaryDirectory(prefix="faults-") as directory:
        for kind in arguments.kinds.split(","):
            started = time.monotonic()
            module = importlib.import_module(f".{kind}", __package__)
            count = arguments.count
            if count is None:
                count = KINDS[kind][arguments.short]
            found = module.run(arguments.seed, count, Path(directory))
            rows += found
            for row in found:
                for note in getattr(row, "notes", ())[:10]:
                    print(f"{row.name}: {note}", file=sys.stderr, flush=True)
            seconds = time.monotonic() - started
            tried = sum(row.tried for row in found)
            print(f"{kind}: {tried} faults in {seconds:,.0f} s", file=sys.stderr, flush=True)
    print(table(rows))
    sys.exit(any(row.handled < row.tried for row in rows))


if __name__ == "__main__":
    main()
