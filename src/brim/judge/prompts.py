"""What a judge is asked, by the paper's templates (Tables 9 and 10) or others; its verdicts."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, get_args

from brim.config.loading import read_mapping
from brim.config.messages import did_you_mean
from brim.errors import ConfigError

Kind = Literal["summarization", "translation"]
KINDS: tuple[Kind, ...] = get_args(Kind)
CRITERIA = ("overall", "informativeness", "coherence")

_DATA = Path(__file__).parents[1] / "data" / "judge"
_SLOT = re.compile(r"\[(Source|ID1|ID2|[^\W\d_]+-[AB])\]")


class Verdict(StrEnum):
    """What one reply says."""

    A = "A"
    B = "B"
    TIE = "tie"
    REFUSAL = "refusal"
    UNPARSABLE = "unparsable"


@dataclass(frozen=True, slots=True)
class Template:
    """A prompt with the slots `[Source]`, `[ID1]`, `[ID2]`, `[Noun-A]` and `[Noun-B]`.

    `Noun` is what the candidates are called, such as Summary. `[Noun-A]` holds the text that is
    listed first, whichever ID it goes by.

    Attributes:
        text: the template as written.
        noun: of the slots, in lower case.
    """

    text: str
    noun: str

    def fill(self, *, source: str, ids: tuple[str, str], texts: tuple[str, str]) -> str:
        """Return the prompt, filled in one pass: what looks like a slot in a text stays text.

        `ids` and `texts` are those of the candidate listed first and of the second.
        """
        values = {"Source": source, "ID1": ids[0], "ID2": ids[1]}

        def value(slot: re.Match[str]) -> str:
            name = slot[1]
            return values[name] if name in values else texts["AB".index(name[-1])]

        return _SLOT.sub(value, self.text)


def load_templates(
    criteria: Sequence[str], *, kind: Kind | None = None, path: Path | None = None
) -> dict[str, Template]:
    """Return the template of each criterion: the paper's for this kind, or those of a YAML file.

    Raises:
        ConfigError: neither or no such template; a template without one of its slots or without
            the line `Preferred:`, which verdicts are read from; a criterion twice.
    """
    if path is None and kind is None:
        raise ConfigError(
            f"kind: say {' or '.join(KINDS)}, which the paper has prompts for; for anything else "
            "give templates of your own by `prompts` (see docs/judge.md)"
        )
    path = path or _DATA / f"{kind}.yaml"
    document = read_mapping(path)
    known = {
        name: _template(template, f"{document.origin((name,))}: {name}")
        for name, template in document.data.items()
    }
    if not criteria or len(set(criteria)) < len(criteria):
        raise ConfigError("criteria: name each criterion once, as in [overall, coherence]")
    for name in criteria:
        if name not in known:
            hint = did_you_mean(name, known)
            has = ", ".join(known) or "none"
            raise ConfigError(f"criteria: {name!r} is no template of {path}, which has {has}{hint}")
    return {name: known[name] for name in criteria}


def one_line(text: str) -> str:
    """Return the text with each run of white space, line breaks of any kind too, as one space.

    The paper's prompts tell candidates apart by nothing but the beginnings of lines. A candidate
    of one line cannot begin another one's line, nor the judge's instructions.
    """
    return " ".join(text.split())


def imitates_prompt(text: str, noun: str) -> bool:
    """Return whether a candidate looks like a part of the prompt, a verdict or a chat's markup."""
    pattern = rf"\bpreferred\W*:|\b{re.escape(noun)}[\s\[(<*]*[AB]\b\W*?:|<\|\w+\|>"
    return bool(re.search(pattern, text, re.IGNORECASE))


def _template(text: object, where: str) -> Template:
    if not isinstance(text, str):
        raise ConfigError(f"{where}: is no text; write the template below it, indented, after `|`")
    slots = _SLOT.findall(text)
    nouns = sorted({slot[:-2] for slot in slots if slot.endswith(("-A", "-B"))})
    if len(nouns) != 1:
        raise ConfigError(
            f"{where}: the candidates' slots are {' and '.join(nouns) or 'missing'}; write the two "
            "as [Answer-A] and [Answer-B], with one noun"
        )
    noun = nouns[0]
    for slot in ("Source", "ID1", "ID2", f"{noun}-A", f"{noun}-B"):
        if slot not in slots:
            raise ConfigError(f"{where}: no slot [{slot}]; write it where its text goes")
    if "preferred:" not in text.lower():
        raise ConfigError(
            f"{where}: does not ask for a line `Preferred: <ID>`, which verdicts are read from"
        )
    return Template(text.strip(), noun.lower())


@dataclass(frozen=True, slots=True)
class Pair:
    """One example with what two systems, a and b, wrote for it."""

    id: str
    source: str
    a: str
    b: str

    @property
    def identical(self) -> bool:
        """Nothing to choose between: such a pair is a tie without being asked about."""
        return one_line(self.a) == one_line(self.b)


@dataclass(frozen=True, slots=True)
class Variant:
    """One of the four ways to ask about a pair: each order, and in each order both IDs.

    Attributes:
        a_first: system a's text is listed first.
        id_of_a: the ID that system a's text goes by, `A` or `B`.
    """

    a_first: bool
    id_of_a: str

    @property
    def ids(self) -> tuple[str, str]:
        """Of the text listed first and of the second."""
        return ("A", "B") if self.a_first == (self.id_of_a == "A") else ("B", "A")

    def prompt(self, template: Template, pair: Pair, *, keep_lines: bool = False) -> str:
        """Return the filled template; candidates that keep their lines can imitate the prompt's."""
        a, b = (pair.a, pair.b) if keep_lines else (one_line(pair.a), one_line(pair.b))
        return template.fill(
            source=pair.source, ids=self.ids, texts=(a, b) if self.a_first else (b, a)
        )

    def score(self, verdict: Verdict | None) -> float | None:
        """Return 1 where system a won, 0 where b did, ½ for a tie, None without a verdict."""
        if verdict is Verdict.TIE:
            return 0.5
        if verdict in (Verdict.A, Verdict.B):
            return float(verdict.value == self.id_of_a)
        return None


# Neighbors 0-1 and 2-3 differ in the IDs alone, 0-2 and 1-3 in the order alone.
VARIANTS = (Variant(True, "A"), Variant(True, "B"), Variant(False, "A"), Variant(False, "B"))


def query_key(judge: Mapping[str, Any], prompt: str) -> str:
    """Return the SHA-256 (hex) of all that a reply depends on, its key in the store."""
    text = json.dumps([dict(judge), prompt], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


# What may be around an ID: quotes, brackets, Markdown, full stops. Around a label there may be no
# quotes: what is quoted is not the judge's own.
_MARKS = " \t*_`#>\"'\u201c\u201d\u2018\u2019«»()[]{}<.,;:"
_AROUND = f"[{re.escape(_MARKS)}]*"
_MARKDOWN = r"[\s*_`#()\[\]{}<.]*"
_NAME = "(?:NOUN|option|candidate|id)"
_LABEL = (
    rf"{_MARKDOWN}(?:(?:[-•]|\d+[.)]){_MARKDOWN})?(?:second[,:.]?{_MARKDOWN})?"
    rf"preferred(?: +{_NAME})*[*_`\"]*[:\uff1a](.*)"
)
_CHOICE = rf"(?:the +)?(?:{_NAME}{_AROUND})*\b([AB])\b"
_TIE = r"(?:a |it'?s a )?(?:tie|tied|draw)\b|(?:equal|both|neither|no preference)\b"
# What may follow on the line: a reason. `A or B`, `A, B` and `A (tie)` are no verdict.
_REASON = (
    r"(?:because|since|as|due|given|over|(?:even )?though|although|while|despite|thanks|its?"
    r"|it['\u2019]s|for (?:its|being|having))\b"
)
_NEW_CLAUSE = re.compile(r"[*_`\"')\]}>]*(?:[.;:]| *[-\u2013\u2014]| *\()")
_OTHER_ANSWER = rf"(?:or|and)\b|{_CHOICE}|{_TIE}"
_DASHES = "-\u2013\u2014"
_REFUSAL = re.compile(
    r"(?:i['\u2019]?m |i am )?(?:very )?sorry\b|as an ai\b|i apologi[sz]e\b"
    r"|(?:i|we) (?:cannot|(?:can|could|will) not|(?:can|couldn|won)['\u2019]t)\b"
    r"|(?:i|we) (?:must |have to )?(?:decline|refuse)\b|(?:i['\u2019]m|i am) (?:unable|not able)\b",
    re.IGNORECASE,
)
# Some chat templates write the opening tag themselves, so that a reply has the closing one only.
_THOUGHT = re.compile(r"\A.*</think>|\A\s*<think>.*", re.DOTALL)


# What the judge quotes: a line behind `>`, a fenced block, a passage of several lines in quotes.
_QUOTED = re.compile(
    r"""^[ \t]*>[^\n]*$|^[ \t]*(?P<fence>```|~~~).*?^[ \t]*(?P=fence)[ \t]*$"""
    r"""|"[^"]*"|\u201c[^\u201d]*\u201d|«[^»]*»""",
    re.MULTILINE | re.DOTALL,
)
_ALL_FENCED = re.compile(r"\s*```\w*\n((?:(?!```).)*)\n```\s*", re.DOTALL)


def parse_verdict(reply: str, *, noun: str, refused: bool = False) -> Verdict:
    """Return the verdict of a reply, by its last line `Preferred: <ID>` alone.

    The last one, because a judge may begin with a verdict and change it. The ID may be on the next
    line, in brackets, quotes or Markdown, behind the noun (`Summary A`), and before a reason
    (`A because it is shorter`). Anything else on the line is unparsable, and so is a reply whose
    verdict is only in its sentences, or in what it quotes: lines behind `>`, fenced blocks,
    passages of several lines in quotes. What is before `</think>` is no part of a reply, and what
    follows it on its line no verdict: it may be a candidate's, quoted.

    `noun` is what the prompt calls a candidate, such as `summary`; `refused` what the server says.
    """
    if refused:
        return Verdict.REFUSAL
    reply = _THOUGHT.sub("\u2026", reply)
    fenced = _ALL_FENCED.fullmatch(reply)
    reply = "\n".join((fenced[1] if fenced else reply).splitlines())
    reply = _QUOTED.sub(lambda quoted: quoted[0] if _is_own(quoted) else "\u2026", reply)
    lines = [line.strip() for line in reply.splitlines() if line.strip(" \t\u2026")]
    label, choice, other = (
        re.compile(pattern.replace("NOUN", re.escape(noun)), re.IGNORECASE)
        for pattern in (_LABEL, _CHOICE, _OTHER_ANSWER)
    )
    labels = [(i, found[1]) for i, line in enumerate(lines) if (found := label.fullmatch(line))]
    if not labels:
        return Verdict.REFUSAL if lines and _REFUSAL.match(lines[0]) else Verdict.UNPARSABLE
    position, value = labels[-1]
    if not value.strip(" *_`") and position + 2 == len(lines):
        value = lines[-1]
    answer = value.lstrip(_MARKS)
    tie = re.match(_TIE, answer, re.IGNORECASE)
    found = tie or choice.match(answer)
    if found and _ends(answer[found.end() :], other):
        return Verdict.TIE if tie else Verdict(found[1].upper())
    return Verdict.REFUSAL if _REFUSAL.match(answer) else Verdict.UNPARSABLE


def _ends(rest: str, other_answer: re.Pattern[str]) -> bool:
    """Whether an answer is whole before the rest of its line: nothing follows, or a reason."""
    clause = rest.lstrip(_MARKS + _DASHES)
    if not clause or re.match(_REASON, clause, re.IGNORECASE):
        return True
    return bool(_NEW_CLAUSE.match(rest)) and clause[0].isalnum() and not other_answer.match(clause)


def _is_own(quoted: re.Match[str]) -> bool:
    """Whether a passage in quotes is part of a line of the judge's, such as `Preferred: "A"`."""
    return quoted[0][0] in '"\u201c«' and "\n" not in quoted[0]
