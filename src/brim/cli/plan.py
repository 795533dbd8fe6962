"""`brim plan`: what a recipe or a sweep takes."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from brim.cli.app import Overrides, app, complete_recipe, finite, load_recipe, running


@app.command()
def plan(
    recipe: Annotated[
        str,
        typer.Argument(
            help="A recipe's name, or a YAML file; or a sweep's.", autocompletion=complete_recipe
        ),
    ],
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Bytes and operations as JSON.")] = False,
    memory: Annotated[
        float | None,
        typer.Option(min=0, callback=finite, metavar="GIB", help="Warn of phases that need more."),
    ] = None,
    devices: Annotated[int, typer.Option(min=1, help="Share the run out over so many.")] = 1,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Time real steps of each stage here: hours, and advice."),
    ] = False,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of each stage that --measure times [1].")
    ] = None,
    tflops: Annotated[
        float | None,
        typer.Option(
            min=0,
            callback=finite,
            help="Of a sweep: what a device reaches, 10^12 operations a second, as --measure "
            "finds it: gives device-days.",
        ),
    ] = None,
) -> None:
    """Say what a recipe or a sweep takes, without its weights."""
    from brim.errors import ConfigError

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    if is_sweep(recipe):
        from brim.plan import plan_sweep, sweep_as_dict, sweep_as_text
        from brim.sweep import load_sweep, points

        if overrides or measure or steps:
            raise ConfigError(f"{recipe}: a sweep's plan takes no settings and no --measure")
        runs = points(load_sweep(Path(recipe)), recipe)
        whole = plan_sweep(runs, devices=devices, memory_limit=memory, tflops=tflops)
        table = sweep_as_text(whole, width=width)
        typer.echo(json.dumps(sweep_as_dict(whole), indent=2) if as_json else table)
        return
    if tflops is not None:
        raise ConfigError("--tflops: is for a sweep; --measure times the steps of a recipe")
    if steps is not None and not measure:
        raise ConfigError("--steps: are those that --measure times; add it")
    if measure and devices > 1:
        raise ConfigError("--measure: times one device; leave out --devices")
    _, config = load_recipe(recipe, overrides)
    from brim.plan import as_dict, as_text, plan
    from brim.plan import measure as timed
    from brim.support.progress import Reporter

    found = plan(config, devices=devices, memory_limit=memory)
    if measure:
        with running():
            found = timed(found, config, steps=steps or 1, reporter=Reporter())
    typer.echo(json.dumps(as_dict(found), indent=2) if as_json else as_text(found, width=width))


def is_sweep(name: str) -> bool:
    """Whether this is a sweep's file, which has `systems`; one that cannot be read is none."""
    from brim.config.loading import read_extended
    from brim.errors import ConfigError
    from brim.recipes import find_recipe

    try:
        return "systems" in read_extended(Path(name), [], find_recipe).data
    except ConfigError:
        return False
