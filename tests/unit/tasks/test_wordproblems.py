"""Word problems: right arithmetic, solvable stories, clean text, splits that never meet."""

import os
import random
import re
import subprocess
import sys
from fractions import Fraction
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from brim.metrics import score
from brim.tasks.base import SPLITS
from brim.tasks.wordproblems import (
    NUMBER_LIMITS,
    Chain,
    WordProblems,
    load_templates,
    load_words,
)

LEVELS = (1, 2, 3, 4)
TEMPLATES = [
    pytest.param(template, level, id=template.name)
    for level in LEVELS
    for template in load_templates(level)
]
SMALL = {"num_train": 3_000, "num_validation": 400, "num_test": 400}


def evaluate(expression: str) -> Fraction:
    """Sums of products, exactly: a second opinion on the calculator marks."""
    total = Fraction(0)
    for sign, term in re.findall(r"(^|[-+])([^-+]+)", expression):
        value = Fraction(1)
        for operator, number in re.findall(r"(^|[*/])(\d+)", term):
            value = value / int(number) if operator == "/" else value * int(number)
        total += -value if sign == "-" else value
    return total


def check_solution(solution: str, *, num_steps: int) -> list[tuple[list[int], int]]:
    """Check the form and the arithmetic; the operands and the value of each step."""
    *lines, final = solution.split("\n")
    assert len(lines) == num_steps
    steps = []
    for line in lines:
        match = re.fullmatch(
            r"[A-Z][A-Za-z ]* ([0-9*/+-]+)=\$?<<([0-9*/+-]+)=([0-9]+)>>([0-9]+)( [a-z ]+)?\.", line
        )
        assert match, line
        shown, expression, value, repeated, _ = match.groups()
        assert shown == expression
        assert value == repeated
        assert evaluate(expression) == int(value), line
        steps.append(([int(number) for number in re.findall(r"\d+", expression)], int(value)))
    assert final == f"#### {steps[-1][1]}"
    return steps


@pytest.mark.parametrize("numbers", ["small", "medium", "large"])
@pytest.mark.parametrize(("template", "level"), TEMPLATES)
def test_every_story_is_solvable_and_right_in_every_phrasing(template, level, numbers):
    rng = Random(5)
    for prompt in template.prompts:
        values = template.draw(rng, load_words(), numbers)
        prompt = prompt.format_map(values)
        steps = check_solution(template.solution.format_map(values), num_steps=level)
        told = [int(number) for number in re.findall(r"\d+", prompt)]
        known = {*told, 2, 4, 100}  # halves, legs and percent go without saying
        for operands, value in steps:
            assert known.issuperset(operands), "a number from nowhere"
            known.add(value)
        used = {operand for operands, _ in steps for operand in operands}
        assert used.issuperset(told), "a number that no step needs"
        assert min(told) >= 2
        assert max(known) <= NUMBER_LIMITS[numbers]


@pytest.mark.parametrize(("template", "level"), TEMPLATES)
def test_every_phrasing_reads_well(template, level):
    rng = Random(7)
    for prompt in template.prompts:
        text = prompt.format_map(template.draw(rng, load_words(), "small"))
        sentence = r"[A-Z0-9][A-Za-z0-9 ,$%-]*"
        assert re.fullmatch(rf"({sentence}\. )+{sentence}\?|{sentence}\?", text), text
        assert not re.search(
            r"  | [,.?]|[,$%] ?[,.?]|\b[Aa] [aeiou]|\b[Aa]n [^aeiouh]|\b(\w+) \1\b", text
        ), text


def test_phrasings_and_names_are_distinct():
    templates = [template for level in LEVELS for template in load_templates(level)]
    assert len({template.name for template in templates}) == len(templates) >= 60
    phrasings = [prompt for template in templates for prompt in template.prompts]
    assert len(set(phrasings)) == len(phrasings)
    words = load_words()
    assert len({name for name, _ in words.people}) == len(words.people)
    for listed in words.classes.values():
        assert len(set(listed)) == len(listed)


def test_people_and_things_of_a_story_differ():
    template = next(t for t in load_templates(3) if t.name == "chain")
    shopping = next(t for t in load_templates(3) if t.name == "two_kinds")
    rng = Random(0)
    for _ in range(500):
        values = template.draw(rng, load_words(), "small")
        assert len({values["A"], values["B"], values["C"]}) == 3
        values = shopping.draw(rng, load_words(), "small")
        assert values["good"] != values["good2"]


def test_pronouns_follow_the_first_person():
    pronouns = dict(load_words().people)
    assert pronouns["Mia"]["him"] == "her"
    template = next(t for t in load_templates(1) if t.name == "gain")
    rng = Random(0)
    for _ in range(200):
        values = template.draw(rng, load_words(), "small")
        assert values["He"] == pronouns[values["A"]]["He"]


@given(
    st.integers(0, 50),
    st.lists(st.tuples(st.sampled_from("+-"), st.integers(1, 50)), max_size=4)
    | st.lists(st.tuples(st.sampled_from("*/"), st.integers(1, 50)), max_size=4),
)
def test_a_chain_agrees_with_exact_arithmetic_or_refuses(first, rest):
    text = str(first) + "".join(f"{operator}{number}" for operator, number in rest)
    exact, whole = Fraction(first), True
    for operator, number in rest:
        exact = {
            "+": exact + number,
            "-": exact - number,
            "*": exact * number,
            "/": exact / number,
        }[operator]
        whole = whole and exact.denominator == 1
    assert Chain.parse("x", text).evaluate({}) == (exact if whole else None)
    assert evaluate(text) == exact


def test_a_chain_with_two_precedences_is_refused():
    with pytest.raises(ValueError, match="left to right"):
        Chain.parse("x", "a+b*2")


@pytest.mark.parametrize("level", LEVELS)
def test_splits_are_full_distinct_and_disjoint(level):
    task = WordProblems(levels=[level], **SMALL)
    prompts = {split: [example.prompt for example in task.load(split)] for split in SPLITS}
    assert [len(prompts[split]) for split in SPLITS] == [3_000, 400, 400]
    for split in SPLITS:
        assert len(set(prompts[split])) == len(prompts[split])
    assert len(set().union(*prompts.values())) == 3_800
    assert len({example.id for split in SPLITS for example in task.load(split)}) == 3_800


def test_training_problems_of_one_seed_are_not_tested_by_another():
    trained = {
        example.prompt
        for seed in range(3)
        for example in WordProblems(levels=[1], num_train=20_000, seed=seed).load("train")
    }
    # Saturated enough to meet: another seed's training split has plenty of the same problems.
    again = WordProblems(levels=[1], num_train=20_000, seed=3).load("train")
    assert sum(example.prompt in trained for example in again) > 20
    for split in ("validation", "test"):
        other = WordProblems(levels=[1], num_validation=3_000, num_test=3_000, seed=4).load(split)
        assert trained.isdisjoint(example.prompt for example in other)


def test_a_larger_split_begins_with_the_smaller_one():
    small, large = WordProblems(num_train=100), WordProblems(num_train=2_000)
    assert large.load("train")[:100] == small.load("train")
    limited = WordProblems(num_train=2_000, max_train_examples=100)
    assert limited.load("train") == small.load("train")
    assert WordProblems(seed=1, num_train=100).load("train") != small.load("train")


def test_a_split_is_the_same_in_another_process_and_leaves_global_randomness_alone():
    state = random.getstate()
    here = WordProblems(num_test=50).load("test")
    assert random.getstate() == state
    code = (
        "from brim.tasks.wordproblems import WordProblems\n"
        "for e in WordProblems(num_test=50).load('test'): print(e)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "123"}
    shown = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert shown.splitlines() == [repr(example) for example in here]


def test_levels_are_mixed_as_asked():
    def steps(levels):
        examples = WordProblems(levels=levels, num_train=2_000).load("train")
        return [example.references[0].count("<<") for example in examples]

    assert set(steps([3])) == {3}
    mixed = steps([1, 4])
    assert set(mixed) == {1, 4}
    assert mixed.count(1) == pytest.approx(1_000, abs=150)
    assert steps([1, 1, 4]).count(1) == pytest.approx(1_333, abs=150)


def test_templates_are_told_equally_often():
    examples = WordProblems(levels=[4], num_train=6_000).load("train")
    names = [example.id.split("-", 2)[2] for example in examples]
    for template in load_templates(4):
        assert names.count(template.name) == pytest.approx(500, abs=120)


@pytest.mark.parametrize(
    ("numbers", "largest"), [("small", 100), ("medium", 1_000), ("large", 10_000)]
)
def test_numbers_grow_with_the_setting(numbers, largest):
    examples = WordProblems(levels=[2, 3, 4], numbers=numbers, num_train=2_000).load("train")
    found = [int(n) for e in examples for n in re.findall(r"\d+", e.references[0])]
    assert largest / 2 < max(found) <= largest


def test_without_marks_the_solution_is_the_same_text_less_the_marks():
    marked = WordProblems(levels=[2], num_train=300).load("train")
    plain = WordProblems(levels=[2], num_train=300, calculator_marks=False).load("train")
    for with_marks, without in zip(marked, plain, strict=True):
        assert with_marks.prompt == without.prompt
        assert without.references[0] == re.sub("<<.*?>>", "", with_marks.references[0])
        assert "<" not in without.references[0]
        assert re.search(r"\d=\$?\d+", without.references[0])


@pytest.mark.parametrize("calculator_marks", [True, False])
def test_the_metric_reads_the_answers(calculator_marks):
    task = WordProblems(
        levels=LEVELS, numbers="large", num_test=200, calculator_marks=calculator_marks
    )
    examples = task.load("test")
    references = [example.references for example in examples]
    right = [example.references[0] for example in examples]
    wrong = [f"{text}1" for text in right]
    assert score(task.metrics, right, references, seed=0)["answer_accuracy"].value == 100
    assert score(task.metrics, wrong, references, seed=0)["answer_accuracy"].value == 0


@pytest.mark.parametrize(
    "settings", [{"levels": ()}, {"levels": (5,)}, {"numbers": "tiny"}, {"num_train": 0}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValidationError):
        WordProblems(**settings)
