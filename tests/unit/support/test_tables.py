"""Tables that show the text of their cells as it is."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from brim.support.tables import as_markdown, as_text, mean_text, p_text, plain_table


class Cells(HTMLParser):
    """Text of each table cell; a line break in it is a <br>."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag in ("td", "th"):
            self.cells.append("")
        elif tag == "br":
            self.cells[-1] += "\n"

    def handle_data(self, data):
        if self.cells and self.lasttag in ("td", "th", "br"):
            self.cells[-1] += data

    def handle_endtag(self, tag):
        self.lasttag = ""


HOSTILE = [
    "| a | b |", "a\nb\n# c", "<script>x</script>", "`code`", "[x](javascript:alert(1))",
    "![x](http://x/y.png)", "*a* _b_ **c** ~~d~~", "\\| \\\\ \\", "&lt; &amp;", "<br>", "#### 12",
    "$x$ <<3*4=12>>12", "<http://x>", "---", "- a", "1. b", "a|b", "`", "``|``", "\\`|\\`",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_shows_the_text_as_it_is(text):
    markdown_it = pytest.importorskip("markdown_it")
    renderer = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"])
    parser = Cells()
    parser.feed(
        renderer.render(as_markdown(plain_table([("name", "text"), ("row", text), (text, "x")])))
    )
    assert [cell.strip() for cell in parser.cells] == ["name", "text", "row", text, text, "x"]
    assert parser.tags <= {"table", "thead", "tbody", "tr", "th", "td", "br"}


def test_columns_of_a_terminal_are_aligned_and_numbers_end_together():
    rows = [["", "score", "note"], ["a", "9.5 [9.0, 10.0]", "none"], ["longer", "—", "x"]]
    lines = as_text(plain_table(rows)).splitlines()
    assert lines == [
        "                  score  note",
        "a       9.5 [9.0, 10.0]  none",
        "longer                —  x",
    ]


@pytest.mark.parametrize(
    ("p_value", "text"),
    [(None, "—"), (1.0, "1.000"), (0.0496, "0.050"), (0.001, "0.001"), (0.00083, "8.3e-04")],
)
def test_a_p_value_is_never_written_as_zero(p_value, text):
    assert p_text(p_value) == text


def test_a_single_value_has_no_deviation():
    assert mean_text(-0.001, None) == "0.00"
    assert mean_text(1.25, 0.5, digits=1) == "1.2 ± 0.5"
