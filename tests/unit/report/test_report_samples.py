"""Which examples are shown, and Markdown that shows them as they are."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest

from brim.report import write_report
from brim.support.tables import markdown_table


def samples_of(out):
    return json.loads((out / "samples.json").read_text())


def test_half_of_the_samples_from_everywhere_half_where_texts_differ(tmp_path, make_run):
    num = 600
    references = [(f"P AH0 T{i}",) for i in range(num)]
    changed = {i: f"P IH1 T{i}" for i in range(100, 130)}
    texts = [changed.get(i, references[i][0]) for i in range(num)]
    systems = [
        make_run(tmp_path / "a", "a", references=references, returns=[1.5] * num),
        make_run(tmp_path / "b", "b", references=references, texts=texts),
    ]
    options = {"title": "", "lead": "", "metric": "bleu", "baseline": "a"}
    write_report(tmp_path / "out", systems, **options)
    samples = samples_of(tmp_path / "out")
    positions = [int(sample["id"].removeprefix("word")) for sample in samples]
    assert len(set(positions)) == 20
    assert positions == sorted(positions)
    assert positions[0] == 0
    assert positions[-1] == num - 1
    differing = [s for s in samples if s["texts"]["a"] != s["texts"]["b"]]
    assert len(differing) >= 10
    for sample, position in zip(samples, positions, strict=True):
        assert sample["references"] == list(references[position])
        assert sample["numbers"] == {"a": {"return": 1.5}}
        assert sample["texts"] == {"a": references[position][0], "b": texts[position]}
    for name in ("samples.md", "report.html"):
        text = (tmp_path / "out" / name).read_text()
        assert "over all 600" in text
        assert "over the 30 where" in text


@pytest.mark.parametrize(("num", "same"), [(1, True), (7, False), (15, True), (15, False)])
def test_small_splits_show_no_example_twice(tmp_path, make_run, num, same):
    references = [(f"P T{i}",) for i in range(num)]
    texts = [group[0] if same else "X" for group in references]
    systems = [
        make_run(tmp_path / "a", "a", references=references),
        make_run(tmp_path / "b", "b", references=references, texts=texts),
    ]
    write_report(tmp_path / "out", systems, title="", lead="", metric="bleu", baseline="a")
    ids = [sample["id"] for sample in samples_of(tmp_path / "out")]
    assert len(ids) == len(set(ids)) == (min(num, 10) if same else num)


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
    parser.feed(renderer.render(markdown_table([("name", "text"), ("row", text), (text, "x")])))
    assert [cell.strip() for cell in parser.cells] == ["name", "text", "row", text, text, "x"]
    assert parser.tags <= {"table", "thead", "tbody", "tr", "th", "td", "br"}
