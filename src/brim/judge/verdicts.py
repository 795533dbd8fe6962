"""What a judge's reply says: a verdict, or that there is none. Nothing is guessed.

Coherence: Summary B repeats itself, so A is easier to follow.
Preferred: A
"""

from __future__ import annotations

import re
from enum import StrEnum


class Verdict(StrEnum):
    """What one reply says."""

    A = "A"
    B = "B"
    TIE = "tie"
    REFUSAL = "refusal"
    UNPARSABLE = "unparsable"


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
    """The verdict of a reply, by its last line `Preferred: <ID>` alone.

    The last one, because a judge may begin with a verdict and change it. The ID may be on the next
    line, in brackets, quotes or Markdown, behind the noun (`Summary A`), and before a reason
    (`A because it is shorter`). Anything else on the line is unparsable, and so is a reply whose
    verdict is only in its sentences, or in what it quotes: lines behind `>`, fenced blocks,
    passages of several lines in quotes. What is before `</think>` is no part of a reply, and what
    follows it on its line no verdict: it may be a candidate's, quoted.

    Args:
        reply: the raw text.
        noun: what the prompt calls a candidate, such as `summary`.
        refused: the server says that the judge refused.
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
