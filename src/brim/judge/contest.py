"""Two run directories before a judge: what is asked, what it takes, and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

from brim.config.yaml import parse
from brim.errors import ConfigError
from brim.judge.asking import Backend, Limits, Question
from brim.judge.local import local_backend, local_identity
from brim.judge.openai import OPENAI_KEY, OPENAI_URL, OpenAIBackend, openai_identity
from brim.judge.pairs import System, kind_of, names_of, pairs_of, read_systems
from brim.judge.prompts import (
    CRITERIA,
    Kind,
    Template,
    Verdict,
    imitates_prompt,
    load_templates,
    parse_verdict,
)
from brim.judge.queries import VARIANTS, Pair, query_key
from brim.judge.store import Reply, Store
from brim.tasks import Split

NUM_PAIRS = 500  # all win rates of the paper's Table 3 are multiples of 1/2000


@dataclass(frozen=True, slots=True)
class Judge:
    """Who is asked.

    Attributes:
        model: as the server calls it; or a folder, run directory or hub name.
        backend: `openai` for any server with OpenAI's interface, `local` for this process.
        base_url: of the server; OpenAI's own by default.
        api_key_env: variable that holds the key; by default OPENAI_API_KEY for OpenAI's own server
            and none for others.
        request: settings of a request to be changed, such as `{"max_tokens": 1024}`; None takes
            one out.
    """

    model: str
    backend: Literal["openai", "local"] = "openai"
    base_url: str | None = None
    api_key_env: str | None = None
    request: Mapping[str, Any] = field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """All that a reply depends on; the key does not belong to it.

        Raises:
            ConfigError: the settings cannot be used.
        """
        if self.backend == "openai":
            return openai_identity(self.model, self.base_url or OPENAI_URL, self.request)
        if self.base_url is not None or self.api_key_env is not None:
            raise ConfigError("--base-url, --api-key-env: a local judge has neither; leave it out")
        return local_identity(self.model, self.request)

    def build(
        self, identity: Mapping[str, Any], limits: Limits, say: Callable[[str], None]
    ) -> Backend:
        """The back end, ready to be asked.

        Raises:
            BrimError: no key, no such package, no such model.
        """
        if self.backend == "local":
            return local_backend(identity, batch=limits.concurrency, say=say)
        key = self.api_key_env or (OPENAI_KEY if self.base_url is None else None)
        return OpenAIBackend(identity, api_key_env=key, timeout=limits.timeout)


@dataclass(frozen=True)
class Contest:
    """All that is to be asked.

    Attributes:
        a, b: the systems.
        split: whose predictions they are.
        templates: by criterion.
        kind: whose templates of the paper's; None for the user's own.
        pairs: examples with both texts.
        seed: of the choice of the examples.
        keep_lines: candidates keep their line breaks.
        identity: of the judge.
    """

    a: System
    b: System
    split: Split
    templates: Mapping[str, Template]
    kind: Kind | None
    pairs: Sequence[Pair]
    seed: int
    keep_lines: bool
    identity: Mapping[str, Any]

    @cached_property
    def asked(self) -> list[Pair]:
        """Pairs that the judge is asked about: texts that are equal have no winner."""
        return [pair for pair in self.pairs if not pair.identical]

    @cached_property
    def keys(self) -> dict[tuple[str, str], tuple[str, ...]]:
        """The four keys of each example's id and criterion."""
        return {
            (pair.id, criterion): tuple(
                query_key(self.identity, prompt()) for prompt in self._prompts(pair, criterion)
            )
            for pair in self.asked
            for criterion in self.templates
        }

    def questions(self) -> dict[str, Question]:
        """By key, all of a pair together: what a stop leaves are whole pairs."""
        found = {}
        for pair in self.asked:
            for criterion, template in self.templates.items():
                read = partial(read_reply, template.noun)
                prompts = self._prompts(pair, criterion)
                for key, prompt in zip(self.keys[pair.id, criterion], prompts, strict=True):
                    found[key] = Question(key, prompt, read)
        return found

    def suspicious(self) -> list[str]:
        """Ids of examples with a candidate that imitates the prompt or a verdict."""
        nouns = {template.noun for template in self.templates.values()}
        return [
            pair.id
            for pair in self.pairs
            if any(imitates_prompt(text, noun) for text in (pair.a, pair.b) for noun in nouns)
        ]

    def _prompts(self, pair: Pair, criterion: str) -> list[Callable[[], str]]:
        template = self.templates[criterion]
        return [
            partial(variant.prompt, template, pair, keep_lines=self.keep_lines)
            for variant in VARIANTS
        ]


def open_contest(
    a: Path,
    b: Path,
    judge: Judge,
    *,
    split: Split = "test",
    criteria: Sequence[str] = CRITERIA,
    kind: Kind | None = None,
    prompts: Path | None = None,
    max_examples: int | None = NUM_PAIRS,
    seed: int = 0,
    keep_lines: bool = False,
) -> Contest:
    """Read and check everything that is needed before a judge is asked.

    Args:
        a: a directory with `predictions/SPLIT.jsonl`.
        b: another one.
        judge: who will be asked.
        split: whose predictions.
        criteria: names of templates.
        kind: whose templates of the paper's; by default as the runs' task says.
        prompts: a file of templates to take instead.
        max_examples: judge so many, chosen by `seed`; None for all.
        seed: of that choice.
        keep_lines: candidates keep their line breaks, and can then imitate the prompt's lines.

    Raises:
        BrimError: settings or directories cannot be used.
    """
    identity = judge.identity()
    ours, theirs = read_systems(a, b, split)
    if prompts is not None and kind is not None:
        raise ConfigError("--kind, --prompts: templates of your own are of no kind; give one only")
    if prompts is None and kind is None:
        kind = kind_of(ours, theirs)
    return Contest(
        a=ours,
        b=theirs,
        split=split,
        templates=load_templates(criteria, kind=kind, path=prompts),
        kind=kind,
        pairs=pairs_of(ours, theirs, max_examples=max_examples, seed=seed),
        seed=seed,
        keep_lines=keep_lines,
        identity=identity,
    )


def _criteria(contest: Contest) -> str:
    num = len(contest.templates)
    return f"{num} criteria" if num > 1 else "1 criterion"


def read_reply(noun: str, reply: Reply) -> Verdict:
    """The verdict of a reply to a template with this noun."""
    return parse_verdict(reply.text, noun=noun, refused=reply.refused)


def default_out(a: Path, b: Path) -> Path:
    """Where a comparison goes that is told nothing else; raises like `names_of`.

    What the ends of both paths have in common, such as the seed, follows the names.
    """
    names = "-vs-".join(name.replace("/", "-") for name in names_of(a, b))
    ends = zip(reversed(a.resolve().parts), reversed(b.resolve().parts), strict=False)
    same = [ours for ours, theirs in takewhile(lambda pair: pair[0] == pair[1], ends)]
    return Path("judge") / "-".join([names, *reversed(same)])


def read_request(settings: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` texts, the values as YAML.

    Raises:
        ConfigError: one of them is no such text.
    """
    found = {}
    for text in settings:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise ConfigError(f"--request {text}: write it as KEY=VALUE")
        found[key] = _yaml(value, f"--request {text}")
    return found


def _yaml(text: str, where: str) -> Any:
    return parse(text, lambda line: where).data


def first_prompt(contest: Contest) -> str:
    """The first prompt that would be sent."""
    for question in contest.questions().values():
        return question.prompt()
    return "(all texts are equal: nothing is asked)"


def estimate(contest: Contest, store: Path, limits: Limits) -> str:
    """What judging will take, in a few lines for a person."""
    questions = contest.questions()
    known: Mapping[str, Reply] = {}
    if store.exists():
        with Store(store, alone=False) as opened:
            known = opened.get(questions)
    left = [question for key, question in questions.items() if key not in known]
    characters = sum(len(question.prompt()) for question in left)
    identical = len(contest.pairs) - len(contest.asked)
    most = contest.identity["request"].get("max_tokens")
    lines = [
        f"{contest.a.name} (A) against {contest.b.name} (B) on {contest.split}: "
        f"{len(contest.pairs):,} of {len(contest.a.rows):,} examples"
        + (f", {identical:,} with equal texts that need no judge" if identical else ""),
        f"{len(questions):,} queries: {len(contest.asked):,} pairs, {_criteria(contest)}, "
        f"4 queries each; {len(known):,} answered before, {len(left):,} to ask",
        f"about {characters / 4:,.0f} tokens to read (4 characters each)"
        + (f", at most {most * len(left):,} to write" if isinstance(most, int) else ""),
    ]
    if limits.rpm is not None:
        lines.append(f"at least {len(left) / limits.rpm:,.1f} minutes")
    return "\n".join(lines)
