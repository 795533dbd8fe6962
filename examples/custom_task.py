"""A task of your own: one class, and everything that a run has.

    python examples/custom_task.py [--steps 100] [--out runs/backwards]

Words are to be spelled backwards. The recipe is that of cmudict with another task: a T5-type
teacher learns it, a smaller student is pre-distilled, then LLMR.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from brim import Example
from brim.config.loading import load_config
from brim.recipes import find_recipe
from brim.runs.train import train
from brim.tasks import CMUdict, Split, Task
from brim.training.settings import RunConfig


class Backwards(Task):
    """Words of a few letters, to be spelled backwards."""

    name: Literal["backwards"] = "backwards"
    metrics: ClassVar[tuple[str, ...]] = ("exact_match", "ter")
    max_letters: int = 8

    def load(self, split: Split, **_: Any) -> Sequence[Example]:
        """Return the words of a split: always the same ones, in the same order."""
        words = [e.prompt for e in CMUdict().load(split) if len(e.id) <= self.max_letters]
        return [Example(word, word, (word[::-1],)) for word in words[: self.limit(split)]]


class Run(RunConfig):
    """A run on it, with all other settings of a run."""

    task: Backwards


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100, help="of each stage")
    parser.add_argument("--out", type=Path, default=Path("runs/backwards"))
    args = parser.parse_args(argv)

    settings = ["task.name=backwards", "task.max_train_examples=4000", "task.max_test_examples=200"]
    for loop in ("teacher.train.trainer", "student.predistill.trainer", "trainer"):
        settings += [f"{loop}.max_steps={args.steps}", f"{loop}.evaluate_every={args.steps}"]
    recipe = find_recipe("cmudict/llmr")
    results = train(load_config(Run, recipe, settings, search=find_recipe), args.out)
    print({name: round(score["value"], 1) for name, score in results["scores"].items()})
    return results


if __name__ == "__main__":
    main()
