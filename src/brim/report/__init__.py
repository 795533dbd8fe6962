"""Tables, learning curves, samples and one HTML page, from run directories and nothing else.

>>> print(write_reports([Path("runs")], Path("report")).text)  # doctest: +SKIP

All runs under some folders are grouped into methods and seeds, with the paper's tables and tests.
Nothing here imports torch; matplotlib and jinja2 are imported when first used.
"""

from brim.report.records import summary
from brim.report.report import Report, write_reports
from brim.report.systems import TaskRuns

__all__ = ["Report", "TaskRuns", "summary", "write_reports"]
