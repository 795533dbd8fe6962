"""What the commands share: the application, common options, how long work runs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated

import typer

from brim._version import __version__
from brim.process import flush_denormals

app = typer.Typer(
    name="brim",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Split(StrEnum):
    """A part of the data."""

    train = "train"
    validation = "validation"
    test = "test"


Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY.SUB=VALUE", help="Settings to change.", show_default=False),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]


def _show_version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    """Distil a large language model into a small one by reinforcement learning."""


def is_main_process() -> bool:
    """Whether this process is the one that tells the user."""
    from accelerate import PartialState

    return bool(PartialState().is_main_process)


@contextmanager
def running(quiet: bool = False) -> Iterator[None]:
    """Long work: our own progress bars only, and Ctrl-C is exit code 130 and a word about it."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    flush_denormals(True)
    logger = logging.getLogger("brim")
    level = logger.level
    if quiet:
        logger.setLevel(logging.ERROR)
    try:
        yield
    except KeyboardInterrupt as stop:
        typer.echo(f"brim: {str(stop) or 'stopped'}", err=True)
        raise typer.Exit(130) from None
    finally:
        flush_denormals(False)
        logger.setLevel(level)
