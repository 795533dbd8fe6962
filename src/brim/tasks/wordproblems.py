"""Word problems with worked steps in GSM8K's form, from a seeded generator of our own stories.

    Mia buys 3 pens for $4 each at the market. She pays with $20. How many dollars does she get
    back?

    The pens cost 3*4=$<<3*4=12>>12.
    Mia gets 20-12=$<<20-12=8>>8 back.
    #### 8

The answer is the number after `####`, as in github.com/openai/grade-school-math. No story is from
GSM8K: models trained here may be tested there. They are in `brim/data/wordproblems/*.toml`, in a
small notation:

    [change]
    let = ["spent=count*price", "bill=spent+count2"]
    prompt = ["{A} buys {count} {goods} for ${price} each( at the {shop}|).",
      "{He} pays with ${bill}. How many dollars does {he} get back?"]
    steps = ["The {goods} cost $[cost=count*price].", "{A} gets $[bill-cost] back."]

The sentences of a prompt are joined by spaces, the steps of a solution by line ends. In a prompt
`(this|that|)` is any one of these; alternatives nest.

A slot in braces is drawn by what its name says, less its digit, which only tells slots apart:
`{A}`, `{B}`, `{C}` are people, and `{he}`, `{him}`, `{He}` stand for A; a name of `NUMBER_RANGES`
is a number; a class of `words.toml` is a word, with an s its plural (`{fruit2}` and `{fruits2}`
are one other fruit). `let` makes further numbers for the prompt.

`[cost=count*price]` in a step shows the chain worked out, `3*4=<<3*4=12>>12`, and keeps its value
as `cost`; a `$` before the bracket moves behind the equals sign. The last step's value is the
answer and has no name. A chain is worked from left to right and holds either sums and differences
or products and quotients.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from operator import add, floordiv, mul, sub
from random import Random
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Field

from brim.examples import Example
from brim.seeding import derive_seed
from brim.tasks.base import Split, Task

Level = Literal[1, 2, 3, 4]
Numbers = Literal["small", "medium", "large"]
Values = dict[str, Any]

NUMBER_RANGES: dict[str, dict[Numbers, Sequence[int]]] = {
    "count": {"small": range(2, 10), "medium": range(2, 16), "large": range(5, 41)},
    "factor": {"small": range(2, 6), "medium": range(2, 10), "large": range(2, 13)},
    "price": {"small": range(2, 10), "medium": range(3, 26), "large": range(8, 91)},
    "amount": {"small": range(5, 21), "medium": range(15, 91), "large": range(60, 801)},
    "age": {"small": range(4, 13), "medium": range(4, 26), "large": range(4, 31)},
    "times": {"small": (2, 3), "medium": (2, 3), "large": (2, 3)},
    "percent": {"small": (10, 20, 25, 50), "medium": (10, 20, 25, 50), "large": range(5, 100, 5)},
}
"""What the numbers of a story are drawn from, by the name of their slot."""

NUMBER_LIMITS: dict[Numbers, int] = {"small": 100, "medium": 1_000, "large": 10_000}
"""The largest number that a story may hold or come to."""

_FILES: dict[Level, str] = {1: "one_step", 2: "two_steps", 3: "three_steps", 4: "four_steps"}
_PRONOUNS = {
    "she": {"he": "she", "him": "her", "He": "She"},
    "he": {"he": "he", "him": "him", "He": "He"},
}
_OPERATORS = {"+": add, "-": sub, "*": mul, "/": floordiv}
_ALTERNATIVES = re.compile(r"\(([^()]*)\)")
_CHAIN = re.compile(r"(\$?)\[(?:(\w+)=)?([^]]+)\]")
_MARK = re.compile("<<[^>]*>>")

# A million is far below the number of problems that any one level can tell.
Size = Annotated[int, Field(ge=1, le=1_000_000)]
_Item = TypeVar("_Item")


class WordProblems(Task):
    """Settings of the generated word problems.

    All are different, the arithmetic always right, the answers whole and above 1. A split is a
    function of the settings, and a larger one begins with the smaller one. A hash of its prompt
    decides which split a problem belongs to, so no training problem is in the test split of *any*
    seed or level.
    """

    metrics: ClassVar[tuple[str, ...]] = ("answer_accuracy", "exact_match", "bleu")

    name: Literal["wordproblems"] = "wordproblems"
    """Word problems with worked steps, in GSM8K's form."""
    levels: Annotated[tuple[Level, ...], Field(min_length=1)] = (1, 2)
    """How many steps a problem may have, 1 to 4; a level named twice comes twice as often."""
    numbers: Numbers = "small"
    """How large they are: `small` up to 100, `medium` up to 1,000, `large` up to 10,000."""
    calculator_marks: bool = True
    """Whether solutions have GSM8K's calculator marks, `<<3*4=12>>`."""
    num_train: Size = 50_000
    """Problems of the training split."""
    num_validation: Size = 500
    """Problems of the validation split."""
    num_test: Size = 1_000
    """Problems of the test split."""
    seed: int = 0
    """Another seed gives other problems; the run's own seed does not touch the data."""

    def load(self, split: Split, **_: Any) -> Sequence[Example]:
        """Return the problems of a split; an id ends in the name of the story's template."""
        rng = Random(derive_seed(self.seed, self.name, split))
        size, words = getattr(self, f"num_{split}"), load_words()
        examples: dict[str, Example] = {}
        while len(examples) < min(size, self.limit(split) or size):
            template = pick(rng, load_templates(pick(rng, self.levels)))
            values = template.draw(rng, words, self.numbers)
            prompt = pick(rng, template.prompts).format_map(values)
            if _split_of(prompt) != split or prompt in examples:
                continue
            solution = template.solution.format_map(values)
            if not self.calculator_marks:
                solution = _MARK.sub("", solution)
            example_id = f"{split}-{len(examples)}-{template.name}"
            examples[prompt] = Example(example_id, prompt, (solution,))
        return list(examples.values())


def _split_of(prompt: str) -> Split:
    """The split of a problem: one in eight validates, one in eight tests."""
    part = hashlib.blake2b(prompt.encode(), digest_size=1).digest()[0] % 8
    if part == 0:
        return "validation"
    return "test" if part == 1 else "train"


def pick(rng: Random, items: Sequence[_Item]) -> _Item:
    """Return one of the items; only `Random.random` is the same in every version of Python."""
    return items[int(rng.random() * len(items))]


@dataclass(frozen=True, slots=True)
class Words:
    """What stories are about: names with their pronouns `he`, `him` and `He`, and words.

    `classes` has (singular, plural) of each word of a class.
    """

    people: Sequence[tuple[str, Mapping[str, str]]]
    classes: Mapping[str, Sequence[tuple[str, str]]]


@dataclass(frozen=True, slots=True)
class Chain:
    """Numbers joined by operators of one precedence, as in `full-count2-4`.

    `name` is what the value is called in later chains and texts. Each of the `terms` is an operator
    with its slot or constant; the first one adds to 0.
    """

    name: str
    terms: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, name: str, text: str) -> Chain:
        """Return the chain that `text` spells."""
        first, *rest = re.split(r"([-+*/])", text)
        if not any(set(rest[::2]) <= set(same) for same in ("+-", "*/")):
            raise ValueError(f"{text!r} mixes operators that do not go from left to right")
        return cls(name, (("+", first), *zip(rest[::2], rest[1::2], strict=True)))

    def evaluate(self, values: Values) -> int | None:
        """Return the value, or None where a quotient leaves a remainder."""
        result = 0
        for operator, operand in self.terms:
            number = int(operand) if operand.isdecimal() else values[operand]
            if operator == "/" and result % number:
                return None
            result = _OPERATORS[operator](result, number)
        return result


@dataclass(frozen=True, slots=True)
class Template:
    """One story without its numbers and words.

    Attributes:
        name: unique among all templates.
        prompts: the phrasings, as formats.
        solution: worked steps with calculator marks and the line `#### answer`, as a format.
        num_people: how many of A, B, C are in it.
        words: class and digits of the words to draw.
        numbers: slot and kind of the numbers to draw.
        chains: `let` and the steps, in order; the last one's name is `answer`.
    """

    name: str
    prompts: Sequence[str]
    solution: str
    num_people: int
    words: Mapping[str, Sequence[str]]
    numbers: Mapping[str, str]
    chains: Sequence[Chain]

    @classmethod
    def parse(cls, name: str, table: Mapping[str, Sequence[str]], words: Words) -> Template:
        """Return the template that one table of a TOML file describes."""
        lets = [text.split("=") for text in table.get("let", ())]
        chains = [Chain.parse(*let) for let in lets]

        def show(match: re.Match[str]) -> str:
            dollar, value, text = match.groups(default="answer")
            chains.append(Chain.parse(value, text))
            worked = _as_format(text)
            return f"{worked}={dollar}<<{worked}={{{value}}}>>{{{value}}}"

        steps = [_CHAIN.sub(show, step) for step in table["steps"]]
        story = " ".join(table["prompt"])
        unseen = " ".join(_as_format(text) for _, text in lets)
        digits: dict[str, list[str]] = {}
        for kind, digit in _unique(rf"\{{({'|'.join(words.classes)})s?(\d?)\}}", story):
            digits.setdefault(kind, []).append(digit)
        return cls(
            name=name,
            prompts=_phrasings(story),
            solution="\n".join([*steps, "#### {answer}"]),
            num_people=sum(f"{{{person}}}" in story for person in "ABC"),
            words=digits,
            numbers=dict(_unique(rf"\{{(({'|'.join(NUMBER_RANGES)})\d?)\}}", story + unseen)),
            chains=chains,
        )

    def draw(self, rng: Random, words: Words, numbers: Numbers) -> Values:
        """Draw what the formats need: people, words, numbers and all that follows from the numbers.

        All numbers are whole, from 2, so that plurals are right, to the limit of their range.
        """
        values: Values = {}
        people = _draw_distinct(rng, words.people, self.num_people)
        for letter, (name, pronouns) in reversed(list(zip("ABC", people, strict=False))):
            values |= {letter: name, **pronouns}
        for kind, digits in self.words.items():
            drawn = _draw_distinct(rng, words.classes[kind], len(digits))
            for digit, (one, many) in zip(digits, drawn, strict=True):
                values[f"{kind}{digit}"], values[f"{kind}s{digit}"] = one, many
        while not self._draw_numbers(values, rng, numbers):
            pass
        return values

    def _draw_numbers(self, values: Values, rng: Random, numbers: Numbers) -> bool:
        """Draw the numbers and work out the chains; whether the numbers can be used."""
        for slot, kind in self.numbers.items():
            values[slot] = pick(rng, NUMBER_RANGES[kind][numbers])
        for chain in self.chains:
            value = chain.evaluate(values)
            if value is None or not 2 <= value <= NUMBER_LIMITS[numbers]:
                return False
            values[chain.name] = value
        return True


def _phrasings(story: str) -> list[str]:
    """Every text that the alternatives in `(this|that)` allow."""
    match = _ALTERNATIVES.search(story)
    if match is None:
        return [story]
    before, after = story[: match.start()], story[match.end() :]
    return [text for part in match[1].split("|") for text in _phrasings(before + part + after)]


def _as_format(chain: str) -> str:
    """`a*b/2` -> `{a}*{b}/2`."""
    return re.sub(r"[a-z]\w*", r"{\g<0>}", chain)


def _unique(pattern: str, text: str) -> list[tuple[str, str]]:
    return sorted(set(re.findall(pattern, text)))


def _draw_distinct(rng: Random, items: Sequence[_Item], count: int) -> list[_Item]:
    drawn: list[_Item] = []
    while len(drawn) < count:
        item = pick(rng, items)
        if item not in drawn:
            drawn.append(item)
    return drawn


def _read(file: str) -> dict[str, Any]:
    path = resources.files("brim") / "data" / "wordproblems" / f"{file}.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))


@cache
def load_words() -> Words:
    """Return the words of `words.toml`."""
    tables = _read("words")
    people = [
        (name, pronouns) for she, pronouns in _PRONOUNS.items() for name in tables["people"][she]
    ]
    classes = {
        kind: [(one, many or f"{one}s") for one, _, many in (w.partition("/") for w in listed)]
        for kind, listed in tables["classes"].items()
    }
    return Words(people, classes)


@cache
def load_templates(level: Level) -> Sequence[Template]:
    """Return the templates with so many steps, 1 to 4."""
    tables = _read(_FILES[level])
    return [Template.parse(name, table, load_words()) for name, table in tables.items()]
