"""Card, push, export: a run's student for others."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from brim.cli.app import Quiet, app, running

Run = Annotated[Path, typer.Argument(help="A run directory.")]
# Keys of `brim.release.formats.FORMATS`, and their bits.
Format = Literal["ct2", "onnx"]
Bits = Literal["int8", "int4"]


@app.command()
def card(run: Run) -> None:
    """Write the model card of a run's student anew, best/README.md."""
    from brim.runs.card import write_card
    from brim.runs.directory import RunDirectory

    RunDirectory(run).check()
    typer.echo(write_card(run, anew=True))


@app.command()
def push(
    run: Run,
    repo: Annotated[str, typer.Argument(help="Repository on the hub, USER/NAME.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would go.")] = False,
    public: Annotated[bool, typer.Option("--public", help="Let everyone read it.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Send a run's student and its card to the Hugging Face hub."""
    from brim.errors import ConfigError
    from brim.release.push import describe_push
    from brim.release.push import push as send

    files, what = describe_push(run, repo, public=public)
    typer.echo(what)
    if dry_run:
        return
    if not yes and not sys.stdin.isatty():
        raise ConfigError("brim push asks before it sends, and there is no terminal; give --yes")
    if not yes and not typer.confirm("Send this?"):
        raise typer.Exit(1)
    typer.echo(send(files, repo, public=public))


@app.command()
def export(
    run: Run,
    to: Annotated[Format, typer.Option(help="CTranslate2, or ONNX Runtime GenAI.")],
    quantize: Annotated[
        Bits | None, typer.Option(help="Weights of few bits: ct2 int8, onnx int4.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Convert a run's student for another engine."""
    from brim.release.formats import check_format

    check_format(run, to, quantize)  # before torch comes
    from brim.release.export import export as convert

    with running(quiet):
        folder, same, count = convert(run, to, quantize=quantize)
    if not quiet:
        typer.echo(f"{folder}: {same} of {count} greedy texts as by transformers")
