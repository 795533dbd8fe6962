"""`brim data`: what data is, before anything is paid for."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from brim.cli.app import Overrides, app, complete_recipe, load_recipe

if TYPE_CHECKING:
    from brim.models import Encoder
    from brim.models.settings import Decoding
    from brim.preview import Limits
    from brim.support.progress import Reporter
    from brim.tasks import Files, Task
    from brim.training.teacher_settings import TeacherConfig

_COLUMNS = ("task.prompt", "task.messages_column=", "task.target_column=")


@app.command()
def data(
    source: Annotated[
        str,
        typer.Argument(
            help="A file or folder of data, or org/name#split on the hub; or a recipe's name, or "
            "its YAML file.",
            autocompletion=complete_recipe,
        ),
    ],
    overrides: Overrides = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Count tokens by this model's folder or hub name [the teacher's]."),
    ] = None,
    show: Annotated[int, typer.Option(min=0, help="Examples to show.")] = 10,
) -> None:
    """Show data as a model reads it, and what is bad."""
    from brim.preview import as_text, preview
    from brim.support.progress import Reporter

    reporter = Reporter()
    task: Task
    limits: Limits | Decoding
    teacher: TeacherConfig | None = None
    if _is_data(source):
        task, limits = _of_file(source, overrides or [], reporter)
    else:
        _, config = load_recipe(source, overrides)
        task, limits, teacher = config.task, config.decoding, config.teacher
    found = preview(
        task,
        _encoder(tokenizer, teacher, reporter),
        max_prompt_tokens=limits.max_prompt_tokens,
        max_tokens=limits.max_tokens,
        num_shown=show,
        on_progress=reporter.progress,
    )
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 80
    typer.echo(as_text(found, width=max(width, 40)))


def _is_data(source: str) -> bool:
    """Whether this names data and not a recipe."""
    from brim.tasks.sources import is_file_of_rows

    return not source.endswith((".yaml", ".yml")) and (
        "#" in source or Path(source).exists() or is_file_of_rows(source)
    )


def _of_file(source: str, overrides: Sequence[str], reporter: Reporter) -> tuple[Files, Limits]:
    """The task whose training data this is, with nothing carved out of it, and its limits."""
    from brim.config.loading import load_config
    from brim.preview import DataConfig

    whole = ["task.validation_fraction=0", "task.test_fraction=0", f"task.train={source}"]
    if not any(override.startswith(_COLUMNS) for override in overrides):
        whole += _guessed(source, reporter)
    config = load_config(DataConfig, None, [*whole, *overrides])
    return config.task, config.decoding


def _guessed(source: str, reporter: Reporter) -> list[str]:
    """Settings of the columns of a file, by its first row, where that can be read."""
    from brim.errors import DataError
    from brim.recipes.first_row import read_first_row

    try:
        found = read_first_row(source)
    except DataError:
        return []
    reporter.say(f"{source}: {found.in_words()}, by the first row")
    return [f"task.{key}={'null' if of is None else of}" for key, of in found.settings.items()]


def _encoder(
    tokenizer: str | None, teacher: TeacherConfig | None, reporter: Reporter
) -> Encoder | None:
    """What text is read with: by the option, or else by the teacher, where that can be reached."""
    if tokenizer is None and (teacher is None or teacher.path is None):
        return None
    from brim.errors import ModelError
    from brim.models import load_encoder

    if tokenizer is not None or teacher is None or teacher.path is None:
        return load_encoder(tokenizer or "")
    code = teacher.trust_remote_code
    try:
        return load_encoder(teacher.path, revision=teacher.revision, trust_remote_code=code)
    except ModelError as error:
        reporter.say(f"lengths are in characters, without a tokenizer: {error}")
        return None
