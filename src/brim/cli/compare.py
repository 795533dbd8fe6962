"""Compare: is A better than B?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from brim.cli.app import Split, app


@app.command()
def compare(
    a: Annotated[
        Path, typer.Argument(help="A run, stage or evaluation; or a folder of runs seed=*.")
    ],
    b: Annotated[Path, typer.Argument(help="Another one, of the same examples.")],
    split: Annotated[Split, typer.Option(help="Which part of the data.")] = Split.test,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Compare this only, may be repeated; the first one orders the sentences "
            "[all scores of both].",
            show_default=False,
        ),
    ] = None,
    resamples: Annotated[int, typer.Option(min=1, help="For intervals and p-values.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Of the resamples.")] = 0,
    sentences: Annotated[int, typer.Option(min=0, help="To show in each direction, at most.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="All numbers and texts as JSON.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for comparison.md and comparison.json.")
    ] = None,
) -> None:
    """Say whether A is better than B, and where they differ most."""
    from brim.compare import compare
    from brim.compare.write import comparison_text, write_comparison

    comparison = compare(
        a,
        b,
        split=split.value,
        metrics=metric,
        num_resamples=resamples,
        seed=seed,
        num_sentences=sentences,
    )
    if out is not None:
        write_comparison(comparison, out)
    # JSON in ASCII: a terminal obeys no character that a model wrote.
    typer.echo(
        json.dumps(comparison.as_dict(), indent=2) if as_json else comparison_text(comparison)
    )
