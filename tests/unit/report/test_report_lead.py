"""The sentences that come first, what is missing, and Markdown that can be copied from."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
from run_folders import OBJECTIVES, SCORES, SEEDS, make_folder, make_grid, results_of, scores_of
from rundirs import change_results, write_run

from brim.report.findings import compared, findings
from brim.report.folders import Unfinished
from brim.report.gather import gather
from brim.report.lead import Lead, for_terminal, gaps_in_short, missing
from brim.report.page import _unbroken
from brim.report.report import write_reports
from brim.report.seed_tests import all_tests
from brim.support.tables import markdown_sentence

OTHERS = {
    "rkl": 5.0, "js": 4.0, "tvd": 3.0, "seqkd": 2.5, "mean": 0.1, "min_variance": -0.1,
}  # fmt: skip


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """BRIM against nine: some far above it, some below, some not significantly different."""
    root = make_grid(tmp_path_factory.mktemp("runs"))
    for name, shift in OTHERS.items():
        llmr = {"name": "llmr", "baseline": name}
        objective = llmr if name in ("mean", "min_variance") else {"name": name}
        for i, seed in enumerate(SEEDS):
            noise = 0.1 * (i - 1) * (-1) ** len(name)
            value = SCORES["brim-k=4"][i] + shift + (noise if abs(shift) > 1 else 9 * noise)
            make_folder(root / name / f"seed={seed}", objective, seed, scores_of(value))
    (found,) = gather([root]).tasks
    return found


def sentences(task, alpha=0.05, baseline="LLMR"):
    return findings(task, all_tests(task), baseline=baseline, alpha=alpha)


def verdict(task, metric="Exact match", **options):
    (line,) = (s for s in sentences(task, **options) if s.startswith(f"{metric}:"))
    return re.search(r"BRIM \(K = 4\) is .*", line)[0]


@pytest.mark.parametrize("alpha", [0.1, 0.05, 0.02, 0.001, 1e-9])
def test_each_competitor_is_on_the_side_where_its_test_is(task, alpha):
    tests = [t for t in all_tests(task) if t.system == "BRIM (K = 4)" and t.metric == "exact_match"]
    assert len(tests) == 8
    text = verdict(task, alpha=alpha)
    for word, better in (("better than", True), ("worse than", False)):
        expected = [t for t in tests if t.significant(alpha) and t.better is better]
        found = re.search(rf"{word} (.*?) \(p [=≤] ([\d.e-]+)", text)
        assert (found is None) == (not expected)
        if found:
            assert set(re.split(", | and ", found[1])) == {t.against for t in expected}
            assert float(found[2]) == pytest.approx(max(t.test.p_value for t in expected), rel=0.05)
            assert float(found[2]) < alpha * 1.05
    even = [t for t in tests if not t.significant(alpha)]
    found = re.search(r"not significantly different from (.*?) \(p [=≥] ([\d.e-]+)\)", text)
    assert float(found[2]) == pytest.approx(min(t.test.p_value for t in even), rel=0.05)
    if len(even) > 2:
        named = [t.against for t in even if t.against == "LLMR"]
        count = f"{len(even) - len(named)} others"
        assert re.split(" and ", found[1]) == [*named, count]
    lost = [t for t in tests if t.significant(alpha) and t.holm >= alpha]
    assert ("not after Holm's correction" in text) == bool(lost)


def test_the_lead_is_read_in_half_a_minute(task):
    text = " ".join(sentences(task))
    assert len(re.findall("[A-Za-z]{2,}", text)) < 140
    # Effect sizes, pairs and each single p-value are in the table of tests.
    assert not re.search("d_z|pairs", text)
    tests = [t for t in all_tests(task) if t.system == "BRIM (K = 4)"]
    assert len(re.findall("p [=≤≥]", text)) < len(tests) / 2


def test_the_best_student_and_what_is_better_than_the_baseline(task):
    (line,) = (s for s in sentences(task) if s.startswith("Exact match:"))
    assert line.startswith("Exact match: RKL is the best student, ")
    assert "BRIM (K = 4) has 25.33 ± 2.31, LLMR has 23.33 ± 1.53." in line
    better = re.search(r"Better than LLMR: (.*?) \(p", line)[1]
    # K = 2 is 2.1, 2.0, 1.9 above LLMR; K = 4, which has a sentence of its own, 1, 2, 3.
    assert "BRIM (K = 2)" in better
    assert "BRIM (K = 4)" not in better
    assert "KL" not in re.split(", | and ", better)
    other = next(s for s in sentences(task, baseline="KL") if s.startswith("Exact match:"))
    assert "KL has 21.00 ± 1.00" in other
    assert "Better than KL: " in other


def test_lengths_are_said_where_returns_are_of_texts_of_other_lengths(tmp_path):
    make_grid(tmp_path, systems=("kl", "llmr"))
    (task,) = gather([tmp_path]).tasks
    assert not any("tokens" in sentence for sentence in sentences(task))
    for path in (tmp_path / "kl").rglob("results.json"):
        scores = json.loads(path.read_text())["test"]["scores"]
        scores["length"]["value"], scores["return"]["value"] = 3.5, 99.0
        change_results(path.parent, scores=scores)
    (task,) = gather([tmp_path]).tasks
    said = [s for s in sentences(task) if "3.5, 7.0 tokens" in s]
    assert [s.split(":")[0] for s in said] == ["Return"]


def test_a_method_alone_has_its_numbers(tmp_path):
    make_grid(tmp_path, systems=("kl",))
    (task,) = gather([tmp_path]).tasks
    assert sentences(task)[-1] == "Exact match: KL has 21.00 ± 1.00."


def test_systems_without_a_seed_are_not_counted_among_those_with_seeds(tmp_path):
    make_grid(tmp_path, systems=("kl", "llmr"))
    write_run(tmp_path / "teacher", results=results_of(scores_of(30.0)))
    (task,) = gather([tmp_path]).tasks
    assert compared(task, "test") == (
        "cmudict: 2 systems with 3 seeds each and 1 without a seed (7 runs), on 6 examples of the "
        "test split."
    )


def test_variance_in_training_is_over_the_seeds_that_all_have(tmp_path):
    make_grid(tmp_path, systems=("llmr", "brim-k=2"))
    before = sentences(gather([tmp_path]).tasks[0])[-1]
    assert before.startswith("The K-step return while training, K = 1, 2: variance")
    metrics = [{"step": 1, "rollout/var_return_k": 1e6, "rollout/bias": 1e6}]
    make_folder(tmp_path / "more", OBJECTIVES["llmr"], 5, scores_of(1.0), metrics=metrics)
    (task,) = gather([tmp_path]).tasks
    assert task.num_seeds == len(SEEDS) + 1
    assert sentences(task)[-1] == before
    # With a K twice, no number is that of the K.
    again = {"optim__lr": 0.5, "metrics": metrics}
    make_folder(tmp_path / "lr", OBJECTIVES["brim-k=2"], SEEDS[0], scores_of(1.0), **again)
    (task,) = gather([tmp_path]).tasks
    assert not any("while training" in sentence for sentence in sentences(task))


def test_alarms_are_named_with_the_runs_that_raised_them(tmp_path):
    for seed, rows in enumerate([[{"step": 9, "monitor/kl": 1.0}], [{"step": 1}]]):
        make_folder(
            tmp_path / str(seed), OBJECTIVES["llmr"], seed, scores_of(1.0), metrics=rows
        )  # fmt: skip
    (task,) = gather([tmp_path]).tasks
    assert sentences(task)[-1] == "Alarms of monitors: kl in 1 of 2 runs of LLMR."


def test_segments_of_other_tokenizers_are_named(tmp_path):
    logged = {"segment_length": 2.5, "teacher_tokens": 1.5, "unspelled": 0.125}
    rows = [{"step": 1, **{f"rollout/{key}": value for key, value in logged.items()}}]
    make_folder(tmp_path, OBJECTIVES["llmr"], 0, scores_of(1.0), metrics=rows)
    (task,) = gather([tmp_path]).tasks
    assert "2.5 tokens of the student and 1.5 of the teacher" in sentences(task)[-1]
    assert "12.5%" in sentences(task)[-1]


# -- what is missing --------------------------------------------------------------------------

SWEEP = """
seeds: [1, 2, 3]
systems:
  kl: {recipe: cmudict/kl}
  brim: {recipe: cmudict/brim, grid: {objective.k: [2, 4]}}
"""


def test_points_of_a_sweep_without_a_run_are_not_begun(tmp_path):
    root = tmp_path / "moved"
    make_folder(root / "kl" / "seed=1", OBJECTIVES["kl"], 1, scores_of(1.0))
    make_folder(root / "kl" / "seed=2", OBJECTIVES["kl"], 2, None, metrics=[{"step": 4}])
    held = root / "brim-k=2" / "seed=1"
    held.mkdir(parents=True)
    (held / ".lock").touch()
    (root / "logs").mkdir()
    log = root / "logs" / "brim-k=2-seed=2.log"
    log.write_text("brim sweep: failed with exit code 3\n")
    assert {run.state for run in gather([root]).unfinished}.isdisjoint({"not begun"})
    (root / "sweep.yaml").write_text(SWEEP)
    gathered = gather([root, root])
    waiting = [(r.label, r.seed) for r in gathered.unfinished if r.state == "not begun"]
    assert waiting == [
        ("BRIM (K = 4)", 1), ("BRIM (K = 4)", 2), ("KL", 3), ("BRIM (K = 2)", 3),
        ("BRIM (K = 4)", 3),
    ]  # fmt: skip
    # With what is finished and what is under way, they are all nine.
    assert len(gathered.unfinished) == 8
    lines = missing(gathered)
    (line,) = (line for line in lines if "not begun" in line)
    assert line == (
        f"{root}: 5 runs of the sweep not begun: brim-k=4 with seeds 1, 2, 3; "
        "kl, brim-k=2 with seed 3."
    )
    assert any("BRIM (K = 2), seed 2: no results: failed with exit code 3" in x for x in lines)
    short = "Missing: 1 run failed, 2 runs unfinished, 5 runs not begun."
    assert gaps_in_short(gathered) == short


@pytest.mark.parametrize("text", ["seeds: 3", "systems: {kl: {recipe: no/such}}", "\0"])
def test_a_sweep_that_cannot_be_expanded_is_named_and_stops_nothing(tmp_path, text):
    make_folder(tmp_path / "kl" / "seed=1", OBJECTIVES["kl"], 1, scores_of(1.0))
    (tmp_path / "sweep.yaml").write_text(text)
    assert not gather([tmp_path]).notes  # it may be of another tool: no sweep was here
    (tmp_path / "logs").mkdir()
    (note,) = gather([tmp_path]).notes
    assert note.startswith(f"{tmp_path / 'sweep.yaml'}: which of its runs have not begun")
    assert "\n" not in note


def test_a_file_whose_sweep_is_elsewhere_has_no_points_here(tmp_path):
    make_folder(tmp_path / "sweeps" / "a" / "kl" / "seed=1", OBJECTIVES["kl"], 1, scores_of(1.0))
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    assert not gather([tmp_path]).unfinished
    (tmp_path / "sweep.yaml").rename(tmp_path / "sweeps" / "a" / "sweep.yaml")
    assert len(gather([tmp_path]).unfinished) == 8


def test_a_terminal_shows_a_few_of_many_gaps():
    gaps = [f"gap {i}" for i in range(40)]
    text = for_terminal(Lead("title", "headline", [("about", ["one"])], gaps))
    assert text.count("gap ") == 10
    assert text.endswith("… and 30 more in summary.md")
    short = for_terminal(Lead("title", "headline", [("about", ["one"])]))
    assert short == "title\n\nheadline\n\nabout\n\n- one"


def test_nothing_missing_is_not_mentioned(task, tmp_path):
    make_grid(tmp_path, systems=("kl", "llmr"))
    gathered = gather([tmp_path])
    assert gaps_in_short(gathered) == ""
    assert missing(gathered) == []
    run = Unfinished(tmp_path / "a", "KL", None, "at step 3")
    assert missing(type(gathered)(gathered.tasks, (run,), (), {})) == [
        f"KL: no results: at step 3 ({tmp_path / 'a'})."
    ]


def test_no_line_of_the_page_ends_within_an_equation():
    text = _unbroken("a K = 2 and p ≤ 0.05 of 1 ± 2")
    assert text.split() == ["a", "K", "=", "2", "and", "p", "≤", "0.05", "of", "1", "±", "2"]
    assert re.findall("\\S+\u00a0[=≤±]\u00a0\\S+", text) == [
        "K\u00a0=\u00a02", "p\u00a0≤\u00a00.05", "1\u00a0±\u00a02",
    ]  # fmt: skip


# -- code in Markdown -------------------------------------------------------------------------


class Rendered(HTMLParser):
    """All text of a page, and what of it is code."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.code, self.tags = "", [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.code += [""] if tag == "code" else []

    def handle_data(self, data):
        self.text += data
        if self.tags and self.tags[-1] == "code":
            self.code[-1] += data
            self.tags.append("")


COMMANDS = [
    "brim evaluate a_b/c_d/seed=1 --stage predistill --split test",
    "brim evaluate 'a *b* <i> $x$ ~y~ [z](w)' --stage teacher",
    r"brim evaluate 'back\slash \_' | cat && ls",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_copied_as_it_is_and_all_else_is_shown(command):
    markdown_it = pytest.importorskip("markdown_it")
    text = f"a_b_c *d* of [x](y) <b>: by `{command}`, or `other_one`; $1_2$."
    source = markdown_sentence(text)
    assert f"`{command}`" in source
    page = markdown_it.MarkdownIt("commonmark").enable(["strikethrough"]).render(source)
    found = Rendered(page)
    assert found.code == [command, "other_one"]
    assert found.text.strip() == text.replace("`", "")
    assert set(found.tags) <= {"p", "code", ""}


@pytest.mark.parametrize("text", ["a ` b", "``", "a ``` b_c_", "`a\nb`", "x `\\` y ` <b>z</b>"])
def test_backticks_that_are_no_code_of_ours_do_no_harm(text):
    markdown_it = pytest.importorskip("markdown_it")
    page = markdown_it.MarkdownIt("commonmark", {"html": True}).render(markdown_sentence(text))
    found = Rendered(page)
    assert not set(found.tags) & {"b", "em", "strong"}
    assert "".join(found.text.split()).replace("`", "") == "".join(text.split()).replace("`", "")


def test_the_summary_has_the_command_as_it_is(tmp_path):
    manifest = {"stages_dir": "../stages", "stages": {"predistill": "predistill-1"}}
    run = make_folder(tmp_path / "my_runs" / "llmr_x", OBJECTIVES["llmr"], 1, scores_of(1.0),
                      manifest=manifest)  # fmt: skip
    (tmp_path / "my_runs" / "stages" / "predistill-1" / "best").mkdir(parents=True)
    write_reports([tmp_path / "my_runs"], tmp_path / "out", max_outputs=0)
    summary = (tmp_path / "out" / "summary.md").read_text()
    assert f"`brim evaluate {run} --stage predistill --split test`" in summary
