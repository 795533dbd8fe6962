"""The command line: arguments in, calls of the library out. No logic lives here.

One file a group of commands. Torch takes seconds to import, so commands import what they need when
they run.
"""

from __future__ import annotations

import sys

import typer

from brim.cli import analyze, data, plan, recipes, release, results, runs, serve, sweep
from brim.cli.app import UsageError, app, mistake_in_a_line, usage_in_a_line
from brim.cli.process import leave_processes, prepare_process

__all__ = [
    "analyze",
    "app",
    "data",
    "main",
    "plan",
    "recipes",
    "release",
    "results",
    "runs",
    "serve",
    "sweep",
]


def main() -> None:
    """Entry point: user mistakes are one line and exit code 2."""
    prepare_process()
    try:
        code = app(standalone_mode=False)
    except UsageError as error:
        typer.echo(usage_in_a_line(error), err=True)
        sys.exit(2)
    except typer.Abort:  # of a question
        typer.echo("brim: stopped", err=True)
        sys.exit(130)
    except Exception as error:
        line = mistake_in_a_line(error)
        if line is None:
            raise
        typer.echo(f"brim: {line}", err=True)
        sys.exit(2)
    finally:
        leave_processes()
    sys.exit(code)
