"""A method of your own in one file: the best of n completions, by the teacher's return.

    python examples/custom_objective.py [--steps 40] [--n 4]

The student writes n completions of each prompt, keeps the one with the highest return (Eq 4), and
learns it by cross-entropy. `Trainer` gives it what every method has: checkpoints, resuming, several
processes, evaluations. One minute on one core.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from accelerate import Accelerator
from pydantic import Field
from torch import Tensor

from brim import Batch, LanguageModel, Rollout, rewards_to_go
from brim.losses import cross_entropy
from brim.metrics import Score
from brim.models import Decoding, build_model, train_tokenizer
from brim.objectives import OBJECTIVES, make_objective
from brim.objectives.base import Objective, Policy, length_metrics, length_sums, total
from brim.objectives.method import MethodConfig
from brim.tasks import CMUdict
from brim.training.evaluation import Evaluation
from brim.training.loop_settings import LoopConfig, OptimConfig
from brim.training.tracking import Tracker
from brim.training.trainer import Trainer
from brim.types import LossOutput

DECODING = Decoding(max_tokens=20)
GREEDY = Decoding(strategy="greedy", max_tokens=20)


class BestOfNConfig(MethodConfig):
    """Cross-entropy on the best of n completions."""

    name: Literal["best_of_n"] = "best_of_n"
    n: int = Field(4, ge=2)
    """Completions of each prompt."""


class BestOfN(Objective):
    """`−Σ_t log π(a_t | s_t)` over the completion that the teacher scores highest."""

    settings: BestOfNConfig

    def collect(
        self, batch: Batch, student: LanguageModel, teacher: LanguageModel | None
    ) -> tuple[Rollout, Mapping[str, Tensor]]:
        """Write n completions of each prompt, and keep one."""
        assert teacher is not None
        n = self.settings.n
        rollout = student.generate(batch.repeat(n), self.decoding)
        returns = text_returns(teacher, rollout).reshape(-1, n)
        best = returns.argmax(dim=1).tolist()
        kept = rollout.select([row * n + number for row, number in enumerate(best)])
        sums = {"best": total(returns.amax(dim=1)), "mean": total(returns.mean(dim=1))}
        return kept, {**length_sums(kept), **sums}

    def loss(
        self, policy: Policy, rollout: Rollout, teacher: LanguageModel | None = None
    ) -> LossOutput:
        """Return the cross-entropy, summed over tokens."""
        tokens = policy(rollout)
        loss = cross_entropy(tokens.logprobs, rollout.mask)
        return LossOutput(loss, {"policy/entropy": tokens.entropy.sum()})

    def describe(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return lengths, and the return of what was kept beside that of all."""
        returns = {f"rollout/{name}_return": sums[name] / sums["rows"] for name in ("best", "mean")}
        return {**length_metrics(sums), **returns}


OBJECTIVES["best_of_n"] = (BestOfNConfig, f"{__name__}:BestOfN")


def text_returns(teacher: LanguageModel, rollout: Rollout) -> Tensor:
    q = teacher.action_values(rollout, centering="logsumexp")
    return rewards_to_go(q.q_taken, q.q_max, rollout.mask)[:, 0]


def main(argv: Sequence[str] | None = None) -> tuple[float, float]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--n", type=int, default=4)
    args = parser.parse_args(argv)

    train = CMUdict().load("train")
    texts = (text for example in train for text in (example.prompt, *example.references))
    tokenizer = train_tokenizer(texts, kind="word", vocab_size=200)
    small = {"family": "t5", "d_model": 64, "d_ff": 128, "layers": 1, "heads": 4, "dropout": 0.0}
    teacher = build_model(small, tokenizer, seed=0)  # knows nothing; a real one is loaded
    student = build_model(small, tokenizer, seed=1)

    def evaluate(model: LanguageModel) -> Evaluation:
        rollout = model.generate(model.encode(train[:64], max_tokens=None), GREEDY)
        value = text_returns(teacher, rollout).mean().item()
        score = Score("return", value, value, value, 0.95, "greedy", True, len(rollout))
        return Evaluation({"return": score}, [], 0)

    before = evaluate(student).scores["return"].value
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            student=student,
            teacher=teacher,
            objective=make_objective(BestOfNConfig(n=args.n), DECODING),
            examples=train,
            evaluate=evaluate,
            metric="return",
            optim=OptimConfig(lr=1e-3),
            settings=LoopConfig(max_steps=args.steps, rollout_batch_size=32),
            directory=Path(folder),
            accelerator=Accelerator(cpu=True),
            tracker=Tracker(Path(folder)),
        )
        trainer.train()
    after = evaluate(student).scores["return"].value
    print(f"return of greedy text: {before:.2f} before, {after:.2f} after")
    return before, after


if __name__ == "__main__":
    main()
