"""What from Python prints as a command does: as its table, in a notebook too."""

from __future__ import annotations

from html import escape


class Printed:
    """Prints as its `text`."""

    __slots__ = ()

    text: str

    def __str__(self) -> str:
        return self.text or object.__repr__(self)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"
