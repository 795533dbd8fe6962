"""XSum: a BBC article -> the sentence that says what it is about (Narayan et al. 2018).

    The tornado hit a campsite with about 100 people on the island of Duene, off the coast of the
    larger island Heligoland, at 1315 GMT. ...

    At least eight people have been injured after a tornado struck a German island in the North Sea.

The published splits have 204,045 / 11,332 / 11,334 articles. Table 4 of the paper (BRIM) has
202,926 / 11,332 / 11,333 and does not say which are missing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from brim.tasks.base import MetricNames, Progress
from brim.tasks.published import Publication, PublishedSettings, PublishedTask


class XSum(PublishedTask):
    """Columns `document`, `summary` and `id`, or `source` and `target`.

    The hub's copy is read as Parquet, which is a branch of its own there: on the main branch is a
    script, which `datasets` no longer runs.
    """

    name = "xsum"
    published = Publication(
        hub_id="EdinburghNLP/xsum",
        revision="refs/convert/parquet",
        names={"document": ("document", "source"), "summary": ("summary", "target"), "id": ("id",)},
        num_rows={("train",): 204_045, ("validation",): 11_332, ("test",): 11_334},
    )


class XSumConfig(PublishedSettings):
    """Settings of the task on XSum."""

    name: Literal["xsum"] = "xsum"
    """A BBC article to one sentence."""
    path: str = XSum.published.hub_id
    """Folder with train, validation and test files (.jsonl, .csv, .tsv, also .gz), or hub id."""
    prompt: str = "summarize: {document}"
    """Template of the prompt; `{document}` is the article."""
    on_bad_row: Literal["error", "skip"] = "skip"
    """Stop at the first bad row, or leave bad rows, such as empty articles, out and count them."""
    metrics: MetricNames = ("rouge1", "rouge2", "rougeL")
    """What is measured; the first one picks the checkpoint."""

    def build(self, *, cache_dir: Path | None = None, on_progress: Progress | None = None) -> XSum:
        """The task; see `TaskSettings.build` for the arguments."""
        return XSum(**self.arguments, cache_dir=cache_dir, on_progress=on_progress)
