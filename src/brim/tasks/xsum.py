"""XSum: a BBC article -> the sentence that says what it is about (Narayan et al. 2018).

    The tornado hit a campsite with about 100 people on the island of Duene, off the coast of the
    larger island Heligoland, at 1315 GMT. ...

    At least eight people have been injured after a tornado struck a German island in the North Sea.

The published splits have 204,045 / 11,332 / 11,334 articles. Table 4 of the paper (BRIM) has
202,926 / 11,332 / 11,333 and does not say which are missing. The hub's copy is read as Parquet,
which is a branch of its own there: on the main branch is a script, which `datasets` no longer runs.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from brim.tasks.base import MetricNames
from brim.tasks.published import Publication, PublishedTask
from brim.tasks.rows import OnBadRow


class XSum(PublishedTask):
    """Settings of the task on XSum."""

    published: ClassVar[Publication] = Publication(
        hub_id="EdinburghNLP/xsum",
        revision="refs/convert/parquet",
        names={"document": ("document", "source"), "summary": ("summary", "target"), "id": ("id",)},
        num_rows={("train",): 204_045, ("validation",): 11_332, ("test",): 11_334},
    )

    name: Literal["xsum"] = "xsum"
    """A BBC article to one sentence."""
    path: str = published.hub_id
    """Folder with train, validation and test files (.jsonl, .csv, .tsv, also .gz), or hub id."""
    prompt: str = "summarize: {document}"
    """Template of the prompt; `{document}` is the article."""
    on_bad_row: OnBadRow = "skip"
    """Stop at the first bad row, or leave bad rows, such as empty articles, out and count them."""
    metrics: MetricNames = ("rouge1", "rouge2", "rougeL")
    """What is measured; the first one picks the checkpoint."""
