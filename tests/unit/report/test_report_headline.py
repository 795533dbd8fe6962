"""The first sentence of a report, its title, the places of its parts, and the colors of systems."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from run_folders import LLMR, NAMES, SEEDS, make_folder, make_grid, scores_of

from brim.metrics import Score
from brim.report import write_reports
from brim.report.colors import COLORS, looks_of
from brim.report.folders import Run
from brim.report.gather import gather
from brim.report.headline import headline
from brim.report.labels import Name
from brim.report.layout import sections
from brim.report.systems import SystemRuns, TaskRuns
from brim.support.figures import Figure
from brim.support.tables import Table

FAMILIES = {"Teacher": "teacher", "Pre-distilled student": "student"}
SIZES = {"Teacher": 1000}


def system_of(label, values, metric, sizes=SIZES):
    name = Name(label, FAMILIES.get(label, "other"), label)
    runs = []
    for seed, value in enumerate(values):
        score = Score(NAMES[metric], value, value - 1, value + 1, 0.95, "", metric != "ter", 9)
        facts = {"num_parameters": sizes.get(label, 140)} if sizes else {}
        place = Path("/nowhere", label, str(seed))
        one = None if label == "Teacher" else seed
        runs.append(Run(place, one, {}, "", {}, facts, {metric: score}, "test", None))
    return SystemRuns(label, name, tuple(runs))


def task_of(metric="exact_match", label="words", sizes=SIZES, **values):
    labels = {"teacher": "Teacher", "start": "Pre-distilled student"}
    systems = [system_of(labels.get(k, k), v, metric, sizes) for k, v in values.items()]
    return TaskRuns(label, label, "unknown", tuple(systems), metric)


CLEAR = {"A": [30.0, 31.0, 32.0], "B": [20.1, 21.0, 21.9], "C": [9.9, 11.0, 12.1]}
CLOSE = {"A": [30.0, 31.0, 32.0], "B": [31.0, 30.0, 31.0], "C": [9.9, 11.0, 12.1]}


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        (
            task_of(teacher=[50.0], **CLEAR),
            "A, the best of 3 students, keeps 62% of the teacher's exact match at 14% of its size.",
        ),
        (
            task_of(teacher=[50.0], **CLOSE),
            "A, with the highest exact match of 3 students, keeps 62% of the teacher's at 14% of "
            "its size, and no difference was seen between it and B.",
        ),
        (  # p is 0.03, and 0.06 when it is one of two
            task_of(teacher=[50.0], A=[30, 31, 32], B=[27.0, 30.0, 30.0], C=[26.0, 28.2, 29.0]),
            "A, with the highest exact match of 3 students, keeps 62% of the teacher's at 14% of "
            "its size, and no difference was seen between it and B.",
        ),
        (
            task_of(teacher=[50.0], sizes={}, **CLEAR),
            "A, the best of 3 students, keeps 62% of the teacher's exact match.",
        ),
        (task_of(**CLEAR), "A, the best of 3 students, has exact match 31.00 ± 1.00."),
        (
            task_of(teacher=[25.0], **CLEAR),
            "A, the best of 3 students, keeps 124% of the teacher's exact match at 14% of its "
            "size.",
        ),
        (
            task_of(teacher=[31.01], **CLEAR),
            "A, the best of 3 students, keeps 99.9% of the teacher's exact match at 14% of its "
            "size.",
        ),
        (
            task_of(teacher=[0.0], **CLEAR),
            "A, the best of 3 students, has exact match 31.00 ± 1.00, the teacher 0.00 [-1.00, "
            "1.00].",
        ),
        (
            task_of("ter", teacher=[9.0], **CLEAR),
            "C, the best of 3 students, has TER 11.00 ± 1.10, the teacher 9.00 [8.00, 10.00].",
        ),
        (
            task_of("return", teacher=[50.0], **CLEAR),
            "A, the best of 3 students, has return 31.00 ± 1.00, the teacher 50.00 [49.00, 51.00].",
        ),
        (
            task_of(teacher=[50.0], A=CLEAR["A"]),
            "A keeps 62% of the teacher's exact match at 14% of its size.",
        ),
        (
            task_of(teacher=[50.0], A=CLEAR["A"], B=CLEAR["A"], C=CLEAR["C"]),
            "A and B tie: both keep 62% of the teacher's exact match at 14% of its size.",
        ),
        (
            task_of(teacher=[50.0], A=CLEAR["A"], B=CLEAR["A"], C=CLOSE["B"]),
            "A and B tie: both keep 62% of the teacher's exact match at 14% of its size, and no "
            "difference was seen between them and C.",
        ),
        (
            task_of(teacher=[50.0], A=CLEAR["A"], B=CLEAR["B"], C=[40.0, 41.0]),
            "No student is called the best: C has the highest exact match, 40.50 ± 0.71, but not "
            "all students have as many seeds.",
        ),
        (
            task_of(teacher=[50.0], start=CLEAR["A"], B=CLOSE["B"]),
            "No method has a higher exact match than the pre-distilled student, which keeps 62% of "
            "the teacher's at 14% of its size, and no difference was seen between it and B.",
        ),
        (  # without its texts, one seed cannot be tested
            task_of(teacher=[50.0], A=[31.0], B=[30.0]),
            "A, with the highest exact match of 2 students with one seed each, keeps 62% of the "
            "teacher's at 14% of its size, and no test compares it with B.",
        ),
        (
            task_of(A=CLEAR["A"], **{f"B{i}": [v - i / 9 for v in CLOSE["B"]] for i in range(6)}),
            "A, with the highest exact match of 7 students, has 31.00 ± 1.00, and no difference "
            "was seen between it and B0, B1, B2 and 3 others.",
        ),
        (task_of(teacher=[50.0]), "No student has a score."),
    ],
)  # fmt: skip
def test_the_headline_claims_what_the_tests_do(task, sentence):
    assert headline([task], alpha=0.05) == sentence


def test_a_difference_that_correction_takes_away_is_not_clear():
    shift = [(d, d + 0.8, d - 0.8) for d in (2.0, 2.1, 2.2)]  # each p is 0.04 to 0.05
    others = {f"B{i}": [31 - s for s in row] for i, row in enumerate(shift)}
    text = headline([task_of(A=[31.0, 31.0, 31.0], **others)], alpha=0.05)
    assert text.endswith("and it is not clearly better than B0, B1 and B2.")


def test_several_tasks_have_a_clause_each():
    tasks = [task_of(label=f"t{i}", teacher=[50.0], **CLEAR) for i in range(5)]
    clause = "A, the best of 3 students, keeps 62% of the teacher's exact match at 14% of its size"
    assert headline(tasks[:2], alpha=0.05) == f"t0: {clause}; t1: {clause}."
    assert headline(tasks, alpha=0.05).endswith(f"t2: {clause}; 2 more below.")


# -- the title --------------------------------------------------------------------------------


def test_the_title_is_what_all_runs_are_about(tmp_path):
    make_grid(tmp_path / "sweep", systems=("kl", "llmr"), seeds=SEEDS[:1])
    assert gather([tmp_path]).description == f"seed {SEEDS[0]}"  # both runs have it
    make_folder(tmp_path / "sweep" / "other", LLMR, 1, scores_of(1.0))
    assert gather([tmp_path]).description == ""
    write_reports([tmp_path / "sweep"], tmp_path / "out", max_outputs=0)
    assert "\n# cmudict\n" in (tmp_path / "out" / "summary.md").read_text()
    path = tmp_path / "sweep" / "sweep.yaml"
    path.write_text("description: <b>Two</b> &\n  more\nsystems: {kl: {recipe: cmudict/kl}}\n")
    assert gather([tmp_path]).description == "<b>Two</b> & more"
    make_folder(tmp_path / "elsewhere", LLMR, 2, scores_of(1.0))
    assert gather([tmp_path]).description == ""
    for text in ("[", "- a", "description: [1]", ""):
        path.write_text(text)
        assert gather([tmp_path / "sweep"]).description == ""


# -- places -----------------------------------------------------------------------------------


def headings(path):
    return [line for line in path.read_text().splitlines() if line.startswith("#")]


def test_headings_are_questions_or_the_papers(tmp_path):
    make_grid(tmp_path / "runs", seeds=SEEDS[:2])
    out = tmp_path / "out"
    write_reports([tmp_path / "runs"], out, max_outputs=0)
    page = (out / "report.html").read_text()
    assert headings(out / "summary.md") == [
        "# cmudict",
        "## Findings",
        "## Scores",
        "### Return and length by system",
        "### Return and length in numbers",
        "## Are the differences real?",
        "### Paired tests",
        "## How it trained",
        "### Learning curves of LLMR, BRIM and anchored",
        "### Learning curves of other methods",
        "### PPO: critic, return and length",
        "### How steady training was",
        "### Variance and bias of the return during training",
        "## Which K?",
        "### Validation score by K",
    ]
    assert not any(word in page for word in ("Table 1", "Figure 1", "Table 8", "the paper"))
    files = {path.name for path in out.iterdir()}
    write_reports([tmp_path / "runs"], out, max_outputs=0, paper=True)
    assert {path.name for path in out.iterdir()} == files
    found = headings(out / "summary.md")
    assert found[:4] == ["# cmudict", "## Findings", "## Tables", "### Table 1: main results"]
    assert "## Figures" in found
    assert "### Figure 2: learning curves of LLMR, BRIM and anchored" in found
    assert "the paper: p &lt; 0.035" in (out / "report.html").read_text()


def test_an_earlier_versions_report_is_written_over(tmp_path):
    make_grid(tmp_path / "runs", systems=("kl",), seeds=SEEDS[:1])
    out = tmp_path / "out"
    out.mkdir()
    (out / "summary.md").write_text("# brim report\n\n## Findings\n")
    write_reports([tmp_path / "runs"], out, max_outputs=0)
    assert (out / "summary.md").read_text().startswith("<!-- brim report -->\n")


def test_every_part_of_the_paper_has_one_place():
    tables = [Table(name, name, (), (), "") for name in ("table7", "table1", "significance_all")]
    figures = [Figure("figure3", "figure3", b"", b"", "")]
    by_question = sections(tables, figures, paper=False)
    assert [(s.name, [p.name for p in s.parts]) for s in by_question] == [
        ("scores", ["table1"]), ("training", ["figure3"]),
    ]  # fmt: skip
    papers = sections(tables, figures, paper=True)
    assert [[p.name for p in s.parts] for s in papers] == [["table7", "table1"], ["figure3"]]


# -- colors -----------------------------------------------------------------------------------


def of_systems(*labels):
    return TaskRuns("t", "t", "unknown", tuple(system_of(k, [1.0], "return") for k in labels), "")


def test_a_system_keeps_its_color_and_no_two_share_one():
    names = ["Teacher", "LLMR", "KL", "BRIM (K = 2)", "mine", "theirs", "方法", "LLMR [lr = 0.1]"]
    looks = looks_of([of_systems(*names)])
    assert len({look.color for look in looks.values()}) == len(names)
    for label in names:
        assert looks_of([of_systems(label)])[label] == looks[label] or label not in names[:4]
    assert looks_of([of_systems("LLMR", "KL")])["KL"] == looks["KL"]
    both = looks_of([of_systems("KL", "mine"), of_systems("mine", "LLMR")])
    assert list(both) == ["KL", "mine", "LLMR"]
    many = looks_of([of_systems(*map(str, range(45)))])
    assert len(set(many.values())) == 45
    assert len({look.color for look in list(many.values())[:20]}) == 20


def linear(color):
    parts = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


# What a reader without one kind of cone sees (Machado and others, 2009), in linear RGB.
SEEN = {
    "all cones": np.eye(3),
    "protan": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
    "deutan": [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
}


WEIGHTS = [0.2126, 0.7152, 0.0722]  # of relative luminance


def contrast(a, b):
    low, high = sorted([a, b])
    return (high + 0.05) / (low + 0.05)


def test_colors_stand_out_on_light_and_on_dark_paper():
    paper = linear("#161a20") @ WEIGHTS
    # What CSS calls invert(.9) and hue-rotate(180deg).
    turn = np.array([[-0.574, 1.43, 0.144], [0.426, 0.43, 0.144], [0.426, 1.43, -0.856]])
    for color in COLORS:
        parts = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        turned = np.clip(turn @ (0.9 - 0.8 * parts), 0, 1)
        turned = "#" + "".join(f"{round(255 * part):02x}" for part in turned)
        assert contrast(linear(color) @ WEIGHTS, 1.0) >= 3, color
        assert contrast(linear(turned) @ WEIGHTS, paper) >= 3, color


@pytest.mark.parametrize("seen", SEEN)
def test_colors_can_be_told_from_each_other(seen):
    # Cube roots are evenly spaced to the eye, nearly.
    colors = [np.cbrt(np.clip(np.asarray(SEEN[seen]) @ linear(color), 0, 1)) for color in COLORS]
    pairs = itertools.combinations(colors, 2)
    assert min(np.linalg.norm(a - b) for a, b in pairs) > 0.09
    looks = looks_of([of_systems(*[f"BRIM (K = {k})" for k in (2, 4, 8, 16)], "LLMR")])
    together = [colors[COLORS.index(look.color)] for look in looks.values()]
    pairs = itertools.combinations(together, 2)
    assert min(np.linalg.norm(a - b) for a, b in pairs) > 0.18


def test_figures_draw_a_system_in_its_color(tmp_path):
    make_grid(tmp_path / "runs", systems=("kl", "llmr", "brim-k=2"), seeds=SEEDS[:2])
    write_reports([tmp_path / "runs"], tmp_path / "out", max_outputs=2)
    colors = {k: v.color.lower() for k, v in looks_of(gather([tmp_path / "runs"]).tasks).items()}
    where = {"figure1": colors, "figure2": ["LLMR", "BRIM (K = 2)"], "curves": ["KL"]}
    for name, labels in where.items():
        svg = (tmp_path / "out" / f"{name}.svg").read_text().lower()
        assert {label for label, color in colors.items() if color in svg} == set(labels)
