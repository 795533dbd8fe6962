"""Tokens per second of a rollout by vLLM, beside the loop: the same prompts, greedy, in turns.

    python benchmarks/vllm_rollout.py --rounds 3

Where vLLM is installed. Its first rollout, which starts the engine, is timed apart; every other one
has the student's weights given to vLLM first, as a training step does.
"""

import argparse
import statistics
import time

import torch
from random_pairs import Pair

from brim.models import Decoding, LanguageModel
from brim.models.vllm import VLLMEngine, _engines
from brim.types import Batch, Rollout

# Heads of 64, as vLLM's kernels want them.
STUDENT = {"d_model": 512, "d_ff": 1536, "layers": 8, "heads": 8, "kv_heads": 4}


def timed(model: LanguageModel, batch: Batch, decoding: Decoding) -> tuple[float, Rollout]:
    start = time.perf_counter()
    rollout = model.generate(batch, decoding)
    return time.perf_counter() - start, rollout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--eager", action="store_true", help="vLLM without compilation")
    arguments = parser.parse_args()
    pair = Pair("qwen2", STUDENT, STUDENT)
    model = pair.build("student").eval()
    print(f"{model.num_parameters / 1e6:.1f} M parameters, {torch.get_num_threads()} threads")
    start = time.perf_counter()
    _engines[model] = VLLMEngine(model, enforce_eager=arguments.eager)
    print(f"vllm starts in {time.perf_counter() - start:.1f} s")
    start = time.perf_counter()
    _engines[model].load(model)
    print(f"the first reload, checked: {time.perf_counter() - start:.2f} s")
    start = time.perf_counter()
    _engines[model].load(model)
    print(f"a reload, checked: {time.perf_counter() - start:.2f} s")
    for rows in arguments.batch:
        batch = model.encode(pair.examples(rows), max_tokens=None)
        seconds: dict[str, list[float]] = {"loop": [], "vllm": []}
        texts: dict[str, Rollout] = {}
        for turn in range(arguments.rounds + 1):
            for engine in seconds:
                greedy = Decoding(max_tokens=pair.max_tokens, strategy="greedy", engine=engine)
                took, texts[engine] = timed(model, batch, greedy)
                seconds[engine] += [took] if turn else []  # the first one warms up
        same = sum(
            ours[:length] == theirs[:length]
            for ours, theirs, length in zip(
                texts["loop"].completion_ids.tolist(),
                texts["vllm"].completion_ids.tolist(),
                texts["loop"].lengths.tolist(),
                strict=True,
            )
        )
        rates = {
            engine: int(texts[engine].lengths.sum()) / statistics.median(times)
            for engine, times in seconds.items()
        }
        print(
            f"{rows} rows: loop {rates['loop']:,.0f} tokens/s, vllm {rates['vllm']:,.0f} tokens/s, "
            f"{rates['vllm'] / rates['loop']:.2f} times; {same} of {rows} texts are the same"
        )


if __name__ == "__main__":
    main()
