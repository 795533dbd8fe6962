"""Tables, learning curves, samples and one HTML page, from run directories and nothing else.

>>> write_report(
...     Path("report"),
...     [System("student", Path("runs/student"), train=False),
...      System("BRIM (K = 2)", Path("runs/brim"), train=True)],
...     title="...", lead="...", metric="bleu", baseline="student",
... )  # doctest: +SKIP
>>> write_reports([Path("runs")], Path("report"))  # doctest: +SKIP

`write_report` compares the few systems that it is given, `write_reports` groups all runs under some
folders into methods and seeds, with the paper's tables and tests.
Nothing here imports torch; matplotlib and jinja2 are imported when first used.
"""

from brim.report.evidence import System
from brim.report.report import write_report, write_reports
from brim.report.table import summary

__all__ = ["System", "summary", "write_report", "write_reports"]
