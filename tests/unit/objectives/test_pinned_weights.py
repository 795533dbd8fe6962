"""The weights that each method leaves after three steps, as they were on the day this was written.

The text is given, so that no rounding can change which tokens are drawn: what is pinned is score,
credit, loss and update. AdamW's `eps` is 1, for with a small one an update has the sign of a
gradient's rounding. Of the change of the weights nine numbers are stored: its norm, and its sums
under eight fixed patterns of signs.

    python tests/unit/objectives/test_pinned_weights.py      writes the numbers anew
"""

import json
import math
import tempfile
from pathlib import Path

import pytest
import torch
from enumerable import build, make_trainer
from pydantic import TypeAdapter

from brim.models import Decoding, LanguageModel
from brim.objectives import ObjectiveConfig, make_objective
from brim.types import Batch, Rollout

STORED = Path(__file__).parents[2] / "data" / "pinned_weights.json"
MAX_TOKENS = 7
STEPS = 3
ROWS = 8
PLAIN = {"clip": {"range": 4.0}}

METHODS = [
    {"name": "seqkd"},
    {"name": "kl"},
    {"name": "rkl", "temperature": 0.7},
    {"name": "js"},
    {"name": "js", "beta": 0.3, "terms": "both"},
    {"name": "tvd"},
    *(
        {"name": "llmr", "baseline": baseline, "num_generations": 2, **PLAIN}
        for baseline in ("none", "mean", "min_variance", "time_mean", "leave_one_out")
    ),
    {"name": "llmr", "immediate": "expected", **PLAIN},
    {"name": "llmr", "immediate": "expected", "clip": {"target": "reward", "range": 1.0}},
    {"name": "brim", **PLAIN},
    {"name": "brim", "k": 3, "tail": "none", **PLAIN},
    {"name": "brim", "k": 3, "baseline": "mean", **PLAIN},
    {"name": "brim", "k": 4, **PLAIN},
    {"name": "brim", "k": 4, "immediate": "expected"},
    {"name": "brim", "k": 3, "clip": {"target": "reward", "range": 1.0}},
    *({"name": "brim", "truncated": truncated, **PLAIN} for truncated in ("drop", "bootstrap")),
    {"name": "brim", "truncated": "drop", "baseline": "mean", "immediate": "expected", **PLAIN},
    *(
        {"name": "brim", "q_centering": centering, "baseline": "time_mean", **PLAIN}
        for centering in ("none", "max", "logsumexp", "policy")
    ),
    {"name": "brim", "clip": {"target": "reward", "range": 1.0}},
    {"name": "brim", "clip": {"range": None}},
    {"name": "brim", "rollout_reuse": 3, "max_importance_weight": 1.01, **PLAIN},
    {"name": "brim", "sync_every": 2, **PLAIN},
    {"name": "ppo_llmr", "critic": "shared", "num_epochs": 2, "num_minibatches": 2, **PLAIN},
    {
        "name": "ppo_llmr",
        "critic": "separate",
        "num_epochs": 2,
        "num_minibatches": 2,
        "kl_coefficient": 0.1,
        "gae_lambda": 0.8,
        "discount": 0.9,
        "truncated": "bootstrap",
        "value_clip_range": None,
        **PLAIN,
    },
    {"name": "ppo_brim", "num_epochs": 2, "num_minibatches": 2, **PLAIN},
    {
        "name": "ppo_brim",
        "k": 3,
        "num_epochs": 3,
        "num_minibatches": 1,
        "kl_coefficient": 0.2,
        "epsilon": 0.01,
        "truncated": "drop",
        "target_kl": 1e-4,
        **PLAIN,
    },
    {"name": "ppo_brim", "normalize_advantages": False, "clip": {"target": "reward", "range": 1.0}},
    {"name": "anchored", "per_token": False, "lambda": 0.7, **PLAIN},
    {
        "name": "anchored",
        "per_token": False,
        "immediate": "sampled",
        "expected_regrets": False,
        "lambda": 0.5,
        **PLAIN,
    },
]
# A cut is part of the policy, which the loss must find again.
DECODINGS = {
    "whole": Decoding(max_tokens=MAX_TOKENS),
    "cut": Decoding(max_tokens=MAX_TOKENS, temperature=1.5, top_k=4),
}
SOME = ("llmr", "brim", "ppo_llmr")
CASES = {
    f"{family} {decoding} {json.dumps(method)}": (family, decoding, method)
    for decoding in DECODINGS
    for family in ("t5", "llama")
    for number, method in enumerate(METHODS)
    if decoding == "whole" or (method["name"] in SOME and number % 4 == 0)
}


def write(model: LanguageModel, batch: Batch, decoding: Decoding) -> Rollout:
    """Completions that the rows' seeds say, of lengths up to the limit, some of them cut."""
    (eos,) = model.eos_token_ids
    words = [i for i in range(5) if i not in (eos, model.pad_token_id)][-2:]
    ids = torch.full((len(batch), decoding.max_tokens), model.pad_token_id)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    truncated = torch.zeros(len(batch), dtype=torch.bool)
    for row, seed in enumerate(batch.seeds):
        length = 1 + seed % (decoding.max_tokens + 2)
        truncated[row] = length > decoding.max_tokens
        tokens = [words[seed >> (t + 8) & 1] for t in range(length - 1)] + [eos]
        kept = tokens[: decoding.max_tokens]
        ids[row, : len(kept)], mask[row, : len(kept)] = torch.tensor(kept), True
    return Rollout(batch, ids, mask, truncated)


def change(family: str, decoding: str, method: dict, directory: Path) -> list[float]:
    """Norm and signed sums of what three steps change, from all that is trained."""
    student = build(family, 11)
    teacher = build(family, 12, sharpness=2.0).requires_grad_(False)
    settings = TypeAdapter(ObjectiveConfig).validate_python(method)
    objective = make_objective(settings, DECODINGS[decoding])
    trainer, logged = make_trainer(
        objective, student, teacher, directory, steps=STEPS, rows=ROWS, lr=0.3, eps=1.0
    )
    module = trainer.updater.module
    start = torch.cat([p.detach().flatten().double() for p in module.parameters()])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LanguageModel, "generate", write)
        trainer.train()
    assert all(metrics["optim/skipped"] == 0 for metrics in logged)
    end = torch.cat([p.detach().flatten().double() for p in module.parameters()])
    generator = torch.Generator().manual_seed(0)
    signs = 2 * torch.randint(2, (8, len(start)), generator=generator) - 1
    moved = end - start
    return [float(moved.norm()), *(signs.double() @ moved).tolist()]


@pytest.mark.parametrize("case", CASES)
def test_three_steps_lead_where_they_led(case: str, tmp_path: Path) -> None:
    expected = json.loads(STORED.read_text())[case]
    found = change(*CASES[case], tmp_path)
    norm = expected[0]
    # A gradient's number is a sum of at most 56 tokens times 16 features, each rounded to 6e-8 of
    # itself, so about 5e-5 off if all errors add up; the sums are some tens of norms at most.
    assert found[0] == pytest.approx(norm, rel=1e-4)
    assert found[1:] == pytest.approx(expected[1:], rel=0, abs=3e-4 * norm)


def test_every_setting_that_is_pinned_changes_the_weights() -> None:
    stored = json.loads(STORED.read_text())
    assert stored.keys() == CASES.keys()
    rows = list(stored.values())
    assert all(row[0] > 0.01 and all(map(math.isfinite, row)) for row in rows)
    for i, row in enumerate(rows):
        for other in rows[:i]:
            assert math.dist(row, other) > 1e-2 * row[0]


if __name__ == "__main__":
    numbers = {}
    for name, arguments in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            numbers[name] = [float(f"{x:.7g}") for x in change(*arguments, Path(folder))]
    lines = (f"{json.dumps(name)}: {json.dumps(row)}" for name, row in numbers.items())
    STORED.write_text("{\n" + ",\n".join(lines) + "\n}\n")
