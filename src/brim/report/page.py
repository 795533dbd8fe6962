"""One HTML page that needs nothing but itself: no network, no server, light and dark.

Every text of it may come from a model or a data set. jinja2 escapes what is in the HTML; the
outputs are an inert block of JSON, which the page's one script turns into text nodes; and the
page's own policy lets no other script run and nothing be loaded.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from brim._version import __version__
from brim.report.layout import Section
from brim.report.lead import MISSING, Lead
from brim.report.outputs import Output, evenly_spaced
from brim.support.figures import Figure
from brim.support.tables import Table, numeric_columns

FOLDER = Path(__file__).parent
NUM_WITHOUT_SCRIPT = 5
MAX_SVG_BYTES = 500_000  # a drawing of many points is smaller, and drawn faster, as PNG
# Control characters have no shape and HTML drops NUL; their pictures (␀ ␛ ␡) are seen by all.
_PICTURES = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\t\n\r"}
_PICTURES |= {0x7F: "\u2421"}
# What could end the script element, or a line of the script in an old browser.
_JSON_ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


def render_report(
    lead: Lead,
    sections: Sequence[Section],
    *,
    outputs: Sequence[Output],
    systems: Sequence[str],
    colors: Mapping[str, str],
    settings: Mapping[str, str],
    facts: Table,
    choice: str = "",
) -> str:
    """Return the report as one HTML text; the same input gives the same text.

    Args:
        lead: what the reader should know first.
        sections: of tables and figures. Of a figure the SVG is embedded, or the PNG where there is
            none or it is large.
        outputs: the examples of the browser of outputs, in the order of the data.
        systems: labels, the keys of the outputs' texts that are shown, in this order.
        colors: by label, as `#rrggbb`; a label that has one is marked with it wherever it stands.
        settings: YAML by the label of what was run with it.
        facts: of provenance; may be without rows.
        choice: how the outputs were chosen, where they are not all that there are.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=_visible,
    )
    environment.globals["numeric_columns"] = numeric_columns
    template, style, script = (
        (FOLDER / name).read_text(encoding="utf-8")
        for name in ("template.html", "page.css", "page.js")
    )
    names = list(
        dict.fromkeys(n for o in outputs for numbers in o.numbers.values() for n in numbers)
    )
    palette = list(dict.fromkeys(colors.values()))
    return environment.from_string(template).render(
        lead=lead,
        missing=MISSING,
        policy=_policy(script),
        style=Markup(style + "".join(f".c{i} {{ color: {c}; }}\n" for i, c in enumerate(palette))),
        script=Markup(script),
        unbroken=_unbroken,
        sections=sections,
        source=_source,
        is_figure=lambda part: isinstance(part, Figure),
        marks={label: f"swatch c{palette.index(color)}" for label, color in colors.items()},
        outputs=len(outputs),
        few=evenly_spaced(outputs, NUM_WITHOUT_SCRIPT),
        systems=systems,
        names=names,
        data=Markup(_data(outputs, systems, names)),
        choice=choice,
        settings=settings,
        facts=facts,
        version=__version__,
    )


def _unbroken(text: str) -> str:
    """The text, in which no line ends within `K = 2` or `p < 0.05`."""
    return re.sub(r" ([=≤≥<±]) ", "\u00a0\\1\u00a0", text)


def _visible(value: Any) -> Any:
    return value.translate(_PICTURES) if isinstance(value, str) else value


def _policy(script: str) -> str:
    """What the browser may do: run this script, show images that lie in the page, nothing else.

    Styles need no hash: they can load nothing, and matplotlib's SVG is full of them.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _source(figure: Figure) -> str:
    """The figure as the address of an image."""
    svg = figure.svg and (len(figure.svg) <= MAX_SVG_BYTES or not figure.png)
    kind, content = ("svg+xml", figure.svg) if svg else ("png", figure.png)
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _data(outputs: Sequence[Output], systems: Sequence[str], names: Sequence[str]) -> str:
    """The outputs as JSON that is safe in a script element.

    Texts and numbers are lists in the order of `systems`, numbers one list a name; null where a
    system has none, or one that is not finite.
    """
    rows = [
        {
            "id": _visible(output.id),
            "prompt": _visible(output.prompt),
            "references": [_visible(reference) for reference in output.references],
            "texts": [_visible(output.texts.get(label)) for label in systems],
            "numbers": [
                [_rounded(output.numbers.get(label, {}).get(name)) for label in systems]
                for name in names
            ],
        }
        for output in outputs
    ]
    labels, shown = ([_visible(text) for text in texts] for texts in (systems, names))
    page = {"systems": labels, "names": shown, "outputs": rows}
    text = json.dumps(page, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(_JSON_ESCAPES)


def _rounded(value: float | None) -> float | None:
    return float(f"{value:.6g}") if value is not None and math.isfinite(value) else None
