"""What a judge is asked: the paper's templates (Tables 9 and 10) and the user's own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, get_args

from brim.errors import ConfigError
from brim.yaml12 import parse

Kind = Literal["summarization", "translation"]
KINDS: tuple[Kind, ...] = get_args(Kind)
CRITERIA = ("overall", "informativeness", "coherence")

_DATA = Path(__file__).parents[1] / "data" / "judge"
_SLOT = re.compile(r"\[(Source|ID1|ID2|[^\W\d_]+-[AB])\]")


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
        """The prompt, in one pass: what looks like a slot in a text that goes in stays text.

        Args:
            source: the document or source sentence.
            ids: of the text listed first and of the second.
            texts: the candidates in the order of the list.
        """
        values = {"Source": source, "ID1": ids[0], "ID2": ids[1]}

        def value(slot: re.Match[str]) -> str:
            name = slot[1]
            return values[name] if name in values else texts["AB".index(name[-1])]

        return _SLOT.sub(value, self.text)


def load_templates(
    criteria: Sequence[str], *, kind: Kind | None = None, path: Path | None = None
) -> dict[str, Template]:
    """The template of each criterion.

    Args:
        criteria: names of templates, such as `CRITERIA`.
        kind: whose templates of the paper's are taken; those of translation say English and Dutch.
        path: a YAML file `criterion: template` to take instead.

    Raises:
        ConfigError: neither or no such template; a template without one of its slots or without
            the line `Preferred:`, which verdicts are read from; a criterion twice.
    """
    if path is None and kind is None:
        raise ConfigError(
            "--kind: say summarization or translation, which the paper has prompts for; for "
            "anything else give templates of your own by --prompts FILE (see docs/judge.md)"
        )
    path = path or _DATA / f"{kind}.yaml"
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; check --prompts") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text; convert it first") from None
    document = parse(text, lambda line: f"{path}:{line}")
    if not isinstance(document.data, dict):
        raise ConfigError(f"{path}: write templates as `criterion: |` and the indented text")
    known = {
        name: _template(template, f"{document.origin((name,))}: {name}")
        for name, template in document.data.items()
    }
    if not criteria or len(set(criteria)) < len(criteria):
        raise ConfigError("--criteria: name each criterion once, as in overall,coherence")
    for name in criteria:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise ConfigError(f"--criteria: {path.name} has no template {name!r}; {hint}")
    return {name: known[name] for name in criteria}


def one_line(text: str) -> str:
    """The text with each run of white space, line breaks of any kind among it, as one space.

    The paper's prompts tell candidates apart by nothing but the beginnings of lines. A candidate
    of one line cannot begin another one's line, nor the judge's instructions.
    """
    return " ".join(text.split())


def imitates_prompt(text: str, noun: str) -> bool:
    """Whether a candidate looks like a part of the prompt, a verdict, or a chat's mark-up."""
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
