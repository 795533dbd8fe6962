"""A student and a teacher so small that every completion can be written down."""

from itertools import product
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from brim.examples import Example
from brim.metrics import Score
from brim.models import (
    SOFTMAX,
    Decoding,
    Distribution,
    LanguageModel,
    build_model,
    train_tokenizer,
)
from brim.objectives.base import Objective
from brim.returns import rewards_to_go
from brim.training.callbacks import Callbacks
from brim.training.evaluation import Evaluation
from brim.training.loop_settings import LoopConfig, OptimConfig
from brim.training.tracking import Tracker
from brim.training.trainer import Trainer
from brim.types import Rollout

HORIZON = 3
DECODING = Decoding(max_tokens=HORIZON)
EXAMPLES = [Example("0", "a b", ("b",)), Example("1", "b b a", ("a a",))]
TOKENIZER = train_tokenizer(["a b"], kind="word", vocab_size=5)
FAMILIES = {
    "t5": {"family": "t5", "d_ff": 24},
    "t5_tied": {"family": "t5", "d_ff": 24, "tied": True},
    "gpt2": {"family": "gpt2", "max_positions": 16},
    "llama": {"family": "llama", "tied": False},
    "llama_tied": {"family": "llama"},
    "qwen2": {"family": "qwen2", "tied": False},
}


def build(family: str, seed: int, *, dropout: float = 0.0, sharpness: float = 1.0) -> LanguageModel:
    """A random model; `sharpness` multiplies its logits."""
    description = {"d_model": 16, "layers": 1, "heads": 2, "dropout": dropout, **FAMILIES[family]}
    model = build_model(description, TOKENIZER, seed=seed)
    with torch.no_grad():
        model.model.get_output_embeddings().weight *= sharpness
    return model


def pair(family: str = "t5") -> tuple[LanguageModel, LanguageModel]:
    """Student and teacher."""
    return build(family, 11), build(family, 12, sharpness=2.0).requires_grad_(False)


def every_completion(model: LanguageModel, horizon: int = HORIZON) -> Rollout:
    """Of each prompt, each completion once."""
    (eos,), words = model.eos_token_ids, range(len(TOKENIZER))
    others = [word for word in words if word != eos]
    rows = [[*some, eos] for n in range(horizon) for some in product(others, repeat=n)]
    rows += [list(some) for some in product(others, repeat=horizon)]
    ids = torch.full((len(rows), horizon), model.pad_token_id)
    for row, tokens in zip(ids, rows, strict=True):
        row[: len(tokens)] = torch.tensor(tokens)
    lengths = torch.tensor([len(row) for row in rows])
    batch = model.encode(EXAMPLES, max_tokens=None).repeat(len(rows))
    mask = (torch.arange(horizon) < lengths[:, None]).repeat(len(EXAMPLES), 1)
    truncated = torch.tensor([row[-1] != eos for row in rows]).repeat(len(EXAMPLES))
    return Rollout(batch, ids.repeat(len(EXAMPLES), 1), mask, truncated)


def probabilities(
    model: LanguageModel, rollout: Rollout, distribution: Distribution = SOFTMAX
) -> Tensor:
    """Of each completion, given its prompt."""
    with model.evaluating():
        features = model.features(rollout)
        logits = features.head.under(distribution).logits(features.hidden)
    logprobs = logits.double().log_softmax(1).gather(1, features.token_ids[:, None]).squeeze(1)
    return features.scatter(logprobs).sum(1).exp()


def all_returns(teacher: LanguageModel, rollout: Rollout) -> Tensor:
    """G_1 of each completion."""
    values = teacher.action_values(rollout)
    return rewards_to_go(values.q_taken, values.q_max, rollout.mask)[:, 0].double()


def expected_return(student: LanguageModel, teacher: LanguageModel) -> float:
    """J of Eq 3, the mean over the prompts."""
    rollout = every_completion(student)
    return float(probabilities(student, rollout) @ all_returns(teacher, rollout)) / len(EXAMPLES)


def highest_return(teacher: LanguageModel) -> float:
    """J of a student that always writes the best."""
    returns = all_returns(teacher, every_completion(teacher))
    return float(returns.view(len(EXAMPLES), -1).max(1).values.mean())


def make_trainer(
    objective: Objective,
    student: LanguageModel,
    teacher: LanguageModel,
    directory: Path,
    *,
    steps: int = 10,
    rows: int = 32,
    micro_batch_tokens: int = 8192,
    lr: float = 0.008,
    eps: float = 1e-8,
) -> tuple[Trainer, list[dict[str, float]]]:
    """The real trainer, and the metrics of each step, to be filled; it evaluates J."""
    logged: list[dict[str, float]] = []

    def evaluate(model: LanguageModel) -> Evaluation:
        value = expected_return(model, teacher)
        return Evaluation(
            {"J": Score("J", value, value, value, 0.95, "exact", True, len(EXAMPLES))}, [], 0
        )

    trainer = Trainer(
        student=student,
        teacher=teacher,
        objective=objective,
        examples=EXAMPLES,
        evaluate=evaluate,
        metric="J",
        optim=OptimConfig(lr=lr, eps=eps),
        settings=LoopConfig(
            max_steps=steps,
            rollout_batch_size=rows,
            micro_batch_tokens=micro_batch_tokens,
            evaluate_every=steps,
            save_every=steps,
        ),
        directory=directory,
        accelerator=Accelerator(cpu=True),
        tracker=Tracker(directory),
        callbacks=Callbacks(lambda state: logged.append(dict(state.metrics))),
    )
    return trainer, logged
