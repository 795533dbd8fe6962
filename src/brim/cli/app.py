"""What the commands share: the application, common options, how long work runs."""

from __future__ import annotations

import errno
import math
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os.path import isdir  # Path.is_dir raises where a name is too long
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from brim._version import __version__
from brim.cli.process import working
from brim.errors import BrimError
from brim.support.files import FULL, raise_refusal, system_error

if TYPE_CHECKING:
    from brim.support.progress import Reporter
    from brim.training.settings import RunConfig

# Click's, which typer has under another name in each of its versions.
UsageError: type[Exception] = typer.BadParameter.__bases__[0]

app = typer.Typer(
    name="brim",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def known_split(split: str) -> str:
    """Refuse what no task has."""
    kind, point, name = split.partition(".")
    if kind not in ("train", "validation", "test") or (point and (kind != "test" or not name)):
        raise typer.BadParameter(
            f"{split!r} is not train, validation, test, or test.NAME of several test sets"
        )
    return split


Split = Annotated[
    str,
    typer.Option(
        metavar="SPLIT",
        callback=known_split,
        help="Which part of the data: train, validation, test; or test.NAME of several test sets.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY.SUB=VALUE", help="Settings to change.", show_default=False),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]


def finite(value: float | None) -> float | None:
    """Refuse `nan` and `inf`, which a `min` lets through: the callback of options for numbers."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no finite number")
    return value


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
    """Distill a large language model into a small one by reinforcement learning."""


def usage_in_a_line(error: Any) -> str:
    """Return what is wrong with the arguments, and where help is; the help itself without any."""
    text, context = error.format_message(), error.ctx
    if type(error).__name__ == "NoArgsIsHelpError":
        return str(text)
    text = text.replace("Value error, ", "").replace("Input should ", "must ").rstrip(".?")
    hint = ""
    if context is not None:
        hint = f"; see {context.command_path} -h"
        option = getattr(error, "option_name", "")
        if text.startswith("No such option") and "KEY.SUB=VALUE" in context.get_usage():
            typed = next((word for word in sys.argv if word.startswith(f"{option}=")), "")
            setting = re.sub("^-+", "", typed or f"{option}=VALUE")
            hint = f"; settings have no dashes: write {setting}{hint}"
    return " ".join(f"brim: {text[:1].lower()}{text[1:]}{hint}".split())


def mistake_in_a_line(error: Exception) -> str | None:
    """Return what the user can mend: a mistake, a full disk, a long name; None for a bug."""
    if isinstance(error, BrimError):
        return str(error)
    if system_error(error) in (*FULL, errno.ENAMETOOLONG):
        try:
            raise_refusal(error, _file_behind(error))
        except BrimError as refusal:
            return str(refusal)
    return None


def _file_behind(error: BaseException | None) -> str | Path:
    """The file that the first error of a chain was about; where we are, if none of them says."""
    while error is not None:
        if name := getattr(error, "filename", None):
            return str(name)
        error = error.__cause__ or error.__context__
    return Path.cwd()


def overrides_and_paths(words: Sequence[str] | None) -> tuple[list[str], list[Path]]:
    """Split words into settings `key.sub=value` and paths, which `seed=1` is where it exists."""
    overrides = [w for w in words or [] if re.match(r"[\w.]+=", w) and not isdir(w)]
    return overrides, [Path(word) for word in words or [] if word not in overrides]


def complete_recipe(incomplete: str) -> list[str]:
    """Return the recipes, YAML files and folders that begin so, for the shell."""
    from brim.recipes import complete

    return complete(incomplete)


def load_recipe(recipe: str, overrides: Sequence[str] | None) -> tuple[Path, RunConfig]:
    """Return the file and the settings of a recipe."""
    from brim.config.loading import load_config
    from brim.recipes import find_recipe
    from brim.training.settings import RunConfig

    path = find_recipe(recipe)
    return path, load_config(RunConfig, path, overrides or [], search=find_recipe)


def is_main_process() -> bool:
    """Return whether this process is the one that reports to the user."""
    from accelerate import PartialState

    return bool(PartialState().is_main_process)


@contextmanager
def running(quiet: bool = False) -> Iterator[Reporter]:
    """Set up long work, see `working`; Ctrl-C is exit code 130."""
    try:
        with working(quiet) as reporter:
            yield reporter
    except KeyboardInterrupt as stop:
        typer.echo(f"brim: {str(stop) or 'stopped'}", err=True)
        raise typer.Exit(130) from None
