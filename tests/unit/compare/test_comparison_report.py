"""Comparisons as people read them, and the command."""

import json
import unicodedata
from pathlib import Path

import pytest
from rundirs import change_results
from typer.testing import CliRunner
from written_runs import garble, write_run

import brim.cli.results  # noqa: F401
from brim.cli import app
from brim.compare import compare
from brim.compare.write import comparison_markdown, comparison_text, printable, write_comparison
from brim.errors import RunError
from brim.support.tables import p_text

HOSTILE = [
    "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\x9b31m", "a\rb", "a\x08b", "a\nb\n\n# c", "\x00",
    "\u202etxt.exe", "\u2066x\u2069", "a\u2028b", "\x7f", "\t|", "<script>alert(1)</script>",
    "[x](javascript:alert(1))", "| a | b |", "`code`", "\\", "&lt;",
]  # fmt: skip


@pytest.fixture
def two(tmp_path: Path, references) -> tuple[Path, Path]:
    systems = garble(references, rate=0.1, seed=1), garble(references, rate=0.3, seed=2)
    a, b = (
        write_run(tmp_path / f"run-{i}", texts, references, returns=[float(len(t)) for t in texts])
        for i, texts in enumerate(systems)
    )
    return a, b


@pytest.fixture
def hostile(tmp_path: Path) -> tuple[Path, Path]:
    """Every text of A is right and every one is hostile; so are the prompts."""
    references = [[text] for text in HOSTILE]
    prompt = {"prompt": "".join(HOSTILE), "id": "\x1b[2Jid"}
    a = write_run(tmp_path / "a\x1b[1m", HOSTILE, references, changes=prompt)
    b = write_run(tmp_path / "b", [f"x{t}" for t in HOSTILE], references, changes=prompt)
    return a, b


def run(*arguments: object):
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


def test_text_has_every_number(two) -> None:
    comparison = compare(*two, num_resamples=200)
    text = comparison_text(comparison)
    bleu = comparison.metrics["bleu"]
    lines = [line.split() for line in text.splitlines()]
    scores, p_values = [line for line in lines if line[:1] == ["BLEU"]][:2]
    assert scores[1:4] == [
        f"{bleu.a.value:.1f}", f"[{bleu.a.low:.1f},", f"{bleu.a.high:.1f}]",
    ]  # fmt: skip
    assert scores[7] == f"{bleu.difference:+.2f}"
    assert scores[-1] == "A"
    assert p_values[1:] == [
        p_text(bleu.randomization_p),
        p_text(bleu.bootstrap_p),
        p_text(bleu.sentences.p_value),
        *(str(n) for n in (bleu.sentences.wins, bleu.sentences.ties, bleu.sentences.losses)),
        f"{bleu.detectable:.2f}",
    ]
    ter = next(line for line in lines if line[:1] == ["TER"])
    assert ter[1:4] == ["(lower", "is", "better)"]
    assert ter[-1] == "A"
    # A length is neither better nor worse.
    assert next(line for line in lines if line[:1] == ["length"])[-1] == "—"
    assert f"Where A is most ahead by BLEU (10 of {bleu.sentences.wins})" in text
    assert max(map(len, text.splitlines()[:20])) <= 100


def test_no_control_character_reaches_the_terminal(hostile) -> None:
    for arguments in ([], ["--json"]):
        result = run(*hostile, "--resamples", 50, *arguments)
        assert result.exit_code == 0, result.output
        forbidden = {"Cc", "Cs", "Zl", "Zp"}
        for character in result.stdout.replace("\n", ""):
            assert unicodedata.category(character) not in forbidden, repr(character)
            assert character not in "\u202e\u2066\u2069"
    assert r"\x1b[31mred\x1b[0m" in run(*hostile, "--resamples", 50).stdout


def test_markdown_shows_texts_as_they_are(hostile, tmp_path) -> None:
    markdown_it = pytest.importorskip("markdown_it")
    comparison = compare(*hostile, num_resamples=50, num_sentences=50)
    source = comparison_markdown(comparison)
    assert not {c for c in source if unicodedata.category(c) in ("Cc", "Zl", "Zp")} - {"\n"}
    page = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(source)
    assert "<script" not in page
    assert "<a " not in page
    assert "<code" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert page.count("<h3>") == len(comparison.better_a) == len(HOSTILE)
    assert "a<br>b<br><br># c" in page


@pytest.mark.parametrize("text", HOSTILE)
def test_printable_is_one_line_and_shows_what_was_there(text: str) -> None:
    shown = printable(text)
    assert len(shown.splitlines()) <= 1
    assert all(ord(character) >= 32 for character in shown)
    if "\\" not in text:
        assert shown.encode("latin-1", "backslashreplace").decode("unicode_escape") == text


def test_printable_leaves_all_scripts_alone() -> None:
    text = "naïve — 猫が座った кошка می‌خواهم 👩‍🔬 e\u0301"
    assert printable(text) == text


def test_long_texts_are_cut_in_the_terminal_only(tmp_path) -> None:
    references = [["word " * 500]]
    a = write_run(tmp_path / "a", ["word " * 500], references)
    b = write_run(tmp_path / "b", ["word " * 400 + "end"], references)
    comparison = compare(a, b, metrics=["bleu"], num_resamples=10)
    assert max(map(len, comparison_text(comparison).splitlines())) < 450
    assert "end" not in comparison_text(comparison)
    assert "word end |" in comparison_markdown(comparison)


def test_files_hold_everything(two, tmp_path) -> None:
    out = tmp_path / "new" / "folder"
    result = run(*two, "--resamples", 100, "--seed", 3, "--sentences", 2, "--out", out)
    assert result.exit_code == 0, result.output
    expected = compare(*two, num_resamples=100, seed=3, num_sentences=2)
    assert json.loads((out / "comparison.json").read_text()) == json.loads(
        json.dumps(expected.as_dict())
    )
    assert (out / "comparison.md").read_text() == comparison_markdown(expected)
    assert result.stdout == comparison_text(expected) + "\n"
    assert expected.metrics["bleu"].a.signature.replace("|", "\\|") in comparison_markdown(expected)


def test_json_is_the_comparison(two) -> None:
    result = run(*two, "--json", "--metric", "ter", "--metric", "return", "--resamples", 100)
    found = json.loads(result.stdout)
    assert list(found["metrics"]) == ["ter", "return"]
    assert found == json.loads(
        json.dumps(compare(*two, metrics=["ter", "return"], num_resamples=100).as_dict())
    )


def test_seeds_in_text_and_markdown(tmp_path, references) -> None:
    for method, rate in (("a", 0.1), ("b", 0.3)):
        for seed in (1, 2, 3):
            texts = garble(references, rate=rate, seed=10 * seed + ord(method))
            write_run(tmp_path / method / f"seed={seed}", texts, references)
    (tmp_path / "a" / "seed=4").mkdir()
    result = run(tmp_path / "a", tmp_path / "b", "--metric", "bleu")
    assert result.exit_code == 0, result.output
    metric = compare(tmp_path / "a", tmp_path / "b").metrics["bleu"]
    assert f"{metric.mean_a:.1f} ± {metric.sd_a:.1f}" in result.stdout
    assert f"{metric.test.effect_size:+.2f}" in result.stdout
    assert "left out: seed 4: " in result.stdout
    row = next(line for line in result.stdout.splitlines() if line.startswith("BLEU  "))
    assert row.split()[-1] == "A"
    assert "mean ± standard deviation" in comparison_markdown(
        compare(tmp_path / "a", tmp_path / "b")
    )


def test_one_seed_has_dashes(tmp_path, references) -> None:
    for method in "ab":
        texts = garble(references, rate=0.2, seed=ord(method))
        write_run(tmp_path / method / "seed=1", texts, references)
    text = comparison_text(compare(tmp_path / "a", tmp_path / "b"))
    row = next(line for line in text.splitlines() if line.startswith("BLEU "))
    assert row.split()[-3:] == ["—", "—", "—"]


def test_mistakes_are_one_line(two, tmp_path) -> None:
    result = run(two[0], tmp_path / "nowhere")
    assert isinstance(result.exception, RunError)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file"):
        write_comparison(compare(*two, num_resamples=10), tmp_path / "file")


def test_a_training_that_had_not_ended_is_named(two) -> None:
    for directory, steps in zip(two, (11, 120), strict=True):
        change_results(directory, steps=steps, planned_steps=120)
    comparison = compare(*two, num_resamples=50)
    assert comparison.stopped_at == {"a": "step 11 of 120"}
    line = "A: its training had not ended (step 11 of 120)"
    assert line in comparison_text(comparison).splitlines()
    assert line in comparison_markdown(comparison)


def test_a_difference_that_is_not_zero_does_not_look_like_it(tmp_path, references):
    size = len(references)
    texts = [f"{i} {group[0]}" for i, group in enumerate(references)]
    returns = [[1.0] * size, [1.0] * (size - 1) + [1.0 - 0.00042 * size]]
    a, b = (
        write_run(tmp_path / name, [f"{name} {text}" for text in texts], references, returns=own)
        for name, own in zip("ab", returns, strict=True)
    )
    text = comparison_text(compare(a, b, metrics=["return", "length"], num_resamples=50))
    assert " +0.0004 [" in text
    assert " +0.00 [+0.00, +0.00]" in text  # of the lengths: what is zero stays as it was
