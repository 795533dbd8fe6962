"""The report's page in a browser: it shows every text as it is, loads nothing, and can be used."""

from __future__ import annotations

import base64
import json
import random
from contextlib import contextmanager
from dataclasses import replace
from difflib import SequenceMatcher
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browsing import chromium, complaints, requests
from hostile import HOSTILE, PWN, hostile_page

from brim.report import page
from brim.report.layout import sections
from brim.report.lead import Lead
from brim.report.outputs import Output
from brim.report.page import render_report
from brim.support.figures import Figure
from brim.support.tables import Cell, Table, plain_table

WORDS = ["P", "AH0", "T", "<b>", "λ", "a", "the"]
SYSTEMS = ["student", "llmr", "brim"]
COLORS = {"student": "#77808a", "llmr": "#d55e00", "brim": "#0072b2"}
# Two systems agree on even examples; brim's return is above llmr's by the example's number less 15.
OUTPUTS = [
    Output(
        id=f"example-{i}",
        prompt=f"prompt {i}",
        references=(f"the reference {i}", f"another {i}"),
        texts={
            "student": f"the reference {i}",
            "llmr": f"the reference {i}" if i % 2 == 0 else f"the fault {i}",
            "brim": f"the reference {i}",
        },
        numbers={"llmr": {"return": 1.0}, "brim": {"return": float(i - 14)}} if i != 20 else {},
    )
    for i in range(35)
]
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII="
)
SVG = b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='6'><path d='M0 0h9v6'/></svg>"


def plain_page(**changes) -> str:
    table = Table(
        name="table1",
        title="Main results",
        head=("method", "BLEU", "remark"),
        rows=(
            (Cell("llmr"), Cell("34.0"), Cell("a word")),
            (Cell("brim"), Cell("34.9", best=True, significant=True, note="p 0.01"), Cell("—")),
        ),
        caption="What the numbers are.",
    )
    parts = {
        "lead": Lead("A report", "One sentence.", [("First.", ["one", "two"])]),
        "tables": [table],
        "figures": [Figure("a", "A", PNG, SVG, "as SVG"), Figure("b", "B", PNG, b"", "as PNG")],
        "outputs": OUTPUTS,
        "systems": SYSTEMS,
        "colors": COLORS,
        "settings": {"brim": "objective: {k: 2}\n"},
        "facts": plain_table([["", "brim"], ["seed", "19083"]]),
        **changes,
    }
    shown = sections(parts.pop("tables"), parts.pop("figures"), paper=True)
    return render_report(parts.pop("lead"), shown, **parts)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def visit(driver, tmp_path):
    """visit(page) opens it; at the end nothing else was asked for, and the console is silent."""
    path = tmp_path / "page.html"

    def open_page(text: str) -> None:
        path.write_text(text, encoding="utf-8")
        driver.get(path.as_uri())

    requests(driver), complaints(driver)
    yield open_page
    assert set(requests(driver)) == {path.as_uri()}
    assert complaints(driver) == []


def run(driver, script: str, *arguments):
    return driver.execute_script(script, *arguments)


def all_texts(driver, selector: str) -> list[str]:
    return run(
        driver,
        "return [...document.querySelectorAll(arguments[0])].map((found) => found.textContent)",
        selector,
    )


def choose(driver, **fields) -> None:
    """Set fields of the form as a user does: the page hears of it by an event."""
    for name, value in fields.items():
        run(
            driver,
            "const [name, value] = arguments; const field = document.forms[0].elements[name];"
            "if (field.type === 'checkbox') field.checked = value; else field.value = value;"
            "field.dispatchEvent(new Event('input', { bubbles: true }));",
            name,
            value,
        )


def press(driver, text: str) -> None:
    """Click the first button that is seen with this text."""
    run(
        driver,
        "[...document.querySelectorAll('button')].find("
        "(found) => found.textContent === arguments[0] && found.checkVisibility()).click()",
        text,
    )


def shown_numbers(driver) -> list[int]:
    return [int(name.removeprefix("example-")) for name in all_texts(driver, ".example h3 bdi")]


def count(driver) -> str:
    return all_texts(driver, ".count")[0]


# -- hostile texts ----------------------------------------------------------------------------


def as_shown(text: str) -> str:
    return text.replace("\x00", "␀").replace("\x1b", "␛").replace("\x7f", "␡")


EXPECTED = [as_shown(text) for text in HOSTILE]


class Document(HTMLParser):
    """Elements and texts of a page, as far as Python's parser knows HTML."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.comments: list[str] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags[tag] = self.tags.get(tag, 0) + 1
        assert not any(name.startswith("on") or name == "srcdoc" for name, _ in attributes)

    def handle_data(self, data):
        self.texts.append(data)

    def handle_comment(self, data):
        self.comments.append(data)


def test_no_text_becomes_an_element():
    hostile, plain = Document(hostile_page()), Document(plain_page())
    assert set(hostile.tags) == set(plain.tags)
    assert not hostile.comments
    assert hostile.tags["script"] == 2
    assert set(EXPECTED) <= set(hostile.texts)
    block = json.loads(next(text for text in hostile.texts if text.startswith('{"systems":')))
    assert block["systems"] == block["names"] == EXPECTED
    for text, output in zip(EXPECTED, block["outputs"], strict=True):
        assert output["id"] == output["prompt"] == text
        assert output["references"] == [text]
        assert output["texts"] == [text] * 40


def test_the_script_cannot_end_its_element():
    script = (Path(page.__file__).with_name("page.js")).read_text(encoding="utf-8").lower()
    assert "</script" not in script
    assert "<!--" not in script
    assert "innerhtml" not in script


def was_attacked(driver) -> bool:
    from selenium.common.exceptions import NoAlertPresentException

    try:
        driver.switch_to.alert.accept()
    except NoAlertPresentException:
        return bool(run(driver, "return window.__pwned"))
    return True


def test_the_attack_is_seen_where_a_page_lets_it_in(driver, tmp_path):
    path = tmp_path / "control.html"
    path.write_text(f"<body><img src=http://control.example/x.png><script>{PWN}</script>")
    driver.get(path.as_uri())
    assert was_attacked(driver)
    assert run(driver, "return window.__pwned") == 1
    assert "http://control.example/x.png" in requests(driver)
    assert complaints(driver)


def test_hostile_texts_are_shown_as_they_are_and_do_nothing(driver, visit):
    assert len(set(HOSTILE)) == 40
    visit(hostile_page())
    assert not was_attacked(driver)
    assert all_texts(driver, "h1") == [" ".join(EXPECTED)]
    assert all_texts(driver, ".headline") == [" ".join(EXPECTED)]
    assert all_texts(driver, "#findings ~ p") == EXPECTED
    assert all_texts(driver, "#findings ~ ul li") == EXPECTED
    assert all_texts(driver, "#missing ~ ul li") == EXPECTED
    for selector in (
        "#tables ~ h3", ".caption", "#tables ~ .scroll tbody th > .note", "#figures ~ h3",
        "figcaption", "[name=number] option", "[name=first] option", "fieldset label bdi",
        "details bdi", "#tables ~ .scroll td b", "#tables ~ .scroll td .note",
    ):  # fmt: skip
        assert all_texts(driver, selector) == EXPECTED, selector
    assert all_texts(driver, "#tables ~ .scroll th:nth-child(2)") == EXPECTED
    assert run(driver, "return document.querySelectorAll('tbody .swatch').length") == 40 * 43
    assert all_texts(driver, ".facts thead th") == ["", *EXPECTED]
    assert all_texts(driver, ".facts tbody th") == EXPECTED
    assert all_texts(driver, "pre") == [f"a: 1\n{text}\n" for text in EXPECTED]
    alts = "return [...document.images].map((image) => image.alt)"
    assert run(driver, alts) == EXPECTED

    shown: list[str] = []
    for start in range(0, 40, 10):
        assert all_texts(driver, ".example h3 bdi") == EXPECTED[start : start + 10]
        texts = all_texts(driver, ".example .text")
        assert texts == [text for text in EXPECTED[start : start + 10] for _ in range(42)]
        shown += all_texts(driver, ".example:first-child .label bdi")
        press(driver, "next →")
    assert shown == EXPECTED * 4
    assert not all_texts(driver, "ins:not(form ins), del:not(form del)")
    assert not was_attacked(driver)

    assert run(driver, "return [document.scripts.length, document.images.length]") == [2, 40]
    assert not all_texts(driver, "iframe, object, embed, base, link, svg, math, area, template")
    handlers = (
        "return [...document.querySelectorAll('*')].flatMap((found) => found.getAttributeNames())"
        ".filter((name) => name.startsWith('on') || name === 'style' || name === 'srcdoc')"
    )
    assert run(driver, handlers) == []
    links = "return [...document.links].map((link) => link.getAttribute('href'))"
    assert run(driver, links) == [
        "#missing", "#findings", "#tables", "#figures", "#outputs", "#provenance",
    ]  # fmt: skip


def test_hostile_texts_can_be_searched_for(driver, visit):
    visit(hostile_page())
    press(driver, "None")
    run(driver, "document.querySelector('[name=system]').click()")
    for text in EXPECTED:
        choose(driver, search=text)
        # A text field has no line breaks; none of these texts has one.
        assert text in all_texts(driver, ".example h3 bdi")
    assert not was_attacked(driver)


def test_the_page_forbids_what_it_does_not_need(driver, visit):
    visit(plain_page())
    policy = run(
        driver,
        "return document.querySelector('[http-equiv=Content-Security-Policy]').content",
    )
    found = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    script = found.pop("script-src")
    assert script.startswith("'sha256-")
    assert " " not in script
    assert found == {
        "default-src": "'none'",
        "style-src": "'unsafe-inline'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    run(
        driver,
        f"const added = document.createElement('script'); added.textContent = '{PWN}';"
        "document.body.append(added); document.body.insertAdjacentHTML('beforeend',"
        f"\"<img src=x onerror='{PWN}'>\")",
    )
    assert not was_attacked(driver)
    # The refusals are on the console, and nothing was sent.
    assert len(complaints(driver)) >= 2


# -- what a reader does -----------------------------------------------------------------------


def test_every_part_is_there(driver, visit):
    visit(plain_page())
    assert all_texts(driver, "h2") == [
        "Findings", "Tables", "Figures", "Examples", "Settings and origin",
    ]  # fmt: skip
    assert all_texts(driver, "h1, header p") == ["A report", "One sentence."]
    assert all_texts(driver, "#findings ~ *") == ["First.", "\none\ntwo\n"]
    rows = [all_texts(driver, f"#tables ~ .scroll tr:nth-child({i}) > *") for i in (1, 2)]
    assert rows == [
        ["method", "BLEU", "remark", "llmr", "34.0", "a word"],
        ["brim", "34.9* p 0.01", "—"],
    ]
    assert all_texts(driver, "td b") == ["34.9"]
    assert all_texts(driver, ".number") == ["BLEU", "34.0", "34.9* p 0.01"]
    images = run(driver, "return [...document.images].map((i) => [i.src, i.naturalWidth])")
    kinds = [src.split(";")[0].removeprefix("data:image/") for src, _ in images]
    assert kinds == ["svg+xml", "png"]
    assert [width for _, width in images] == [9, 1]
    assert base64.b64decode(images[0][0].split(",")[1]) == SVG
    assert all_texts(driver, "pre") == ["objective: {k: 2}\n"]
    assert all_texts(driver, ".facts tbody tr > *") == ["seed", "19083"]
    assert not run(driver, "return document.querySelector('details').open")


def test_paging(driver, visit):
    visit(plain_page())
    assert shown_numbers(driver) == list(range(10))
    assert count(driver) == "1\u201310 of 35 examples (35 in all)"
    press(driver, "← previous")
    assert shown_numbers(driver) == list(range(10))
    for _ in range(5):
        press(driver, "next →")
    assert shown_numbers(driver) == list(range(30, 35))
    choose(driver, search="PROMPT 1")
    assert shown_numbers(driver) == [1, *range(10, 19)]
    assert count(driver) == "1\u201310 of 11 examples (35 in all)"


def test_search_and_empty_states(driver, visit):
    visit(plain_page())
    choose(driver, search="another 33")
    assert shown_numbers(driver) == [33]
    choose(driver, search="fault 7")
    assert shown_numbers(driver) == [7]
    run(driver, "document.querySelectorAll('[name=system]')[1].click()")
    assert shown_numbers(driver) == []  # only llmr wrote it, and llmr is no longer shown
    assert all_texts(driver, ".empty")[0].startswith("No example passes these filters.")
    driver.execute_async_script(
        "document.querySelector('.empty button').click(); setTimeout(arguments[0], 20)"
    )
    assert shown_numbers(driver) == list(range(10))
    assert run(driver, "return new FormData(document.forms[0]).getAll('system').length") == 3
    press(driver, "None")
    assert all_texts(driver, ".empty")[0].startswith("No system is chosen.")
    press(driver, "All")
    assert all_texts(driver, ".example:first-child .label bdi") == SYSTEMS


def test_only_where_the_chosen_systems_differ(driver, visit):
    visit(plain_page())
    choose(driver, differ=True)
    assert count(driver).startswith("1\u201310 of 17 ")
    assert shown_numbers(driver) == list(range(1, 20, 2))
    run(driver, "document.querySelectorAll('[name=system]')[1].click()")
    assert all_texts(driver, ".empty")


def test_where_one_system_has_the_higher_number(driver, visit):
    visit(plain_page())
    # brim (A) and llmr (B) stand there at first: the last two.
    choose(driver, higher=True)
    assert shown_numbers(driver) == [*range(16, 20), *range(21, 27)]  # example 20 has no numbers
    assert all_texts(driver, "h3 .note")[0] == "return: A \u2212 B = +1"
    choose(driver, margin="17")
    assert shown_numbers(driver) == [33, 34]
    choose(driver, margin="0", first="1", second="2")
    assert shown_numbers(driver) == list(range(10))
    assert count(driver).startswith("1\u201310 of 15 ")
    choose(driver, first="0")  # the student has no numbers at all
    assert all_texts(driver, ".empty")


def test_order(driver, visit):
    visit(plain_page())
    choose(driver, order="descending")
    assert shown_numbers(driver) == list(range(34, 24, -1))
    choose(driver, order="ascending")
    assert shown_numbers(driver) == list(range(10))
    choose(driver, order="spread")
    assert shown_numbers(driver) == [34, 33, 32, 31, 0, 30, 1, 29, 2, 28]
    choose(driver, order="given")
    assert shown_numbers(driver) == list(range(10))


def test_examples_without_numbers_come_last(driver, visit):
    # Every third has none, so that the order of the others depends on where these are put.
    bare = [replace(output, numbers={}) if i % 3 else output for i, output in enumerate(OUTPUTS)]
    visit(plain_page(outputs=bare))
    rest = [i for i in range(35) if i % 3]
    for order, numbered in (
        ("descending", range(33, -1, -3)),
        ("ascending", range(0, 34, 3)),
        ("spread", [33, 0, 30, 3, 27, 6, 24, 9, 21, 12, 18, 15]),
    ):
        choose(driver, order=order)
        found = shown_numbers(driver)
        for _ in range(3):
            press(driver, "next →")
            found += shown_numbers(driver)
        assert found == [*numbered, *rest]


def test_enter_sends_no_form(driver, visit):
    from selenium.webdriver.common.keys import Keys

    # With one field of text only, a browser would send the form.
    visit(plain_page(systems=["brim"]))
    driver.find_element("name", "search").send_keys("prompt 33", Keys.ENTER)
    assert shown_numbers(driver) == [33]
    assert "?" not in driver.current_url


def test_keyboard_alone(driver, visit):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    visit(plain_page())

    def focused() -> str:
        return run(
            driver,
            "const at = document.activeElement;"
            "return at.name ? `${at.name} ${at.value}` : at.textContent.trim()",
        )

    def tab_to(wanted: str) -> None:
        for _ in range(40):
            ActionChains(driver).send_keys(Keys.TAB).perform()
            if focused() == wanted:
                return
        raise AssertionError(f"the Tab key never reaches {wanted!r}")

    def type_keys(*keys: str) -> None:
        ActionChains(driver).send_keys(*keys).perform()

    tab_to("system 1")
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert run(driver, outline) != "none"
    type_keys(Keys.SPACE)
    assert all_texts(driver, ".example:first-child .label bdi") == ["student", "brim"]
    type_keys(Keys.SPACE)
    tab_to("search ")
    type_keys("fault", Keys.ENTER)  # Enter sends no form
    assert count(driver) == "1\u201310 of 17 examples (35 in all)"
    tab_to("next →")
    type_keys(Keys.ENTER)
    assert shown_numbers(driver) == list(range(21, 35, 2))
    assert focused() == "next →"
    type_keys(Keys.ENTER)  # the last page, and the focus stays
    assert shown_numbers(driver) == list(range(21, 35, 2))
    tab_to("Settings of brim")
    type_keys(Keys.ENTER)
    assert run(driver, "return document.querySelector('details').open")


def test_boxes_that_scroll_are_reached_by_the_keyboard(driver, visit):
    long = Output("long", "word " * 3000, ("r",), {"brim": "short"})
    visit(plain_page(outputs=[long]))
    stops = run(driver, "return [...document.querySelectorAll('.text')].map((t) => t.tabIndex)")
    assert stops == [0, -1, -1]


def test_what_may_be_absent(driver, visit):
    bare = {"lead": Lead("t", "h"), "settings": {}, "facts": plain_table([[]])}
    visit(plain_page(tables=[], figures=[], outputs=[], **bare))
    assert all_texts(driver, "h2") == ["Examples"]
    assert all_texts(driver, ".empty") == ["There are no outputs to show."]
    one = Output("one", "p", (), {"brim": "", "llmr": "text"}, {"brim": {"return": float("nan")}})
    visit(plain_page(outputs=[one]))
    assert all_texts(driver, ".cell") == [
        "promptp", "reference", "studentno output", "llmrtext", "brim",
    ]  # fmt: skip
    empty = "return getComputedStyle(document.querySelector('.text:empty'), '::before').content"
    assert run(driver, empty) == '"(empty)"'
    visit(plain_page(systems=["brim"]))
    assert not all_texts(driver, "[name=order]")
    assert shown_numbers(driver) == list(range(10))


def test_without_javascript_a_few_examples_stand_there(driver, visit):
    for _ in range(5):  # a busy browser may open a page before it has heard of it
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
        try:
            visit(plain_page())
        finally:
            driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
        if all_texts(driver, "noscript p"):
            break
    assert shown_numbers(driver) == [0, 8, 17, 25, 34]
    assert all_texts(driver, ".example:first-child .label bdi") == SYSTEMS
    assert all_texts(driver, "noscript p") == [
        "5 of 35 examples; with JavaScript all can be browsed."
    ]
    hidden = "return ['form', '.pager'].map((s) => document.querySelector(s).checkVisibility())"
    assert run(driver, hidden) == [False, False]
    assert all_texts(driver, "td b") == ["34.9"]


@contextmanager
def window_of(driver, width):
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        yield
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("make_page", [plain_page, hostile_page])
def test_a_narrow_window_does_not_scroll_sideways(driver, visit, make_page):
    with window_of(driver, 380):
        visit(make_page())
        width = run(driver, "return [document.documentElement.scrollWidth, innerWidth]")
    assert width[1] == 380
    assert width[0] <= 380


def table_of(columns: int, label: str = "BRIM (K = 16)") -> Table:
    row = (Cell(label), *[Cell("1.00 ± 0.01")] * columns)
    return Table(f"wide{columns}", "Wide", tuple(map(str, range(columns + 1))), (row,), "")


def test_only_a_table_that_scrolls_says_so(driver, visit):
    shown = "return [...document.querySelectorAll('.hint')].map((hint) => hint.checkVisibility())"
    for width, expected in ((390, [True, False, False]), (1280, [False, False, False])):
        with window_of(driver, width):
            visit(plain_page(tables=[table_of(6), table_of(1)]))
            driver.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0], 50))")
            assert run(driver, shown) == expected


def test_on_a_phone_figures_fit_and_texts_stack(driver, visit):
    wide = PNG[:16] + (3000).to_bytes(4, "big") + PNG[20:]  # a width that no phone has
    label = "a_name_without_any_place_where_a_line_could_end_" * 3
    outputs = [Output("1", "слово " * 80, ("参照" * 80,), dict.fromkeys(SYSTEMS, "نص " * 80))]
    with window_of(driver, 390):
        visit(
            plain_page(
                lead=Lead(label, f"{label} is the best.", [(label, [label])], [label], label),
                figures=[Figure("a", label, wide, b"", label)],
                tables=[table_of(2, label)],
                outputs=outputs,
                settings={label: label},
            )
        )
        boxes = run(
            driver,
            "return [...document.querySelectorAll('figure img, .cell')].map((found) => {"
            "const box = found.getBoundingClientRect(); return [box.left, box.right]; })",
        )
        assert len(boxes) == 6
        assert all(0 <= left < right <= 390 for left, right in boxes)
        assert len({left for left, _ in boxes[1:]}) == 1  # one column
        assert run(driver, "return document.documentElement.scrollWidth") <= 390


def test_a_system_has_one_color_wherever_it_stands(driver, visit):
    rows = tuple((Cell(label), Cell("1.0")) for label in SYSTEMS)
    table = Table("table1", "T", ("system", "score"), rows, "")
    facts = plain_table([["system", "seed"], *([label, "1"] for label in SYSTEMS)])
    visit(plain_page(tables=[table], facts=facts, settings=dict.fromkeys(SYSTEMS, "a: 1")))
    found = run(
        driver,
        "return [...document.querySelectorAll('.swatch')].map((mark) => "
        "[(mark.nextElementSibling ?? mark.parentElement).textContent.trim(),"
        " getComputedStyle(mark).backgroundColor, mark.getAttribute('aria-hidden')])",
    )
    places = {label: [color for name, color, _ in found if name == label] for label in SYSTEMS}
    for label, colors in places.items():
        rgb = ", ".join(str(int(COLORS[label][i : i + 2], 16)) for i in (1, 3, 5))
        assert set(colors) == {f"rgb({rgb})"}
        assert len(colors) == 1 + 1 + 10 + 1 + 1  # table, form, ten examples, facts, settings
    assert {hidden for *_, hidden in found} == {"true"}
    # It is the same when others are not shown.
    run(driver, "document.querySelector('[name=system]').click()")
    classes = "return [...document.querySelectorAll('.example .swatch')].map((m) => m.className)"
    assert set(run(driver, classes)) == {"swatch c1", "swatch c2"}


def test_labels_are_plain(driver, visit):
    visit(plain_page())
    assert all_texts(driver, "form legend") == ["Show", "Only where"]
    labels = ["Search", "Sort by", "Compare A", "with B", "by"]
    assert all_texts(driver, ".fields label > span") == labels


@pytest.mark.parametrize("width", [390, 1280])
def test_a_label_stays_on_one_line_in_a_wide_table(driver, visit, width):
    label = "BRIM (K = 16)"
    row = (Cell(label), Cell("LLMR + Min-Var baseline"), Cell(label), *[Cell("1.00 ± 0.01")] * 12)
    table = Table("wide", "Wide", tuple(f"column {i}" for i in range(15)), (row,), "")
    with window_of(driver, width):
        visit(plain_page(tables=[table]))
        lines = run(
            driver,
            "return [...document.querySelectorAll('tbody th, td:nth-child(3)')].slice(0, 2).map("
            "(cell) => { const range = document.createRange(); range.selectNodeContents(cell);"
            "return new Set([...range.getClientRects()].map((box) => box.top)).size; })",
        )
    assert lines == [1, 1]


def luminance(colour: str) -> float:
    """WCAG's relative luminance of `rgb(r, g, b)`."""
    parts = [int(part) / 255 for part in colour[4:-1].split(",")]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_colour_schemes_can_be_read(driver, visit, scheme):
    feature = {"name": "prefers-color-scheme", "value": scheme}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    try:
        visit(plain_page())
        colours = run(
            driver,
            "const colour = (selector) => getComputedStyle(document.querySelector(selector)).color;"
            "return [getComputedStyle(document.body).backgroundColor, getComputedStyle("
            "document.images[0]).filter, ...['body', '.soft', '.note', 'del', 'nav a', '.right']"
            ".map(colour)]",
        )
    finally:
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    paper, image_filter, *inks = colours
    assert (luminance(paper) < 0.1) == (scheme == "dark")
    assert (image_filter != "none") == (scheme == "dark")
    for ink in inks:
        dark, light = sorted([luminance(ink), luminance(paper)])
        assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG AA


# -- differences against the reference --------------------------------------------------------


def pieces_of(driver) -> list[list[list[str]]]:
    """For each example that is shown, [tag, text] of each piece of the only system's text."""
    return run(
        driver,
        "return [...document.querySelectorAll('.example')].map((example) =>"
        "[...example.querySelector('.cell:last-child .text').childNodes].map("
        "(node) => [node.nodeName.toLowerCase().replace('#text', ''), node.textContent]))",
    )


@pytest.mark.parametrize(
    ("text", "references", "pieces"),
    [
        ("a b d", ["a b c"], [["", "a "], ["", "b "], ["del", "c"], ["ins", "d"]]),
        ("a c", ["a b c"], [["", "a "], ["del", "b"], ["", "c"]]),
        ("a x c", ["a c"], [["", "a "], ["ins", "x"], ["", " "], ["", "c"]]),
        # The nearest reference counts, wherever it stands; the first one of two that are as near.
        ("a b d", ["x y", "a b e"], [["", "a "], ["", "b "], ["del", "e"], ["ins", "d"]]),
        ("a b", ["a c", "a d"], [["", "a "], ["del", "c"], ["ins", "b"]]),
        # Without spaces, characters.
        ("東京部", ["東京都"], [["", "東"], ["", "京"], ["del", "都"], ["ins", "部"]]),
        ("anything", [], [["", "anything"]]),
        ("", ["a b"], [["del", "a b"]]),
    ],
)
def test_pieces(driver, visit, text, references, pieces):
    output = Output("x", "p", tuple(references), {"s": text})
    visit(plain_page(outputs=[output], systems=["s"]))
    assert pieces_of(driver) == [pieces]


def test_pieces_make_up_the_text_and_the_reference(driver, visit):
    draw = random.Random(0)

    def words() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randrange(9)))

    texts = [(words(), f"{words()} the end") for _ in range(100)]
    outputs = [
        Output(str(i), "p", (reference,), {"s": text}) for i, (text, reference) in enumerate(texts)
    ]
    visit(plain_page(outputs=outputs, systems=["s"]))
    found = []
    for _ in range(10):
        found += pieces_of(driver)
        press(driver, "next →")
    for (text, reference), pieces in zip(texts, found, strict=True):
        assert "".join(piece for tag, piece in pieces if tag != "del") == text
        theirs = [word for tag, piece in pieces if tag != "ins" for word in piece.split()]
        assert theirs == reference.split()
        common = sum(len(piece.split()) for tag, piece in pieces if tag == "")
        matcher = SequenceMatcher(None, text.split(), reference.split(), autojunk=False)
        assert common >= sum(block.size for block in matcher.get_matching_blocks())


def test_a_text_that_is_a_reference_is_ticked(driver, visit):
    visit(plain_page())
    ticks = run(
        driver,
        "return [...document.querySelectorAll('.example')].map("
        "(example) => example.querySelectorAll('.label .right').length)",
    )
    assert ticks == [3, 2] * 5


# -- size -------------------------------------------------------------------------------------


def test_two_hundred_summaries_of_sixteen_systems_open_at_once(driver, visit):
    draw = random.Random(0)
    vocabulary = ["".join(draw.choices("abcdefghij", k=draw.randrange(2, 9))) for _ in range(500)]

    def words(count: int) -> str:
        return " ".join(draw.choices(vocabulary, k=count))

    labels = [f"system {i}" for i in range(16)]
    outputs = [
        Output(
            id=str(i),
            prompt=words(400),
            references=(words(30),),
            texts={label: words(30) for label in labels},
            numbers={label: {"return": draw.random(), "bleu": draw.random()} for label in labels},
        )
        for i in range(200)
    ]
    text = plain_page(outputs=outputs, systems=labels)
    assert len(text.encode()) < 3_000_000
    visit(text)
    opened = "return performance.getEntriesByType('navigation')[0].loadEventEnd"
    assert run(driver, opened) < 2000
