"""Asking a judge, and what is written of its answers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brim._version import __version__
from brim.errors import RunError
from brim.judge.asking import Limits, Outcome, ask_all
from brim.judge.contest import Contest, Judge, estimate, read_reply
from brim.judge.render import Said, as_markdown
from brim.judge.store import Reply, Store
from brim.judge.summary import pair_score, summarize
from brim.support.files import atomic_write_text, disk_errors, read_json, write_sealed_json
from brim.support.progress import Reporter


def judge_runs(
    contest: Contest,
    judge: Judge,
    out: Path,
    *,
    store: Path | None = None,
    limits: Limits | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Ask what is not answered yet, and write `judge.json` and `judge.md` into `out`.

    It can be stopped at any time; the same call goes on, and pays for no answer twice. What is in
    `out` may be added to, by criteria or examples; a call that would lose a part of it is refused.

    Args:
        contest: of `open_contest`.
        judge: the one that it was opened with.
        out: folder for the results.
        store: file of the replies, which other comparisons may share; `out/verdicts.sqlite`.
        limits: how many requests and how often.
        reporter: shows progress.

    Returns:
        What `judge.json` holds.

    Raises:
        BrimError: `out` holds another comparison or more than this one, another process is judging
            with the store, or the judge cannot be asked.
        KeyboardInterrupt: after Ctrl-C.
    """
    limits, reporter = limits or Limits(), reporter or Reporter(quiet=True)
    store = store or out / "verdicts.sqlite"
    _check_out(out, contest)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    reporter.say(estimate(contest, store, limits))
    questions = contest.questions()
    with Store(store) as opened:
        known = opened.get(questions)
        left = {key: question for key, question in questions.items() if key not in known}
        outcome = Outcome()
        if left:
            backend = judge.build(contest.identity, limits, reporter.say)
            with reporter.meter("queries", len(left)) as meter:
                outcome = ask_all(
                    left, backend, opened, limits, advance=meter.advance, say=reporter.say
                )
        replies = opened.get(questions)
    told = _told(contest, replies)
    results = _results(contest, replies, told, outcome, out)
    write_sealed_json(out / "judge.json", results)
    atomic_write_text(out / "judge.md", as_markdown(results, contest.asked, told))
    return results


def _told(contest: Contest, replies: Mapping[str, Reply]) -> dict[str, list[list[Said]]]:
    """By criterion, for each asked pair and way to ask, the verdict and the raw reply."""
    return {
        criterion: [
            [
                (read_reply(template.noun, replies[key]), replies[key].text)
                if key in replies
                else None
                for key in contest.keys[pair.id, criterion]
            ]
            for pair in contest.asked
        ]
        for criterion, template in contest.templates.items()
    }


def _results(
    contest: Contest,
    replies: Mapping[str, Reply],
    told: Mapping[str, list[list[Said]]],
    outcome: Outcome,
    out: Path,
) -> dict[str, Any]:
    answers = {
        criterion: [[said and said[0] for said in four] for four in pairs]
        for criterion, pairs in told.items()
    }
    identical = len(contest.pairs) - len(contest.asked)
    summaries = {
        criterion: summarize(pairs, num_identical=identical) for criterion, pairs in answers.items()
    }
    scores = {
        pair.id: {name: pair_score(pairs[i]) for name, pairs in answers.items()}
        for i, pair in enumerate(contest.asked)
    }
    even = dict.fromkeys(contest.templates, 0.5)
    reasons = sorted(set(outcome.failed.values()))
    return {
        **_about(contest, out),
        "kind": contest.kind,
        "templates": {name: template.text for name, template in contest.templates.items()},
        "num_examples": len(contest.pairs),
        "num_examples_of_split": len(contest.a.rows),
        "num_identical": identical,
        "seed": contest.seed,
        "keep_lines": contest.keep_lines,
        "criteria": {name: summary.as_dict() for name, summary in summaries.items()},
        "num_queries": len(set(contest.questions())),
        "num_failed": len(outcome.failed),
        "failures": reasons[:10],
        "suspicious": contest.suspicious(),
        "prompt_tokens": sum(reply.prompt_tokens or 0 for reply in replies.values()),
        "completion_tokens": sum(reply.completion_tokens or 0 for reply in replies.values()),
        "pairs": [{"id": pair.id, "scores": scores.get(pair.id, even)} for pair in contest.pairs],
        "versions": {"brim": __version__},
    }


def _about(contest: Contest, out: Path) -> dict[str, Any]:
    """What a comparison is; directories as they are seen from `out`, so that all may be moved."""
    systems = {
        side: {"name": system.name, "directory": os.path.relpath(system.directory, out)}
        for side, system in (("a", contest.a), ("b", contest.b))
    }
    return {**systems, "split": contest.split, "judge": dict(contest.identity)}


def _check_out(out: Path, contest: Contest) -> None:
    """What `judge.json` holds must be a part of what will take its place: nothing gets lost."""
    path = out / "judge.json"
    if not path.exists():
        return
    known = read_json(path)
    other = f"choose another --out (by --store {out / 'verdicts.sqlite'} it can share the answers)"
    if not isinstance(known, dict):
        raise RunError(f"{path}: is no comparison; {other}")
    for name, value in {**_about(contest, out), "keep_lines": contest.keep_lines}.items():
        if known.get(name) != value:
            raise RunError(f"{path}: holds a comparison with another {name!r}; {other}")
    for name, text in known.get("templates", {}).items():
        if name not in contest.templates:
            raise RunError(
                f"{path}: holds verdicts on {name} too; add it to --criteria, for which no answer "
                f"is asked for again, or {other}"
            )
        if contest.templates[name].text != text:
            raise RunError(f"{path}: holds verdicts to another template {name!r}; {other}")
    ids = {pair["id"] for pair in known.get("pairs", ())}
    if not ids <= {pair.id for pair in contest.pairs}:
        raise RunError(
            f"{path}: holds verdicts on {len(ids):,} examples, which are not all among these; give "
            f"at least --max-examples {len(ids)} with --seed {known.get('seed')}, or {other}"
        )
