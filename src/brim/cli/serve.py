"""`brim serve`: a model behind HTTP."""

from __future__ import annotations

from typing import Annotated

import typer

from brim.cli.app import Quiet, app, running


@app.command()
def serve(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL|RUN", help="A run directory, a model's folder or hub name."),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY.SUB=VALUE", help="Settings to change (docs/serve.md).", show_default=False
        ),
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port [8472]; 0 for any free one.")] = None,
    host: Annotated[str | None, typer.Option(help="Address [127.0.0.1].")] = None,
    name: Annotated[str | None, typer.Option(help="As requests call it [MODEL].")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16 [float32].")] = None,
    quantization: Annotated[
        str | None, typer.Option(metavar="BACKEND:BITS", help="Such as torchao:8.")
    ] = None,
    key_env: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Environment variable with the key of requests; needed beyond this machine.",
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Serve a teacher over HTTP: its Q-values and its text."""
    from brim.config.loading import load_config
    from brim.serve.checks import prepare
    from brim.serve.settings import ServeConfig

    backend, _, bits = (quantization or "").partition(":")
    options = {
        "model": model,
        "port": port,
        "host": host,
        "name": name,
        "dtype": dtype,
        "key_env": key_env,
        "quantization.backend": backend or None,
        "quantization.bits": bits or None,
    }
    given = [f"{key}={value}" for key, value in options.items() if value is not None]
    config = load_config(ServeConfig, None, [*given, *(settings or [])])
    place = prepare(config)
    from brim.serve.run import serve

    with running(quiet):
        serve(config, place, lambda line: None if quiet else typer.echo(line))
