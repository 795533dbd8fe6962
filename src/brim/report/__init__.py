"""Tables, learning curves, samples and one HTML page, from run directories and nothing else.

>>> write_report(
...     Path("report"),
...     [System("student", Path("runs/student"), train=False),
...      System("BRIM (K = 2)", Path("runs/brim"), train=True)],
...     title="...", lead="...", metric="bleu", baseline="student",
... )  # doctest: +SKIP

Nothing here imports torch; matplotlib and jinja2 are imported when first used.
"""

from brim.report.evidence import System
from brim.report.table import summary
from brim.report.write import write_report

__all__ = ["System", "summary", "write_report"]
