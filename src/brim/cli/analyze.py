"""`brim analyze`: which K, and does Theorem 1 hold, before any reinforcement learning."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from brim.cli.app import Quiet, Split, app, running

if TYPE_CHECKING:
    from brim.analysis import Subject
    from brim.pipeline import Pipeline
    from brim.progress import Reporter

analyze = typer.Typer(no_args_is_help=True, help="Measure how K trades variance for bias.")
app.add_typer(analyze, name="analyze")

Run = Annotated[str, typer.Argument(help="A run directory, a recipe's name or a YAML file.")]
More = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY.SUB=VALUE | STUDENT", help="Settings to change; more students."),
]
Students = Annotated[
    list[Path] | None,
    typer.Option(
        "--students",
        help="Model folders, or folders of such as checkpoints/ [the student that the objective "
        "starts from].",
    ),
]
FromSplit = Annotated[Split, typer.Option("--split", help="Where the prompts are from.")]
Prompts = Annotated[int, typer.Option("--prompts", min=2, help="How many, drawn at random.")]
SamplesOption = Annotated[int, typer.Option("--samples", min=2, help="Rollouts a prompt.")]
Ks = Annotated[str, typer.Option("--k", help="The K to compare.")]
Seed = Annotated[int, typer.Option(min=0, help="Of everything random.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the results [RUN/analysis].")]
Stages = Annotated[
    Path | None, typer.Option(help="Of a recipe: folder of stages, made if need be [OUT/stages].")
]


@analyze.command()
def variance(
    run: Run,
    more: More = None,
    students: Students = None,
    split: FromSplit = Split.validation,
    prompts: Prompts = 64,
    samples: SamplesOption = 16,
    k: Ks = "1,2,4,8,16",
    seed: Seed = 0,
    out: Out = None,
    stages: Stages = None,
    quiet: Quiet = False,
) -> None:
    """Variance and bias of returns and gradients by K, and which K to use."""
    from brim.analysis import analyze_variance, write_analysis
    from brim.progress import Reporter

    with running(quiet):
        pipeline, subjects, folder = _open(run, more, students, out, stages, Reporter(quiet=quiet))
        analysis = analyze_variance(
            pipeline,
            subjects,
            ks=_numbers(k),
            split=split.value,
            num_prompts=prompts,
            num_samples=samples,
            seed=seed,
        )
        path, *_ = write_analysis(analysis, folder)
    if not quiet:
        for student in analysis.students:
            typer.echo(f"{student.label}: {student.choice.text}")
        typer.echo(f"tables and figure: {path}")


@analyze.command()
def theorem1(
    run: Run,
    more: More = None,
    students: Students = None,
    split: FromSplit = Split.validation,
    prompts: Prompts = 64,
    samples: SamplesOption = 16,
    k: Ks = "1,2,4,8,16",
    seed: Seed = 0,
    out: Out = None,
    stages: Stages = None,
    quiet: Quiet = False,
) -> None:
    """Measured variance against Theorem 1's law, and how far steps are from independent."""
    from brim.analysis import analyze_theorem1, write_analysis
    from brim.progress import Reporter

    with running(quiet):
        pipeline, subjects, folder = _open(run, more, students, out, stages, Reporter(quiet=quiet))
        analysis = analyze_theorem1(
            pipeline,
            subjects,
            ks=_numbers(k),
            split=split.value,
            num_prompts=prompts,
            num_samples=samples,
            seed=seed,
        )
        path, *_ = write_analysis(analysis, folder)
    if not quiet:
        for student in analysis.students:
            typer.echo(f"{student.label}: {student.verdict}")
        typer.echo(f"tables and figure: {path}")


def _open(
    run: str,
    more: list[str] | None,
    students: list[Path] | None,
    out: Path | None,
    stages: Path | None,
    reporter: Reporter,
) -> tuple[Pipeline, list[Subject], Path]:
    from brim.analysis import find_students, open_recipe, open_run
    from brim.config import load_config
    from brim.errors import ConfigError
    from brim.recipes import find_recipe
    from brim.settings import RunConfig

    # A shell makes several words of --students checkpoints/step-*.
    overrides = [word for word in more or [] if "=" in word and not Path(word).is_dir()]
    paths = [*(students or []), *(Path(word) for word in more or [] if word not in overrides)]
    subjects = find_students(paths)
    if Path(run).is_dir():
        pipeline = open_run(Path(run), overrides, reporter)
        return pipeline, subjects, out or Path(run) / "analysis"
    if out is None:
        raise ConfigError("--out: the analysis of a recipe needs a folder; name one")
    config = load_config(RunConfig, find_recipe(run), overrides, search=find_recipe)
    pipeline = open_recipe(config, out, stages_dir=stages or out / "stages", reporter=reporter)
    return pipeline, subjects, out


def _numbers(text: str) -> list[int]:
    from brim.errors import ConfigError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--k: {text!r} is no list of whole numbers such as 1,2,4") from None
