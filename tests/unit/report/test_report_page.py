"""The HTML page: nothing in it but text can come from the data, and it loads nothing."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from brim.report import write_report
from brim.report.curves import group_by_start
from brim.report.evidence import read_evidence

SCRIPT = "document.documentElement.setAttribute('data-pwned', '1')"
HOSTILE = [
    f"<script>{SCRIPT}</script>",
    f'"><img src=x onerror="{SCRIPT}">',
    f'\'><svg onload="{SCRIPT}">',
    f"</td></tr></table><script>{SCRIPT}</script>",
    f"</style></title><script>{SCRIPT}</script>",
    "<!-- ",
    "]]><![CDATA[",
    "{{ 7 * 191 }} {% raw %}",
    "&lt;b&gt; &amp;amp; &#60;script&#62;",
    "<iframe srcdoc='<script>1</script>'></iframe>",
    '<meta http-equiv="refresh" content="0;url=https://example.com/">',
    '<link rel="stylesheet" href="https://example.com/x.css">',
    f'<a href="javascript:{SCRIPT}">x</a>',
    "\u202eright to left\u202c \x00 \x1b[31m",
    "<base href='https://example.com/'>",
]
TAGS = {
    "html", "head", "meta", "title", "style", "body", "header", "main", "section", "footer", "h1",
    "h2", "p", "div", "table", "thead", "tbody", "tr", "th", "td", "span", "b", "svg", "line",
    "details", "summary", "dl", "dt", "dd", "figure", "figcaption", "img", "ins", "del", "pre",
}  # fmt: skip


class Page(HTMLParser):
    """Elements, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.comments: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def handle_comment(self, data):
        self.comments.append(data)


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory, make_run, metrics_of_a_run) -> Path:
    """A report in which every text that comes from outside tries to break out."""
    root = tmp_path_factory.mktemp("hostile")
    texts = [f"{text} {i}" for i, text in enumerate(HOSTILE)]
    systems = [
        make_run(
            root / name,
            f"{HOSTILE[0]} {name} {HOSTILE[1]}",
            texts=[f"{text} {name}" for text in texts],
            prompts=[f"prompt {text}" for text in texts],
            ids=[f"id {text}" for text in texts],
            references=[(f"reference {text}", text) for text in texts],
            returns=[1.0] * len(texts),
            metrics=metrics_of_a_run(2),
            files={
                "config.yaml": "\n".join(HOSTILE[:13]),
                "manifest.json": json.dumps(
                    {"command": HOSTILE, "versions": {HOSTILE[3]: HOSTILE[4]}, "seed": HOSTILE[1]}
                ),
            },
        )
        for name in ("one", "two")
    ]
    write_report(
        root / "out",
        systems,
        title=f"Title {HOSTILE[4]}",
        lead="\n\n".join(HOSTILE),
        metric="exact_match",
        baseline=systems[0].label,
    )
    return root / "out" / "report.html"


def test_no_text_becomes_an_element(hostile_page):
    page = Page(hostile_page.read_text())
    assert {tag for tag, _ in page.elements} == TAGS
    assert not page.comments
    for _, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)


@pytest.mark.parametrize("position", range(len(HOSTILE)))
def test_every_text_is_shown_as_it_is(hostile_page, position):
    page, text = Page(hostile_page.read_text()), HOSTILE[position]
    for shown in (text, f"prompt {text} {position}", f"id {text} {position}"):
        assert shown in page.text
    for name in ("one", "two"):
        marked = f"{text} {position} {name}"
        assert marked.replace(" ", "") in page.text.replace(" ", "")
    if position < 13:
        assert "\n".join(HOSTILE[:13]) in page.text


def test_page_loads_nothing(hostile_page):
    text = hostile_page.read_text()
    page = Page(text)
    policies = [a["content"] for t, a in page.elements if a.get("http-equiv")]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    for _, attributes in page.elements:
        assert not {"href", "srcset", "action", "data", "poster"} & set(attributes)
        assert attributes.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style


def test_picture_in_the_page_is_the_file_beside_it(hostile_page):
    encoded = re.search(r'src="data:image/png;base64,([^"]+)"', hostile_page.read_text())[1]
    assert base64.b64decode(encoded) == (hostile_page.parent / "curves.png").read_bytes()


def test_an_interval_is_drawn_where_its_numbers_are(tmp_path, make_run):
    returns = [float(i % 7) for i in range(60)]
    systems = [
        make_run(tmp_path / "low", "low", returns=returns),
        make_run(tmp_path / "high", "high", returns=[value + 30 for value in returns]),
    ]
    write_report(tmp_path / "out", systems, title="", lead="", metric="return", baseline="low")
    lines = [
        {name: float(value) for name, value in attributes.items() if name in ("x1", "x2")}
        for tag, attributes in Page((tmp_path / "out" / "report.html").read_text()).elements
        if tag == "line"
    ]
    low_interval, low_value, _, _, high_interval, high_value = lines[:6]
    scores = [
        json.loads((s.directory / "results.json").read_text())["test"]["scores"]["return"]
        for s in systems
    ]
    left, right = scores[0]["low"], scores[1]["high"]
    for score, interval, value in (
        (scores[0], low_interval, low_value),
        (scores[1], high_interval, high_value),
    ):
        for number, drawn in (
            (score["low"], interval["x1"]),
            (score["value"], value["x1"]),
            (score["high"], interval["x2"]),
        ):
            assert drawn == pytest.approx(3 + 94 * (number - left) / (right - left), abs=0.01)


def test_systems_that_began_alike_share_their_axes(tmp_path, make_run, metrics_of_a_run):
    def begun_elsewhere(shift):
        rows = metrics_of_a_run(1)
        keys = [key for row in rows for key in row if key == "eval/exact_match"]
        return [{**row, **{k: row[k] + shift for k in keys if k in row}} for row in rows]

    runs = {
        "teacher": begun_elsewhere(5),
        "student": begun_elsewhere(-5),
        "llmr": metrics_of_a_run(1),
        "loaded": None,
        "brim": metrics_of_a_run(2),
    }
    systems = [make_run(tmp_path / n, n, metrics=rows) for n, rows in runs.items()]
    evidence = read_evidence(systems, metric="exact_match", baseline="student", split="test")
    groups = group_by_start(evidence, "exact_match")
    assert [[s.label for s in g] for g in groups] == [["llmr", "brim"], ["teacher", "student"]]


# -- a real browser ---------------------------------------------------------------------------

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def rendered(page: Path, profile: Path) -> str:
    """The document as the browser holds it after loading."""
    options = (
        "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync"
    )
    done = subprocess.run(
        [BROWSER, *options.split(), f"--user-data-dir={profile}", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
def test_browser_runs_no_script_and_shows_the_tables(hostile_page, tmp_path):
    control = tmp_path / "control.html"
    control.write_text(f"<html><body>{HOSTILE[0]}</body></html>")
    assert 'data-pwned="1"' in rendered(control, tmp_path / "profile")

    page = Page(rendered(hostile_page, tmp_path / "profile"))
    assert page.elements[0][0] == "html"
    assert "data-pwned" not in page.elements[0][1]
    tables = [attributes["class"] for tag, attributes in page.elements if tag == "table"]
    assert tables == ["numbers", "numbers", "samples", "facts"]
    rows = [tag for tag, _ in page.elements].count("tr")
    assert rows > 2 + 2 + len(HOSTILE)
