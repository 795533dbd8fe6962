"""Many runs from one file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from brim.cli.app import Quiet, app, running


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="What to run (YAML).", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Folder of the runs [sweeps/FILE].")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time [one a GPU, or by cores].")
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads-per-job", min=1, help="OMP_NUM_THREADS of each run.")
    ] = None,
    only: Annotated[str, typer.Option(metavar="GLOB", help="Only these: 'brim-*'.")] = "*",
    retry: Annotated[int, typer.Option(min=0, help="How often failed runs are tried again.")] = 1,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="Stop the others when a run fails.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all and print the commands.")
    ] = False,
    status: Annotated[bool, typer.Option("--status", help="Print how far each run is.")] = False,
    point: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Run this one, in this process.")
    ] = None,
    sbatch: Annotated[bool, typer.Option("--sbatch", help="Print a script for SLURM.")] = False,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Run on Ray: local, auto, or host:port.")
    ] = None,
    cpus: Annotated[
        int | None, typer.Option("--cpus-per-job", min=1, help="With --ray or --sbatch.")
    ] = None,
    gpus: Annotated[
        float | None, typer.Option("--gpus-per-job", min=0, help="With --ray or --sbatch.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Run a grid of settings, methods and seeds.

    Stop it at any time; the same command goes on.
    """
    from brim.config.loading import check_files
    from brim.recipes import find_recipe

    check_files(file, search=find_recipe)
    from brim.support.progress import Reporter
    from brim.sweep import commands

    commands.check_together(
        {
            "--status": status,
            "--dry-run": dry_run,
            "--sbatch": sbatch,
            "--point": point is not None,
            "--ray": ray is not None,
        }
    )
    chosen = commands.choose(file, out, only)
    if status:
        typer.echo(commands.status(chosen))
    elif dry_run:
        typer.echo(commands.dry_run(chosen))
    elif sbatch:
        typer.echo(commands.sbatch(chosen, cpus=cpus, gpus=gpus, jobs=jobs))
    elif point is not None:
        with running(quiet):
            ended = commands.one(chosen, point, Reporter(quiet=quiet), sys.argv)
        if not quiet:
            typer.echo(ended)
    else:
        with running(quiet):
            reporter = Reporter(quiet=quiet)
            outcome = commands.run(
                chosen, reporter, jobs=jobs, threads=threads, retry=retry, fail_fast=fail_fast,
                ray=ray, cpus=cpus, gpus=gpus,
            )  # fmt: skip
        if not quiet:
            typer.echo(commands.in_words(chosen, outcome))
        raise typer.Exit(1 if outcome.failed else 0)
