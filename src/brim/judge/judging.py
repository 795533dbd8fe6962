"""Two systems before a judge: what is asked, what it takes, and what is written of the verdicts."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import takewhile
from pathlib import Path
from typing import Any

from brim._version import __version__
from brim.errors import ConfigError, RunError
from brim.judge.asking import Backend, Outcome, Question, ask_all
from brim.judge.openai import OPENAI_KEY, OPENAI_URL, OpenAIBackend, openai_identity
from brim.judge.pairs import System, kind_of, names_of, pairs_of, read_systems
from brim.judge.prompts import (
    VARIANTS,
    Kind,
    Pair,
    Template,
    Verdict,
    imitates_prompt,
    load_templates,
    parse_verdict,
    query_key,
)
from brim.judge.render import Verdicts, as_markdown
from brim.judge.settings import JudgeConfig
from brim.judge.store import Reply, Store
from brim.judge.summary import pair_score, summarize
from brim.support.files import atomic_write_text, disk_errors, read_json, write_sealed_json
from brim.support.progress import Reporter


@dataclass(frozen=True)
class PairwiseJudging:
    """All that a judge is to be asked about the systems a and b.

    Attributes:
        kind: whose templates of the paper; None for others.
        templates: by criterion.
        pairs: examples with both texts.
        identity: of the judge.
    """

    settings: JudgeConfig
    a: System
    b: System
    kind: Kind | None
    templates: Mapping[str, Template]
    pairs: Sequence[Pair]
    identity: Mapping[str, Any]

    @cached_property
    def asked(self) -> list[Pair]:
        """Pairs that the judge is asked about: texts that are equal have no winner."""
        return [pair for pair in self.pairs if not pair.identical]

    @cached_property
    def queries(self) -> dict[tuple[str, str], list[Question]]:
        """The four questions about each example's id by each criterion."""
        return {
            (pair.id, criterion): [
                self._question(template, partial(variant.prompt, template, pair,
                                                 keep_lines=self.settings.keep_lines))
                for variant in VARIANTS
            ]
            for pair in self.asked
            for criterion, template in self.templates.items()
        }  # fmt: skip

    @cached_property
    def questions(self) -> dict[str, Question]:
        """By key, all of a pair together: what a stop leaves are whole pairs."""
        return {query.key: query for queries in self.queries.values() for query in queries}

    def first_prompt(self) -> str:
        """Return the first prompt that would be sent."""
        for question in self.questions.values():
            return question.prompt()
        return "(all texts are equal: nothing is asked)"

    def store(self, out: Path) -> Path:
        """Return the file of the answers, in `out` unless the settings name one."""
        return self.settings.store or out / "verdicts.sqlite"

    def suspicious(self) -> list[str]:
        """Return the ids of examples with a text that imitates the prompt or a verdict."""
        nouns = {template.noun for template in self.templates.values()}
        return [
            pair.id
            for pair in self.pairs
            if any(imitates_prompt(text, noun) for text in (pair.a, pair.b) for noun in nouns)
        ]

    def _question(self, template: Template, prompt: Callable[[], str]) -> Question:
        return Question(
            query_key(self.identity, prompt()), prompt, partial(_read_reply, template.noun)
        )


def open_judging(settings: JudgeConfig) -> PairwiseJudging:
    """Read and check everything that is needed before a judge is asked.

    Raises:
        BrimError: settings or directories cannot be used.
    """
    identity = _identity(settings)
    if settings.a is None or settings.b is None:
        raise ConfigError("a, b: name two runs to compare, in the file or on the command line")
    a, b = read_systems(settings.a, settings.b, settings.split)
    kind = settings.kind
    if settings.prompts is None and kind is None:
        kind = kind_of(a, b)
    return PairwiseJudging(
        settings=settings,
        a=a,
        b=b,
        kind=kind,
        templates=load_templates(settings.criteria, kind=kind, path=settings.prompts),
        pairs=pairs_of(a, b, max_examples=settings.max_examples, seed=settings.seed),
        identity=identity,
    )


def _identity(settings: JudgeConfig) -> dict[str, Any]:
    """All that a reply depends on; the key does not belong to it."""
    if settings.backend == "openai":
        url = OPENAI_URL if settings.base_url is None else settings.base_url
        return openai_identity(settings.model, url, settings.request)
    from brim.judge.local import local_identity

    return local_identity(settings.model, settings.request)


def _backend(judging: PairwiseJudging, say: Callable[[str], None]) -> Backend:
    settings = judging.settings
    if settings.backend == "local":
        from brim.judge.local import LocalBackend

        return LocalBackend(judging.identity, say)
    key = settings.api_key_env or (OPENAI_KEY if settings.base_url is None else None)
    return OpenAIBackend(judging.identity, api_key_env=key, timeout=settings.limits.timeout)


def _read_reply(noun: str, reply: Reply) -> Verdict:
    return parse_verdict(reply.text, noun=noun, refused=reply.refused)


def default_out(a: Path, b: Path) -> Path:
    """Return the folder of a comparison that is given none; raises like `names_of`.

    What the ends of both paths have in common, such as the seed, follows the names.
    """
    names = "-vs-".join(name.replace("/", "-") for name in names_of(a, b))
    ends = zip(reversed(a.resolve().parts), reversed(b.resolve().parts), strict=False)
    same = [ours for ours, theirs in takewhile(lambda pair: pair[0] == pair[1], ends)]
    return Path("judge") / "-".join([names, *reversed(same)])


def estimate(judging: PairwiseJudging, out: Path) -> str:
    """Return in a few lines what judging will take, with what is answered for `out` already."""
    questions, known = judging.questions, set[str]()
    if judging.store(out).exists():
        with Store(judging.store(out), alone=False) as opened:
            known = set(opened.get(questions))
    left = [question for key, question in questions.items() if key not in known]
    characters = sum(len(question.prompt()) for question in left)
    identical = len(judging.pairs) - len(judging.asked)
    most, num_criteria = judging.identity["request"].get("max_tokens"), len(judging.templates)
    lines = [
        f"{judging.a.name} (A) against {judging.b.name} (B) on {judging.settings.split}: "
        f"{len(judging.pairs):,} of {len(judging.a.rows):,} examples"
        + (f", {identical:,} with equal texts that need no judge" if identical else ""),
        f"{len(questions):,} queries: {len(judging.asked):,} pairs, {num_criteria} "
        f"{'criteria' if num_criteria > 1 else 'criterion'}, 4 queries each; {len(known):,} "
        f"answered before, {len(left):,} to ask",
        f"about {characters / 4:,.0f} tokens to read (4 characters each)"
        + (f", at most {most * len(left):,} to write" if isinstance(most, int) else ""),
    ]
    if judging.settings.limits.rpm is not None:
        lines.append(f"at least {len(left) / judging.settings.limits.rpm:,.1f} minutes")
    return "\n".join(lines)


def judge_runs(
    judging: PairwiseJudging, out: Path, *, reporter: Reporter | None = None
) -> dict[str, Any]:
    """Ask what is not answered yet, and write `judge.json`, which is returned, and `judge.md`.

    It can be stopped at any time; the same call resumes, and pays for no answer twice. What is in
    `out` may be added to, by criteria or examples; a call that would lose a part of it is refused.

    Raises:
        BrimError: `out` holds another comparison or more than this one, another process is judging
            with the store, or the judge cannot be asked.
        KeyboardInterrupt: after Ctrl-C.
    """
    reporter = reporter or Reporter(quiet=True)
    _check_out(out, judging)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    reporter.say(estimate(judging, out))
    with Store(judging.store(out)) as opened:
        num_left = len(judging.questions) - len(opened.get(judging.questions))
        outcome = Outcome()
        if num_left:
            backend = _backend(judging, reporter.say)
            with reporter.meter("queries", num_left) as meter:
                outcome = ask_all(
                    judging.questions, backend, opened, judging.settings.limits,
                    advance=meter.advance, say=reporter.say,
                )  # fmt: skip
        replies = opened.get(judging.questions)
    verdicts = {
        criterion: [
            [
                (Verdict(query.read(replies[query.key])), replies[query.key].text)
                if query.key in replies
                else None
                for query in judging.queries[pair.id, criterion]
            ]
            for pair in judging.asked
        ]
        for criterion in judging.templates
    }
    results = _results(judging, out, replies, verdicts, outcome)
    write_sealed_json(out / "judge.json", results)
    atomic_write_text(out / "judge.md", as_markdown(results, judging.asked, verdicts))
    return results


def _results(
    judging: PairwiseJudging,
    out: Path,
    replies: Mapping[str, Reply],
    verdicts: Verdicts,
    outcome: Outcome,
) -> dict[str, Any]:
    answers = {
        criterion: [[answer and answer[0] for answer in four] for four in pairs]
        for criterion, pairs in verdicts.items()
    }
    identical = len(judging.pairs) - len(judging.asked)
    scores = {
        pair.id: {name: pair_score(pairs[i]) for name, pairs in answers.items()}
        for i, pair in enumerate(judging.asked)
    }
    even = dict.fromkeys(judging.templates, 0.5)
    return {
        **_about(judging, out),
        "kind": judging.kind,
        "templates": {name: template.text for name, template in judging.templates.items()},
        "num_examples": len(judging.pairs),
        "num_examples_of_split": len(judging.a.rows),
        "num_identical": identical,
        "seed": judging.settings.seed,
        "keep_lines": judging.settings.keep_lines,
        "criteria": {
            criterion: summarize(pairs, num_identical=identical).as_dict()
            for criterion, pairs in answers.items()
        },
        "num_queries": len(judging.questions),
        "num_failed": len(outcome.failed),
        "failures": sorted(set(outcome.failed.values()))[:10],
        "suspicious": judging.suspicious(),
        "prompt_tokens": sum(reply.prompt_tokens or 0 for reply in replies.values()),
        "completion_tokens": sum(reply.completion_tokens or 0 for reply in replies.values()),
        "pairs": [{"id": pair.id, "scores": scores.get(pair.id, even)} for pair in judging.pairs],
        "versions": {"brim": __version__},
    }


def _about(judging: PairwiseJudging, out: Path) -> dict[str, Any]:
    """What a comparison is; directories as they are seen from `out`, so that all may be moved."""
    systems = {
        side: {"name": system.name, "directory": os.path.relpath(system.directory, out)}
        for side, system in (("a", judging.a), ("b", judging.b))
    }
    return {**systems, "split": judging.settings.split, "judge": dict(judging.identity)}


def _check_out(out: Path, judging: PairwiseJudging) -> None:
    """What `judge.json` holds must be a part of what will take its place: nothing gets lost."""
    path = out / "judge.json"
    if not path.exists():
        return
    known = read_json(path)
    other = f"choose another --out (by store={out / 'verdicts.sqlite'} it can share the answers)"
    if not isinstance(known, dict):
        raise RunError(f"{path}: is no comparison; {other}")
    about = {**_about(judging, out), "keep_lines": judging.settings.keep_lines}
    for name, value in about.items():
        if known.get(name) != value:
            raise RunError(f"{path}: holds a comparison with another {name!r}; {other}")
    for name, text in known.get("templates", {}).items():
        if name not in judging.templates:
            raise RunError(
                f"{path}: holds verdicts on {name} too; add it to criteria, for which no answer "
                f"is asked for again, or {other}"
            )
        if judging.templates[name].text != text:
            raise RunError(f"{path}: holds verdicts to another template {name!r}; {other}")
    ids = {pair["id"] for pair in known.get("pairs", ())}
    if not ids <= {pair.id for pair in judging.pairs}:
        raise RunError(
            f"{path}: holds verdicts on {len(ids):,} examples, which are not all among these; give "
            f"at least max_examples={len(ids)} with seed={known.get('seed')}, or {other}"
        )
