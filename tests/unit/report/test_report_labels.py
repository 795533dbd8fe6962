"""What systems are called, and the paper's numbers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from brim.report import paper_numbers as paper
from brim.report.labels import ORDER, distinct, name_of

BRIM = {"name": "brim", "k": 4, "phase": "aligned", "immediate": "sampled", "tail": "one_step"}


@pytest.mark.parametrize(
    ("objective", "label", "family"),
    [
        ({"name": "seqkd"}, "SeqKD", "divergence"),
        ({"name": "kl"}, "KL", "divergence"),
        ({"name": "rkl"}, "RKL", "divergence"),
        ({"name": "js", "beta": 0.5}, "JS", "divergence"),
        ({"name": "tvd"}, "TVD", "divergence"),
        ({"name": "llmr", "baseline": "none"}, "LLMR", "llmr"),
        ({"name": "llmr", "baseline": "mean"}, "LLMR + Mean baseline", "llmr"),
        ({"name": "llmr", "baseline": "min_variance"}, "LLMR + Min-Var baseline", "llmr"),
        (BRIM, "BRIM (K = 4)", "brim"),
        ({**BRIM, "k": "auto"}, "BRIM (auto)", "brim"),
        ({**BRIM, "phase": "average"}, "BRIM (K = 4) [phase = average]", "other"),
        ({**BRIM, "baseline": "mean"}, "BRIM (K = 4) + Mean baseline", "other"),
        ({"name": "anchored", "lambda": 0.7}, "Anchored (λ = 0.7)", "anchored"),
        (
            {"name": "anchored", "lambda": 1.0, "remaining_regret": "none"},
            "Anchored (λ = 1.0, no critic)",
            "anchored",
        ),
        (
            {"name": "anchored", "lambda": 0.0, "remaining_regret": "learned"},
            "Anchored (λ = 0.0, learned critic)",
            "anchored",
        ),
        ({"name": "ppo_llmr"}, "PPO with LLMR", "ppo"),
        ({"name": "ppo_llmr", "critic": "separate"}, "PPO with LLMR", "ppo"),
        ({"name": "ppo_llmr", "critic": "anchored"}, "PPO, anchored critic", "ppo"),
        ({"name": "ppo_brim", "k": 2}, "PPO with BRIM", "ppo"),
        ({"name": "mine"}, "mine", "other"),
    ],
)
def test_a_method_is_named_by_its_objective(objective, label, family):
    name = name_of(objective)
    assert (name.label, name.family) == (label, family)


def test_methods_stand_in_the_order_of_the_papers_table():
    kinds = ("ppo_brim", "mine", "kl", "llmr", "seqkd", "ppo_llmr", "tvd", "js")
    objectives = [{"name": kind} for kind in kinds]
    objectives += [*({**BRIM, "k": k} for k in (16, "auto", 2, 8))]
    names = sorted((name_of(objective) for objective in objectives), key=lambda name: name.place)
    assert [name.label for name in names] == [
        "SeqKD", "KL", "JS", "TVD", "LLMR", "BRIM (K = 2)", "BRIM (K = 8)", "BRIM (K = 16)",
        "BRIM (auto)", "PPO with LLMR", "PPO with BRIM", "mine",
    ]  # fmt: skip


def test_equal_labels_differ_by_what_differs_and_nothing_else():
    settings = [
        {"optim": {"lr": 1e-3, "eps": 1e-8}, "student": {"d": 8}, "teacher": {"d": 9}},
        {"optim": {"lr": 1e-4, "eps": 1e-8}, "student": {"d": 8}, "teacher": {"d": 9}},
        {"optim": {"lr": 1e-3, "eps": 1e-8}, "student": {"d": 4}, "teacher": {"d": 5}},
        {"optim": {"lr": 1.0}},
    ]
    assert distinct(["A", "A", "A", "B"], settings) == [
        "A [lr = 0.001, student.d = 8, teacher.d = 9]",
        "A [lr = 0.0001, student.d = 8, teacher.d = 9]",
        "A [lr = 0.001, student.d = 4, teacher.d = 5]",
        "B",
    ]
    assert distinct(["A", "A"], [{"b": True}, {"b": None}]) == ["A [b = true]", "A [b = null]"]
    assert distinct(["A", "A"], [{}, {}]) == ["A [1]", "A [2]"]


def test_rows_of_the_papers_tables_are_labels_of_ours():
    known = {*ORDER, *(f"BRIM (K = {k})" for k in (2, 4, 8, 16))}
    assert {*paper.TABLE1, *paper.TABLE7, *paper.TABLE3["xsum"]} <= known


PAPER = next(iter((Path(__file__).parents[4] / "shared" / "paper").glob("*.txt")), None)
with_paper = pytest.mark.skipif(PAPER is None, reason="the paper's text is not there")


def printed(before: str) -> list[list[str]]:
    """The cells of the table above the caption that begins with `before`, without marks."""
    text = PAPER.read_text(encoding="utf-8").split(f"\n{before}")[0]
    block = text.rstrip().rsplit("\n\n", 1)[1]
    lines = [re.sub(r"</?\w+>|\$|,(?=\d)", "", line).split("\t") for line in block.splitlines()]
    return [[cell.strip() for cell in line] for line in lines]


def numbers(cells: list[str]) -> tuple[float, ...]:
    return tuple(float(cell.rstrip("%")) for cell in cells)


def plain(label: str) -> str:
    label = re.sub(r"\( *(.*?) *\)", r"(\1)", label)
    return re.sub(r" [A-Z][\w&. ]*(et al\.|& Rush) \(\d{4}a?\)| \(Qwen.*\)", "", label)


@with_paper
def test_table1_is_the_papers():
    rows = {plain(row[1] or row[0]): numbers(row[2:]) for row in printed("Table 1:")[2:]}
    assert rows == dict(paper.TABLE1)


@with_paper
def test_table3_is_the_papers():
    found: dict[str, dict[str, tuple[float, ...]]] = {}
    name = ""
    for task, method, *cells in printed("Table 3:")[1:]:
        name = task.lower() or name
        found.setdefault(name, {})[method] = numbers(cells)
    assert found == {task: dict(rows) for task, rows in paper.TABLE3.items()}


@with_paper
def test_table7_is_the_papers():
    rows = {plain(row[0]): numbers(row[1:]) for row in printed("Table 7:")[1:]}
    assert rows == dict(paper.TABLE7)


@with_paper
def test_table8_is_the_papers():
    rows = [tuple(int(cell) for cell in row[1:]) for row in printed("Table 8:")[1:]]
    assert rows == [paper.TABLE8["encoder-decoder"], paper.TABLE8["decoder-only"]]
