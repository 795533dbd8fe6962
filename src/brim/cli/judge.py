"""A large model as the judge of two systems: the command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from brim.cli.app import Quiet, app, overrides_and_paths, running

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
