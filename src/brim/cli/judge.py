"""A large model as the judge of two systems: the command."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from brim.cli.app import Quiet, Split, app, running


class JudgeBackend(StrEnum):
    """Where the judge is."""

    openai = "openai"
    local = "local"


class JudgeKind(StrEnum):
    """What the systems do."""

    summarization = "summarization"
    translation = "translation"


@app.command()
def judge(
    a: Annotated[Path, typer.Argument(help="A run directory, the one whose win rate is asked.")],
    b: Annotated[Path, typer.Argument(help="Another one, on the same examples.")],
    model: Annotated[
        str, typer.Option(help="As the server calls it; for local a folder, run or hub name.")
    ],
    criteria: Annotated[
        str, typer.Option(help="Templates, with commas [the paper's three].", show_default=False)
    ] = "overall,informativeness,coherence",
    backend: Annotated[
        JudgeBackend, typer.Option(help="A server, or this process.")
    ] = JudgeBackend.openai,
    base_url: Annotated[str | None, typer.Option(help="Of the server [OpenAI's].")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="Variable with the key.")] = None,
    request: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Setting of a request.")
    ] = None,
    kind: Annotated[
        JudgeKind | None, typer.Option(help="Which prompts [as the task says].")
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="YAML with templates of your own.")] = None,
    split: Annotated[Split, typer.Option(help="Which part of the data.")] = Split.test,
    max_examples: Annotated[int, typer.Option(min=1, help="Judge at most so many.")] = 500,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of examples.")] = 0,
    keep_lines: Annotated[
        bool, typer.Option("--keep-lines", help="Keep the line breaks of the judged texts.")
    ] = False,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at the same time.")] = 8,
    rpm: Annotated[float | None, typer.Option(min=0.01, help="Requests a minute.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds of a request.")] = 60.0,
    max_retries: Annotated[int, typer.Option(min=0, help="Further tries of a query.")] = 5,
    out: Annotated[Path | None, typer.Option(help="Folder [judge/A-vs-B].")] = None,
    store: Annotated[
        Path | None, typer.Option(help="File of the answers [OUT/verdicts.sqlite].")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be asked, and show a prompt.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Have a large model compare two systems.

    By the paper's prompts, in four queries a pair.
    """
    from brim.judge import Limits
    from brim.judge.contest import (
        Judge,
        default_out,
        estimate,
        first_prompt,
        open_contest,
        read_request,
    )
    from brim.judge.render import summary_lines
    from brim.judge.run import judge_runs
    from brim.support.progress import Reporter

    judge = Judge(model, backend.value, base_url, api_key_env, read_request(request or []))
    limits = Limits(concurrency=concurrency, rpm=rpm, timeout=timeout, max_retries=max_retries)
    out = out or default_out(a, b)
    with running(quiet):
        contest = open_contest(
            a,
            b,
            judge,
            split=split.value,
            criteria=[name.strip() for name in criteria.split(",")],
            kind=None if kind is None else kind.value,
            prompts=prompts,
            max_examples=max_examples,
            seed=seed,
            keep_lines=keep_lines,
        )
        if dry_run:
            typer.echo(estimate(contest, store or out / "verdicts.sqlite", limits))
            typer.echo(f"\n{first_prompt(contest)}")
            return
        reporter = Reporter(quiet=quiet)
        results = judge_runs(contest, judge, out, store=store, limits=limits, reporter=reporter)
    if not quiet:
        typer.echo(summary_lines(results))
        typer.echo(f"more: {out / 'judge.md'}")
