"""BRIM in one file, without the trainer: what Algorithm 1 of the paper does, on real words.

    python examples/brim_loop.py [--steps 60] [--k 2]

A T5-type teacher learns to pronounce English words, a smaller student learns from the teacher's
outputs, then BRIM: the student writes, the teacher's logits become returns, the student follows
the policy gradient. Two minutes on two cores.
"""

import argparse
from collections.abc import Iterator, Sequence

import torch

from brim import Example, LanguageModel, block_returns, rewards_to_go
from brim.losses import cross_entropy, policy_gradient_loss
from brim.models import Decoding, build_model, train_tokenizer
from brim.tasks import CMUdict

MAX_TOKENS = 20


def batches(examples: Sequence[Example], batch_size: int, seed: int) -> Iterator[list[Example]]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        rows = torch.randint(len(examples), (batch_size,), generator=generator).tolist()
        yield [examples[row] for row in rows]


def optimize(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()


def imitate(
    model: LanguageModel, examples: Sequence[Example], steps: int, teacher: LanguageModel | None
) -> None:
    """Cross-entropy on the data's targets, or on what the teacher writes (SeqKD)."""
    greedy = Decoding(strategy="greedy", max_tokens=MAX_TOKENS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    model.train()
    for _, rows in zip(range(steps), batches(examples, 64, seed=1), strict=False):
        batch = model.encode(rows, max_tokens=None)
        if teacher is None:
            rollout = model.encode_targets(batch, max_tokens=MAX_TOKENS)
        else:
            rollout = teacher.generate(batch, greedy)
        loss = cross_entropy(model.logprobs(rollout), rollout.mask) / rollout.num_tokens
        optimize(optimizer, loss)


def brim(
    student: LanguageModel, teacher: LanguageModel, examples: Sequence[Example], steps: int, k: int
) -> None:
    """Algorithm 1, a batch at a time."""
    sampling = Decoding(max_tokens=MAX_TOKENS)
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-4)
    student.train()
    for step, rows in zip(range(steps), batches(examples, 64, seed=2), strict=False):
        batch = student.encode(rows, max_tokens=None, seeds=range(64 * step, 64 * (step + 1)))
        rollout = student.generate(batch, sampling)
        q = teacher.action_values(rollout, centering="mean")
        returns = block_returns(q.q_taken, q.q_max, rollout.mask, k=k)
        logprobs = student(rollout, distribution=sampling.distribution).logprobs
        loss = policy_gradient_loss(logprobs, returns, rollout.mask)
        optimize(optimizer, loss / rollout.num_tokens)
        if step % 20 == 0:
            print(f"step {step:4d}  return of samples {mean_return(q, rollout):.2f}")


def mean_return(q, rollout) -> float:
    return rewards_to_go(q.q_taken, q.q_max, rollout.mask)[:, 0].mean().item()


def test_return(
    student: LanguageModel, teacher: LanguageModel, examples: Sequence[Example]
) -> float:
    batch = student.encode(examples, max_tokens=None)
    rollout = student.generate(batch, Decoding(strategy="greedy", max_tokens=MAX_TOKENS))
    return mean_return(teacher.action_values(rollout), rollout)


def main(argv: Sequence[str] | None = None) -> tuple[float, float]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60, help="BRIM steps")
    parser.add_argument("--teacher-steps", type=int, default=400)
    parser.add_argument("--k", type=int, default=2)
    args = parser.parse_args(argv)

    task = CMUdict()
    train, test = task.load("train"), task.load("test")[:512]
    texts = (text for example in train for text in (example.prompt, *example.references))
    tokenizer = train_tokenizer(texts, kind="word", vocab_size=200)
    small = {"family": "t5", "d_model": 64, "d_ff": 128, "layers": 2, "heads": 4, "dropout": 0.0}
    teacher = build_model({**small, "d_model": 96, "d_ff": 256}, tokenizer, seed=0)
    student = build_model(small, tokenizer, seed=1)

    imitate(teacher, train, args.teacher_steps, teacher=None)
    imitate(student, train, args.teacher_steps // 2, teacher=teacher)
    before = test_return(student, teacher, test)
    brim(student, teacher, train, args.steps, args.k)
    after = test_return(student, teacher, test)
    print(f"return of greedy text on the test split: {before:.2f} before, {after:.2f} after")
    return before, after


if __name__ == "__main__":
    main()
