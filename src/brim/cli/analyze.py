"""`brim analyze`: which K or λ, and does Theorem 1 hold, before any reinforcement learning."""

from __future__ import annotations

from os.path import isdir
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from brim.cli.app import Quiet, app, known_split, running

if TYPE_CHECKING:
    from brim.analysis import AnalyzedModel
    from brim.analysis.subjects import Opened
    from brim.support.progress import Reporter

analyze = typer.Typer(no_args_is_help=True, help="Measure how K or λ trades variance for bias.")
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
FromSplit = Annotated[
    str, typer.Option("--split", callback=known_split, help="Where the prompts are from.")
]
Prompts = Annotated[int, typer.Option("--prompts", help="How many, drawn at random; at least 2.")]
SamplesOption = Annotated[int, typer.Option("--samples", help="Rollouts a prompt; even.")]
Ks = Annotated[str | None, typer.Option("--k", help="The K to compare [1,2,4,8,16].")]
Seed = Annotated[int, typer.Option(min=0, help="Of everything random.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the results [RUN/analysis].")]
Stages = Annotated[
    Path | None, typer.Option(help="Of a recipe: folder of stages, made if need be [OUT/stages].")
]


def _add_command(name: str, told: str) -> None:
    """A command of this name that runs `brim.analysis.analyze_{name}`."""

    @analyze.command(name, help=told)
    def command(
        run: Run,
        more: More = None,
        students: Students = None,
        split: FromSplit = "validation",
        prompts: Prompts = 64,
        samples: SamplesOption = 16,
        k: Ks = None,
        seed: Seed = 0,
        out: Out = None,
        stages: Stages = None,
        quiet: Quiet = False,
    ) -> None:
        from brim import analysis
        from brim.support.progress import Reporter

        with running(quiet):
            ks, reporter = _numbers(k), Reporter(quiet=quiet)
            opened, models, folder = _open(run, more, students, out, stages, reporter)
            measured = getattr(analysis, f"analyze_{name}")(
                opened,
                models,
                ks=ks,
                split=split,
                num_prompts=prompts,
                num_samples=samples,
                seed=seed,
            )
            path, *_ = analysis.write_analysis(measured, folder)
        if not quiet:
            for student in measured.students:
                typer.echo(f"{student.label}: {student.verdict}")
            typer.echo(f"tables and figure: {path}")


_add_command(
    "variance",
    "Variance and bias of returns and gradients by K, or by λ of anchored runs, and which to use.",
)
_add_command(
    "theorem1",
    "Measured variance against Theorem 1's law, and how far steps are from independent.",
)


def _open(
    run: str,
    more: list[str] | None,
    students: list[Path] | None,
    out: Path | None,
    stages: Path | None,
    reporter: Reporter,
) -> tuple[Opened, list[AnalyzedModel], Path]:
    """What is analysed, and the folder of the results, which is made before any work."""
    from brim.analysis import find_students, open_recipe, open_run
    from brim.config.loading import load_config
    from brim.errors import ConfigError
    from brim.recipes import find_recipe
    from brim.support.files import disk_errors
    from brim.training.settings import RunConfig

    # A shell makes several words of --students checkpoints/step-*.
    overrides = [word for word in more or [] if "=" in word and not isdir(word)]
    paths = [*(students or []), *(Path(word) for word in more or [] if word not in overrides)]
    models, is_run = find_students(paths), Path(run).is_dir()
    folder = out or Path(run) / "analysis"
    if is_run:
        opened = open_run(Path(run), overrides, reporter)
    else:
        try:
            recipe = find_recipe(run)
        except ConfigError as error:
            raise ConfigError(f"{error}; nor is there such a run directory") from None
        if out is None:
            raise ConfigError("--out: the analysis of a recipe needs a folder; name one")
        config = load_config(RunConfig, recipe, overrides, search=find_recipe)
        stages = stages or out / "stages"
        opened = open_recipe(config, out, stages_dir=stages, reporter=reporter)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return opened, models, folder


def _numbers(text: str | None) -> list[int] | None:
    from brim.errors import ConfigError

    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--k: {text!r} is no list of whole numbers such as 1,2,4") from None
