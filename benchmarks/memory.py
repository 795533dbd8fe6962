"""Peak memory of the teacher's pass and of the update, by vocabulary and length.

    python benchmarks/memory.py [--docs]

Each cell is a process of its own. It builds the models of `benchmarks/random_pairs.py`, makes one
update of a single token (so that the optimizer's moments are there), and then reads or learns from
a batch of 4 rows. What is printed is the largest resident memory of that, less what was resident
before: activations, gradients and logits, MiB. The student's gradients are a part of it; of the
tied head alone they are in the last column.

Plain is the same with the logits of all tokens at once, as `benchmarks/step.py` has it.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from step import fill_docs

VOCABULARIES = (8_000, 32_000, 152_000)
LENGTHS = (64, 512)
ROWS = 4
CASES = ("teacher", "update", "plain teacher", "plain update")


def resident(what: str) -> float:
    """`VmRSS` or `VmHWM` of this process, MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(what))


def measure(case: str, vocab_size: int, length: int) -> float:
    import torch
    from accelerate import Accelerator
    from random_pairs import PAIRS, make_updater

    from brim.models import Decoding
    from brim.objectives import make_objective
    from brim.objectives.settings import BRIMConfig
    from brim.types import Rollout

    pair = replace(PAIRS["qwen2"], vocab_size=vocab_size, max_tokens=length)
    student, teacher = pair.build("student"), pair.build("teacher")
    objective = make_objective(BRIMConfig(k=4), Decoding(max_tokens=length))
    updater = make_updater(objective, student, teacher, Accelerator(cpu=True), batch=ROWS)
    batch = student.encode(pair.examples(ROWS), max_tokens=None)

    def rollout(tokens: int) -> Rollout:
        ids = torch.randint(3, vocab_size, (ROWS, tokens))
        mask = torch.ones_like(ids, dtype=torch.bool)
        written = Rollout(batch, ids, mask, torch.ones(ROWS, dtype=torch.bool))
        values = written.map(teacher.action_values, teacher.batch_tokens)
        return replace(written, values=values, advantages=torch.randn(ROWS, tokens))

    def act(case: str, given: Any) -> None:
        whole = torch.cat([batch.prompt_ids, given.completion_ids], dim=1)
        width = pair.prompt_tokens
        match case:
            case "teacher":
                given.map(teacher.action_values, teacher.batch_tokens)
            case "update":
                updater.update(given, 0, finite=True)
            case "plain teacher":
                with torch.no_grad():
                    scores = teacher.model(whole).logits[:, width - 1 : -1]
                    scores.gather(2, given.completion_ids[..., None])
                    scores.amax(2)
            case "plain update":
                logprobs = student.model(whole).logits[:, width - 1 : -1].log_softmax(2)
                taken = logprobs.gather(2, given.completion_ids[..., None]).squeeze(2)
                (-(given.advantages * taken).mean()).backward()
                updater.optimizer.step()

    act("update", rollout(1))
    given = rollout(length) if "update" in case else rollout(1)
    if "teacher" in case:
        ids = torch.randint(3, vocab_size, (ROWS, length))
        mask = torch.ones_like(ids, dtype=torch.bool)
        given = Rollout(batch, ids, mask, torch.ones(ROWS, dtype=torch.bool))
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = resident("VmRSS")
    act(case, given)
    return resident("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--docs", action="store_true", help="fill the table of the docs")
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        case, vocab_size, length = args.case
        print(f"RESULT {measure(case, int(vocab_size), int(length))}")
        return
    header = f"| vocabulary | tokens | {' | '.join(CASES)} | gradient of the head |"
    lines = [header, "| ---: " * 7 + "|"]
    print("\n".join(lines), flush=True)
    for vocab_size, length in itertools.product(VOCABULARIES, LENGTHS):
        cells = []
        for case in CASES:
            command = [sys.executable, __file__, "--case", case, str(vocab_size), str(length)]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            cells.append(f"{float(output.rsplit('RESULT ', 1)[1]):,.0f}")
        head = vocab_size * 256 * 4 / 2**20
        lines.append(f"| {vocab_size:,} | {length} | {' | '.join(cells)} | {head:,.0f} |")
        print(lines[-1], flush=True)
    if args.docs:
        fill_docs("memory", "\n".join(lines))


if __name__ == "__main__":
    main()
