"""Report, compare, judge: the commands that read what runs came to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from brim.cli.app import Quiet, Split, app, finite, overrides_and_paths, running
from brim.cli.process import hushed


@app.command()
def report(
    directories: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Folders that hold run directories.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("report"),
    split: Split = "test",
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="LABEL",
            help="System that the tables' marks of significance are against [LLMR].",
        ),
    ] = None,
    alpha: Annotated[
        float,
        typer.Option(
            min=0, max=1, callback=finite, help="Level of significance; the paper's is 0.035."
        ),
    ] = 0.05,
    outputs: Annotated[int, typer.Option(min=0, help="Examples with texts on the page.")] = 200,
    paper: Annotated[
        bool,
        typer.Option(
            "--paper", help="The paper's titles, order and numbers of tables and figures."
        ),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Make a page, tables and figures from runs."""
    with hushed(quiet):
        from brim.report import write_reports
        from brim.support.progress import Reporter

        written = write_reports(
            directories,
            out,
            split=split,
            baseline=baseline,
            alpha=alpha,
            max_outputs=outputs,
            paper=paper,
            reporter=Reporter(quiet=quiet),
        )
    if not quiet:
        typer.echo(written.text)
        typer.echo(f"report: {out / 'report.html'} · {out / 'summary.md'}")


@app.command()
def compare(
    a: Annotated[
        Path, typer.Argument(help="A run, stage or evaluation; or a folder of runs seed=*.")
    ],
    b: Annotated[Path, typer.Argument(help="Another one, of the same examples.")],
    split: Split = "test",
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Compare this only, may be repeated; the first one orders the sentences "
            "[all scores of both].",
            show_default=False,
        ),
    ] = None,
    resamples: Annotated[int, typer.Option(min=1, help="For intervals and p-values.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Of the resamples.")] = 0,
    sentences: Annotated[int, typer.Option(min=0, help="To show in each direction, at most.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="All numbers and texts as JSON.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for comparison.md and comparison.json.")
    ] = None,
) -> None:
    """Say whether A is better than B, and where they differ most."""
    from brim.compare import compare
    from brim.compare.seeds import splits_tested
    from brim.compare.write import comparison_text, write_comparison

    tests = splits_tested(a, split)
    found = {
        name: compare(
            a,
            b,
            split=name,
            metrics=metric,
            num_resamples=resamples,
            seed=seed,
            num_sentences=sentences,
        )
        for name in tests
    }
    if out is not None:
        for name, comparison in found.items():
            write_comparison(comparison, out if len(tests) == 1 else out / name)
    if not as_json:
        typer.echo("\n\n".join(map(comparison_text, found.values())))
        return
    values = {name: comparison.as_dict() for name, comparison in found.items()}
    # JSON in ASCII: a terminal obeys no character that a model wrote.
    typer.echo(json.dumps(values if len(tests) > 1 else values[tests[0]], indent=2))


_EXAMPLE = """\b
The file says who judges, for example:
  model: Qwen/Qwen2.5-72B-Instruct
  base_url: http://localhost:8000/v1
  limits: {concurrency: 16}

docs/judge.md has all of its keys. Begin with a few examples:

\b
  brim judge judge.yaml runs/xsum/brim runs/xsum/kl max_examples=20 --dry-run
"""


@app.command(epilog=_EXAMPLE)
def judge(
    file: Annotated[Path, typer.Argument(help="Who judges, by which prompts (YAML).")],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="A B KEY.SUB=VALUE",
            help="The runs, whose win rate is A's, unless the file names them; settings to change.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder [judge/A-vs-B].")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be asked, and show a prompt.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Have a large model compare two systems.

    By the paper's prompts, in four queries a pair.
    """
    from brim.config.loading import load_config
    from brim.errors import ConfigError
    from brim.judge import (
        JudgeConfig,
        default_out,
        estimate,
        judge_runs,
        open_judging,
        summary_lines,
    )

    overrides, runs = overrides_and_paths(words)
    if len(runs) not in (0, 2):
        raise ConfigError(f"{', '.join(map(str, runs))}: name two runs, A and B")
    settings = load_config(JudgeConfig, file, overrides)
    settings = settings.model_copy(update=dict(zip("ab", runs, strict=False)))
    judging = open_judging(settings)
    out = out or default_out(judging.a.directory, judging.b.directory)
    if dry_run:
        typer.echo(f"{estimate(judging, out)}\n\n{judging.first_prompt()}")
        return
    with running(quiet) as reporter:
        results = judge_runs(judging, out, reporter=reporter)
    if not quiet:
        typer.echo(summary_lines(results))
        typer.echo(f"more: {out / 'judge.md'}")
