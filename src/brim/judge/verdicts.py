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


# What may stand around a label or an ID: quotes, brackets, Markdown, full stops.
_MARKS = " \t*_`#>\"'\u201c\u201d\u2018\u2019«»()[]{}<.,;:"
_AROUND = f"[{re.escape(_MARKS)}]*"
_NAME = "(?:NOUN|option|candidate|id)"
_LABEL = (
    rf"{_AROUND}(?:[-•] *|\d+[.)] *)?(?:second[,:.]? *)?{_AROUND}"
    rf"preferred(?: +{_NAME})*[*_`\"]*[:\uff1a](.*)"
)
_CHOICE = rf"(?:the +)?(?:{_NAME}{_AROUND})*\b([AB])"
_TIE = re.compile(r"(?:a |it'?s a )?(?:tie|tied|draw)|equal|both|neither|no preference", re.I)
_REFUSAL = re.compile(
    r"(?:i['\u2019]?m |i am )?(?:very )?sorry\b|as an ai\b|i apologi[sz]e\b"
    r"|(?:i|we) (?:cannot|(?:can|could|will) not|(?:can|couldn|won)['\u2019]t)\b"
    r"|(?:i|we) (?:must |have to )?(?:decline|refuse)\b|(?:i['\u2019]m|i am) (?:unable|not able)\b",
    re.IGNORECASE,
)
# Some chat templates write the opening tag themselves, so that a reply has the closing one only.
_THOUGHT = re.compile(r"\A.*</think>|\A\s*<think>.*", re.DOTALL)


def parse_verdict(reply: str, *, noun: str, refused: bool = False) -> Verdict:
    """The verdict of a reply, by its last line `Preferred: <ID>` alone.

    The last one, because a judge may quote a candidate that says `Preferred: A` itself before it
    comes to its own verdict. The ID may stand on the next line, in brackets, quotes or Markdown,
    and behind the noun (`Summary A`). Anything else on the line is unparsable, and so is a reply
    whose verdict is only in its sentences. What stands before `</think>` is no part of a reply,
    and what follows it on its line no verdict: it may be a candidate's, quoted.

    Args:
        reply: the raw text.
        noun: what the prompt calls a candidate, such as `summary`.
        refused: the server says that the judge refused.
    """
    if refused:
        return Verdict.REFUSAL
    reply = _THOUGHT.sub("\u2026", reply)
    lines = [line.strip() for line in reply.splitlines() if line.strip(" \t\u2026")]
    label, choice = (
        re.compile(pattern.replace("NOUN", re.escape(noun)), re.IGNORECASE)
        for pattern in (_LABEL, _CHOICE)
    )
    labels = [(i, found[1]) for i, line in enumerate(lines) if (found := label.fullmatch(line))]
    if not labels:
        return Verdict.REFUSAL if lines and _REFUSAL.match(lines[0]) else Verdict.UNPARSABLE
    position, value = labels[-1]
    if not value.strip(" *_`") and position + 2 == len(lines):
        value = lines[-1]
    answer = value.strip(_MARKS)
    if chosen := choice.fullmatch(answer):
        return Verdict(chosen[1].upper())
    if _TIE.fullmatch(answer):
        return Verdict.TIE
    return Verdict.REFUSAL if _REFUSAL.match(answer) else Verdict.UNPARSABLE
