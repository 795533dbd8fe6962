"""Many runs from one file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from brim.cli.app import Quiet, app, finite, running

File = Annotated[Path, typer.Argument(help="What to run (YAML).", show_default=False)]
Out = Annotated[Path | None, typer.Option(help="Folder of the runs [sweeps/FILE].")]
Jobs = Annotated[int | None, typer.Option(min=1, help="Runs at a time [one a GPU, or by cores].")]
Threads = Annotated[
    int | None, typer.Option("--threads-per-job", min=1, help="OMP_NUM_THREADS of each run.")
]
Only = Annotated[str, typer.Option(metavar="GLOB", help="Only these: 'brim-*'.")]
Retry = Annotated[int, typer.Option(min=0, help="How often failed runs are tried again.")]
FailFast = Annotated[bool, typer.Option("--fail-fast", help="Stop the others when a run fails.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check all and print the commands.")]
Status = Annotated[bool, typer.Option("--status", help="Print how far each run is.")]
PointNumber = Annotated[
    int | None,
    typer.Option("--point", min=1, metavar="N", help="Run this one, in this process."),
]
Sbatch = Annotated[bool, typer.Option("--sbatch", help="Print a script for SLURM.")]
Ray = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="Run on Ray: local, auto, or host:port.")
]
Cpus = Annotated[int | None, typer.Option("--cpus-per-job", min=1, help="With --ray or --sbatch.")]
Gpus = Annotated[
    float | None,
    typer.Option("--gpus-per-job", min=0, callback=finite, help="With --ray or --sbatch."),
]


@app.command()
def sweep(
    file: File,
    out: Out = None,
    jobs: Jobs = None,
    threads: Threads = None,
    only: Only = "*",
    retry: Retry = 1,
    fail_fast: FailFast = False,
    dry_run: DryRun = False,
    status: Status = False,
    point: PointNumber = None,
    sbatch: Sbatch = False,
    ray: Ray = None,
    cpus: Cpus = None,
    gpus: Gpus = None,
    quiet: Quiet = False,
) -> None:
    """Run a grid of settings, methods and seeds.

    Stop it at any time; the same command resumes it.
    """
    from brim.config.loading import read_mapping

    read_mapping(file)  # before torch comes
    from brim.support.progress import Reporter
    from brim.sweep import running as work
    from brim.sweep.launching import Resources, launcher_of
    from brim.sweep.states import status_table

    _check_one({"--status": status, "--dry-run": dry_run, "--sbatch": sbatch,
                "--point": point is not None, "--ray": ray is not None})  # fmt: skip
    chosen, reporter = work.choose(file, out, only), Reporter(quiet=quiet)
    resources = Resources(jobs, threads, ray, cpus, gpus)
    if status:
        typer.echo(status_table(chosen.points, chosen.out))
    elif dry_run:
        typer.echo(work.dry_run(chosen))
    elif sbatch:
        typer.echo(work.sbatch(chosen, resources))
    else:
        outcome = None
        with running(quiet):
            if point is not None:
                text = work.run_one(chosen, point, reporter, sys.argv)
            else:
                launcher = launcher_of(resources, len(chosen.points), reporter)
                outcome = work.run_sweep(
                    chosen.points, chosen.out, sweep=chosen.sweep, launcher=launcher, retry=retry,
                    fail_fast=fail_fast, reporter=reporter,
                )  # fmt: skip
                text = f"{outcome.in_words()}\nruns: {chosen.out}"
        if not quiet:
            typer.echo(text)
        if outcome is not None and outcome.failed:
            raise typer.Exit(1)


def _check_one(modes: dict[str, bool]) -> None:
    from brim.errors import ConfigError

    given = [name for name, chosen in modes.items() if chosen]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} do not go together; choose one")
