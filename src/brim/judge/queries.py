"""The four questions about a pair of texts: each order, and in each order both IDs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from brim.judge.prompts import Template, Verdict, one_line


@dataclass(frozen=True, slots=True)
class Pair:
    """One example with what two systems, a and b, wrote for it."""

    id: str
    source: str
    a: str
    b: str

    @property
    def identical(self) -> bool:
        """Nothing to choose between: such a pair is a tie that nobody needs to be asked about."""
        return one_line(self.a) == one_line(self.b)


@dataclass(frozen=True, slots=True)
class Variant:
    """One of the four ways to ask.

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
        """The filled template.

        Args:
            template: of the criterion.
            pair: the texts.
            keep_lines: candidates keep their line breaks, and can then imitate the prompt's lines.
        """
        a, b = (pair.a, pair.b) if keep_lines else (one_line(pair.a), one_line(pair.b))
        return template.fill(
            source=pair.source, ids=self.ids, texts=(a, b) if self.a_first else (b, a)
        )

    def score(self, verdict: Verdict | None) -> float | None:
        """1 where system a won, 0 where b did, ½ for a tie, None without a verdict."""
        if verdict is Verdict.TIE:
            return 0.5
        if verdict in (Verdict.A, Verdict.B):
            return float(verdict.value == self.id_of_a)
        return None


# Neighbours 0-1 and 2-3 differ in the IDs alone, 0-2 and 1-3 in the order alone.
VARIANTS = (Variant(True, "A"), Variant(True, "B"), Variant(False, "A"), Variant(False, "B"))


def query_key(judge: Mapping[str, Any], prompt: str) -> str:
    """SHA-256 (hex) of all that a reply depends on: the same question is never asked twice.

    Args:
        judge: the model and the settings of its requests.
        prompt: the whole text.
    """
    text = json.dumps([dict(judge), prompt], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
