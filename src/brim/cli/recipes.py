"""Recipes, and files like them: listed, shown, drafted, and described to editors."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import typer

from brim.cli.app import app, load_recipe

Kind = Literal["run", "judge", "sweep"]
_T = TypeVar("_T")

_SETTINGS: dict[Kind, str] = {
    "run": "brim.training.settings:RunConfig",
    "judge": "brim.judge.settings:JudgeConfig",
    "sweep": "brim.sweep.grid:SweepConfig",
}


@app.command()
def recipes(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[WORD... | show NAME KEY.SUB=VALUE...]",
            help="List only those that have all of the words; or show one with all of its keys.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """List the recipes that come with the package, or show one."""
    words = words or []
    if words[:1] == ["show"]:
        typer.echo(_shown(words[1:]), nl=False)
        return
    from brim.recipes import list_recipes, recipe_table

    typer.echo(recipe_table(list_recipes(), words))


def _shown(words: list[str]) -> str:
    from brim.config.loading import dump_config
    from brim.config.schema import MODELINE
    from brim.errors import ConfigError

    if not words:
        raise ConfigError("brim recipes show: name a recipe; brim recipes lists them")
    _, config = load_recipe(words[0], words[1:])
    return f"{MODELINE}\n{dump_config(config)}"


@app.command()
def schema(
    kind: Annotated[Kind, typer.Argument(help="Of which files.")] = "run",
) -> None:
    """Print the JSON Schema of recipes or other files, for editors.

    As in: brim schema > brim.schema.json
    """
    typer.echo(_schema_text(kind), nl=False)


def _schema_text(kind: Kind) -> str:
    from brim.config.schema import file_schema

    module, _, name = _SETTINGS[kind].partition(":")
    schema = file_schema(getattr(import_module(module), name), f"brim {kind}")
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


@app.command()
def init(
    file: Annotated[Path, typer.Argument(help="Recipe to write.")] = Path("recipe.yaml"),
    data: Annotated[
        str | None, typer.Option(help="A file of rows, or a task's name [cmudict].")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="A model's folder or hub name, or scratch [scratch].")
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(help="Likewise, or how many of the teacher's layers to keep [scratch]."),
    ] = None,
    method: Annotated[str | None, typer.Option(help="Name of a method [anchored].")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing.")] = False,
) -> None:
    """Write a recipe of your own from four answers."""
    from brim.config.schema import SCHEMA_FILE
    from brim.recipes import draft as d
    from brim.support.files import atomic_write_text

    d.check_new(file)
    found = _answer("data", data, d.DATA, "cmudict", yes, d.find_data)
    if found.row is not None:
        typer.echo(f"{found.name}: {found.row.in_words()}, by its first row")
    check_teacher = partial(d.check_teacher, found)
    teacher = _answer("teacher", teacher, d.TEACHER, d.default_teacher(found), yes, check_teacher)
    check_student = partial(d.check_student, teacher)
    student = _answer("student", student, d.STUDENT, d.default_student(teacher), yes, check_student)
    method = _answer("method", method, d.METHOD, "anchored", yes, d.check_method)
    d.write_new(file, d.draft(found, teacher, student, method))
    schema = file.with_name(SCHEMA_FILE)
    atomic_write_text(schema, _schema_text("run"))
    typer.echo(f"recipe: {file}, and for editors {schema}")
    typer.echo(f"next: brim plan {file} · brim train {file}")


def _answer(
    option: str,
    given: str | None,
    question: str,
    default: str | None,
    yes: bool,
    read: Callable[[str], _T],
) -> _T:
    """What is read of the option, of the default, or of an answer, asked for until it is usable."""
    from brim.errors import BrimError, ConfigError

    given = default if given is None and yes else given
    if given is not None:
        return read(given)
    if yes:
        raise ConfigError(f"--{option}: has no default here; give it too")
    typer.echo(question)
    while True:
        try:
            return read(typer.prompt(option, default=default))
        except BrimError as error:
            typer.echo(str(error))
        except typer.Abort as stop:
            typer.echo()
            if isinstance(stop.__context__, KeyboardInterrupt):
                raise typer.Exit(130) from None
            raise ConfigError(
                f"--{option}: no answer; give it as an option, or --yes for the defaults"
            ) from None
