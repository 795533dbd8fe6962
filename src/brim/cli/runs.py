"""Train, evaluate, generate: the commands of a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from brim.cli.app import (
    Overrides,
    Quiet,
    Split,
    app,
    complete_recipe,
    finite,
    is_main_process,
    load_recipe,
    running,
)

# Whether a run directory may, must or must not hold a run.
Resume = Literal["auto", "must", "never"]
# The models that a run has before its objective is trained.
Stage = Literal["teacher", "student", "predistill"]


@app.command()
def train(
    recipe: Annotated[
        str,
        typer.Argument(
            help="A recipe's name (brim recipes) or a YAML file.", autocompletion=complete_recipe
        ),
    ],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Run directory [runs/RECIPE].")] = None,
    resume: Annotated[Resume, typer.Option(help="Resume a run in --out?")] = "auto",
    stages: Annotated[
        Path | None, typer.Option(help="Folder of stages that runs share [OUT/stages].")
    ] = None,
    other_processes: Annotated[
        bool,
        typer.Option(
            "--other-processes",
            help="Resume a run that another number of processes began: bits and dropout masks "
            "become others.",
        ),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Run a recipe: teacher, pre-distillation, distillation, test."""
    path, config = load_recipe(recipe, overrides)
    with running(quiet) as reporter:
        from brim.compare.ending import ending
        from brim.recipes import run_directory
        from brim.runs.directory import RunDirectory
        from brim.runs.stage_results import evaluate_stages
        from brim.runs.train import train

        out = out or run_directory(path)
        train(
            config,
            out,
            resume=resume,
            stages_dir=stages,
            reporter=reporter,
            command=sys.argv,
            other_processes=other_processes,
        )
        tests = RunDirectory(out).tests()
        if config.evaluation.stages:
            for split in tests:
                evaluate_stages(out, split=split, reporter=reporter)
        if not quiet and is_main_process():
            for split in tests:
                typer.echo(f"\n{ending(RunDirectory(out), split=split)}")


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    overrides: Overrides = None,
    split: Split = "test",
    model: Annotated[
        str | None, typer.Option(help="Evaluate this folder or hub name instead; needs --out.")
    ] = None,
    stage: Annotated[
        Stage | None,
        typer.Option(
            help="Evaluate the run's teacher, or its student before any training or "
            "pre-distilled, in a folder that runs share."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results [RUN].")] = None,
    quiet: Quiet = False,
) -> None:
    """Score a run's best checkpoint, or another model, on its task."""
    from brim.runs.directory import RunDirectory

    RunDirectory(run).check()  # before torch comes
    with running(quiet) as reporter:
        from brim.report import summary
        from brim.runs.evaluate import evaluate_run
        from brim.runs.inputs import splits_tested

        for name in splits_tested(run, split, overrides or []):
            results = evaluate_run(
                run,
                split=name,
                model=model,
                stage=stage,
                out=out,
                overrides=overrides or [],
                reporter=reporter,
            )
            if not quiet and is_main_process():
                typer.echo(summary(results))


@app.command()
def generate(
    source: Annotated[
        str, typer.Argument(help="A run directory, or a model's folder or hub name.")
    ],
    file: Annotated[Path | None, typer.Argument(help="One prompt a line [standard input].")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest completion.")] = 128,
    temperature: Annotated[float, typer.Option(min=0, callback=finite, help="0 is greedy.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(min=1, help="Likeliest tokens only.")] = None,
    top_p: Annotated[
        float | None, typer.Option(min=0, max=1, callback=finite, help="Nucleus.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the sampling.")] = 0,
    block: Annotated[int, typer.Option(min=1, help="Prompts before the first comes out.")] = 32,
) -> None:
    r"""Complete prompts: one line in, one line out.

    Line breaks of a completion come out as \n.
    """
    from brim.config.loading import make_config
    from brim.errors import ConfigError

    if not temperature and (top_k or top_p):
        raise ConfigError("--top-k, --top-p: are of sampling; give --temperature above 0 too")
    from brim.models.settings import Decoding
    from brim.runs.generate import escape_line, generate, read_prompts

    prompts = read_prompts(file)
    given = {
        "strategy": "sampling" if temperature else "greedy",
        "temperature": temperature or 1.0,
        "top_k": top_k,
        "top_p": top_p,
        "max_tokens": max_tokens,
    }
    decoding = make_config(Decoding, given, "command line")
    with running():
        for text in generate(source, prompts, decoding=decoding, seed=seed, block=block):
            typer.echo(escape_line(text))


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder of runs and report.")] = Path("quickstart"),
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    short: Annotated[
        bool, typer.Option(help="A minute's version, for checking the set-up.")
    ] = False,
) -> None:
    """Distill a teacher of pronunciation by three methods."""
    from brim.quickstart import quickstart

    with running() as reporter:
        typer.echo(quickstart(out, seed=seed, short=short, reporter=reporter))
