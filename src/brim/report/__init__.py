"""Tables, learning curves, samples and one HTML page, from run directories and nothing else.

>>> import brim
>>> brim.report("runs", out="report")  # doctest: +SKIP

All runs under some folders are grouped into methods and seeds, with the paper's tables and tests.
Nothing here imports torch; matplotlib and jinja2 are imported when first used.
"""

from brim.report.records import summary
from brim.report.report import Report, write_reports
from brim.report.systems import TaskRuns
from brim.support.imports import make_callable

__all__ = ["Report", "TaskRuns", "summary", "write_reports"]

make_callable(__name__, write_reports)
