"""`brim report`: tables, figures and a page from run directories."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from brim.cli.app import Quiet, Split, app, finite


@app.command()
def report(
    directories: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Folders that hold run directories.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("report"),
    split: Annotated[Split, typer.Option(help="Which part of the data.")] = Split.test,
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="LABEL",
            help="System that the tables' marks of significance are against [LLMR].",
        ),
    ] = None,
    alpha: Annotated[
        float,
        typer.Option(
            min=0, max=1, callback=finite, help="Level of significance; the paper's is 0.035."
        ),
    ] = 0.05,
    outputs: Annotated[int, typer.Option(min=0, help="Examples with texts on the page.")] = 200,
    quiet: Quiet = False,
) -> None:
    """Make the paper's tables and figures, and a page, from runs."""
    from brim.report import write_reports
    from brim.support.progress import Reporter

    written = write_reports(
        directories,
        out,
        split=split.value,
        baseline=baseline,
        alpha=alpha,
        max_outputs=outputs,
        reporter=Reporter(quiet=quiet),
    )
    if not quiet:
        typer.echo(written.text)
        typer.echo(f"report: {out / 'report.html'} · {out / 'summary.md'}")
