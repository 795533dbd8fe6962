"""Word problems with worked steps in GSM8K's form, from a seeded generator of our own stories.

    Mia buys 3 pens for $4 each at the market. She pays with $20. How many dollars does she get
    back?

    The pens cost 3*4=$<<3*4=12>>12.
    Mia gets 20-12=$<<20-12=8>>8 back.
    #### 8

The answer is the number after `####`, as in github.com/openai/grade-school-math. The stories are in
`brim/data/wordproblems`, and none is from GSM8K: models trained here may be tested there.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Annotated, Literal

from pydantic import Field

from brim.examples import Example
from brim.seeding import derive_seed
from brim.tasks._wordproblem_templates import Level, Numbers, load_templates, load_words, pick
from brim.tasks.base import Progress, Split, TaskSettings

# A million is far below the number of problems that any one level can tell.
Size = Annotated[int, Field(ge=1, le=1_000_000)]

_MARK = re.compile("<<[^>]*>>")


class WordProblems:
    """Generated word problems: all different, arithmetic always right, answers whole and above 1.

    A split is a function of the settings, and a larger one begins with the smaller one. A hash of
    its prompt decides which split a problem belongs to, so no training problem is in the test
    split of *any* seed or level.

    Args:
        levels: how many steps a problem may have, 1 to 4; a level named twice comes twice as often.
        numbers: how large they are: `small` up to 100, `medium` up to 1,000, `large` up to 10,000.
        calculator_marks: whether solutions have GSM8K's marks, `<<3*4=12>>`.
        num_train: problems of the training split, at most a million.
        num_validation: problems of the validation split.
        num_test: problems of the test split.
        seed: another seed gives other problems.
        max_examples: keep the first so many examples of a split.
    """

    name = "wordproblems"
    metrics: tuple[str, ...] = ("answer_accuracy", "exact_match", "bleu")

    def __init__(
        self,
        *,
        levels: Sequence[Level] = (1, 2),
        numbers: Numbers = "small",
        calculator_marks: bool = True,
        num_train: int = 50_000,
        num_validation: int = 500,
        num_test: int = 1_000,
        seed: int = 0,
        max_examples: Mapping[Split, int] | None = None,
    ) -> None:
        self.levels = tuple(levels)
        self.numbers = numbers
        self.calculator_marks = calculator_marks
        self.seed = seed
        sizes: dict[Split, int] = {
            "train": num_train,
            "validation": num_validation,
            "test": num_test,
        }
        limits = max_examples or {}
        self.num_examples = {s: min(size, limits.get(s, size)) for s, size in sizes.items()}

    def load(self, split: Split) -> Sequence[Example]:
        """The problems of a split; an id ends in the name of the story's template."""
        rng = Random(derive_seed(self.seed, self.name, split))
        words = load_words()
        examples: dict[str, Example] = {}
        while len(examples) < self.num_examples[split]:
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


class WordProblemsConfig(TaskSettings):
    """Settings of the generated word problems."""

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

    def build(
        self, *, cache_dir: Path | None = None, on_progress: Progress | None = None
    ) -> WordProblems:
        """The task; it reads no files of the user's."""
        return WordProblems(
            levels=self.levels,
            numbers=self.numbers,
            calculator_marks=self.calculator_marks,
            num_train=self.num_train,
            num_validation=self.num_validation,
            num_test=self.num_test,
            seed=self.seed,
            max_examples=self.max_examples,
        )
