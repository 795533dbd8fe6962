"""How far the Q-values of a quantised SmolLM2-135M move, and what reading then costs, on a CPU.

    python benchmarks/drift.py

Needs the model (docs/models.md, SmolLM2) and the extras bitsandbytes and torchao. The targets of 64
word problems are read by each quantised teacher and by the float32 one; times are medians of
readings in turn.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import transformers

from brim.models import LanguageModel, Quantization, load_model, q_drift
from brim.models.smollm2 import SMOLLM2_NAME
from brim.tasks import WordProblems
from brim.types import Rollout

SCHEMES = (
    *(Quantization(backend=backend, bits=8) for backend in ("torchao", "bitsandbytes")),
    Quantization(backend="bitsandbytes", bits=4),
)  # fmt: skip


def seconds(model: LanguageModel, rollout: Rollout) -> float:
    start = time.perf_counter()
    model.action_values(rollout)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5, help="readings that are timed")
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()

    with tempfile.TemporaryDirectory() as folder:
        load_model(SMOLLM2_NAME).save(folder)
        reference = load_model(folder)
        teachers = {scheme: load_model(Path(folder), quantization=scheme) for scheme in SCHEMES}
    examples = WordProblems(max_train_examples=args.examples).load("train")
    rollouts = []
    for start in range(0, len(examples), 8):
        rows = examples[start : start + 8]
        batch = reference.encode(rows, max_tokens=200)
        rollouts.append(reference.encode_targets(batch, max_tokens=96))

    print("| | mean change of Q | of the regret | same best token | KL | time |")
    print("| --- | --- | --- | --- | --- | --- |")
    for scheme, teacher in teachers.items():
        drift = q_drift(teacher, reference, rollouts)
        times = [(seconds(teacher, rollouts[0]), seconds(reference, rollouts[0]))
                 for _ in range(args.rounds)]  # fmt: skip
        slower = statistics.median(ours / theirs for ours, theirs in times)
        print(
            f"| `{scheme.backend}`, {scheme.bits} bits | {drift['mean_taken']:.2f} "
            f"| {drift['mean_regret']:.2f} | {drift['same_best']:.1%} | {drift['kl']:.3f} "
            f"| {slower:.1f} |",
            flush=True,
        )
    print(f"{drift['num_tokens']:.0f} tokens; mean regret {drift['reference_regret']:.2f}")


if __name__ == "__main__":
    main()
