"""One training step of ours beside TRL's and beside a plain loop, in turn within one run.

    python benchmarks/step.py                              # decoder-only, float32, 32 and 128 rows
    python benchmarks/step.py --pair t5
    python benchmarks/step.py --precision bfloat16
    python benchmarks/step.py --variants                   # compiled, peaked, ragged; ours alone

Each contestant is a process of its own, which sleeps while another makes a step: a machine that is
slow for a while is slow for all. The first two steps of each are left out. All write the same
number of tokens to prompts of the same length (a token that ends a text is one of 8,000).

- brim: the trainer's learner with BRIM (K = 4), in the environment that the command line sets.
- trl: `DistillationTrainer`, on-policy, torch's defaults. Needs the extra `bench`.
- plain: what one writes with transformers in an hour: `generate`, whole logits of both models,
  REINFORCE on rewards to go; torch's defaults.

The limit is the operations of a step's matrix products (`benchmarks/pairs.py`) over the rate of
such products in the same run. With --docs the tables are put into docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs" / "performance.md"
WARMUP = 2
PHASES = ("rollout", "teacher", "update", "step")


# -- contestants: each waits for a line, makes a step, prints its seconds --------------------------


def brim_steps(args: argparse.Namespace) -> Iterator[dict[str, float]]:
    from accelerate import Accelerator
    from pairs import collect, make_learner

    from brim.models import Decoding
    from brim.objectives.policy_gradient import PolicyGradient
    from brim.timing import phases, timed

    pair = choose_pair(args)
    student, teacher = pair.build("student"), pair.build("teacher")
    if "compiled" in args.worker:
        student.compile()
        teacher.compile()
    if "peaked" in args.worker:
        for model in (student, teacher):
            model.model.get_output_embeddings().weight.data *= 20
    if "ragged" in args.worker:  # one token in 32 ends the text
        student.end_ids = tuple(range(3, 3 + pair.vocab_size // 32))
    precision = "bf16" if args.precision == "bfloat16" else "no"
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    objective = PolicyGradient(Decoding(max_tokens=pair.max_tokens), k=4)
    learner = make_learner(objective, student, teacher, accelerator, batch=args.rows)
    step = 0
    while wait():
        examples = pair.examples(args.rows, seed=step)
        with phases() as seconds, timed("step"):
            learner.begin_step(step, 1e-5)
            rollout = collect(learner, examples, step)
            with timed("update"):
                learner.learn(rollout, step, finite=True)
        step += 1
        tokens = {"tokens": rollout.num_tokens, "read": rollout.num_tokens + args.rows * 32}
        yield {**{name: seconds[name] for name in PHASES}, **tokens}


def plain_steps(args: argparse.Namespace) -> Iterator[dict[str, float]]:
    import torch
    from torch.nn import functional as F

    pair = choose_pair(args)
    student = pair.build("student").model
    teacher = pair.build("teacher").model.requires_grad_(False)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bfloat16")
    width = pair.prompt_tokens

    def logits(model: Any, prompts: Any, written: Any) -> Any:
        if pair.is_encoder_decoder:
            return model(input_ids=prompts, decoder_input_ids=written[:, :-1]).logits
        return model(written).logits[:, width - 1 : -1]

    while wait():
        prompts = torch.randint(3, pair.vocab_size, (args.rows, width))
        start = time.perf_counter()
        with torch.no_grad(), autocast:
            written = student.eval().generate(
                prompts, attention_mask=torch.ones_like(prompts), do_sample=True, top_k=0,
                top_p=1.0, max_new_tokens=pair.max_tokens, min_new_tokens=pair.max_tokens,
            )  # fmt: skip
            rolled_out = time.perf_counter()
            actions = written[:, 1 if pair.is_encoder_decoder else width :, None]
            scores = logits(teacher, prompts, written)
            rewards = scores.gather(2, actions).squeeze(2) - F.pad(scores.amax(2)[:, 1:], (0, 1))
            returns = rewards.flip(1).cumsum(1).flip(1).clamp(-100, 100)
            del scores
        judged = time.perf_counter()
        student.train()
        with autocast:
            logprobs = logits(student, prompts, written).float().log_softmax(2)
            loss = -(returns * logprobs.gather(2, actions).squeeze(2)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        del logprobs, loss
        times = (rolled_out - start, judged - rolled_out, time.perf_counter() - judged)
        yield {
            **dict(zip(PHASES, times, strict=False)),
            "step": sum(times),
            "tokens": actions.numel(),
        }


def trl_steps(args: argparse.Namespace) -> Iterator[dict[str, float]]:
    """TRL's trainer has the loop: its callback waits, and `emit` is called from there."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl.trainer.distillation_config import DistillationConfig
    from trl.trainer.distillation_trainer import DistillationTrainer

    pair = choose_pair(args)
    student, teacher = pair.build("student"), pair.build("teacher")

    class Turns(TrainerCallback):  # type: ignore[misc]
        start = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if not wait():
                os._exit(0)
            self.start = time.perf_counter()

        def on_step_end(self, own: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seconds = time.perf_counter() - self.start
            emit({"step": seconds, "tokens": args.rows * pair.max_tokens})

    with tempfile.TemporaryDirectory() as directory:
        config = DistillationConfig(
            directory, use_cpu=True, bf16=args.precision == "bfloat16", report_to="none",
            per_device_train_batch_size=args.rows, gradient_accumulation_steps=1,
            max_completion_length=pair.max_tokens, top_p=1.0, top_k=0, learning_rate=1e-5,
            gradient_checkpointing=False, max_steps=10_000, save_strategy="no",
            logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        prompts = [example.prompt for example in pair.examples(4096)]
        tokenizer = student.tokenizer
        tokenizer.padding_side = "left"
        DistillationTrainer(
            model=student.model, teacher_model=teacher.model, args=config,
            train_dataset=Dataset.from_dict({"prompt": prompts}), processing_class=tokenizer,
            callbacks=[Turns()],
        ).train()  # fmt: skip
    yield from ()


def matmul_steps(args: argparse.Namespace) -> Iterator[dict[str, float]]:
    """The rate of the largest products of a step, 10^9 operations a second; the best shape's."""
    import torch

    pair = choose_pair(args)
    dtype = getattr(torch, args.precision)
    tokens = args.rows * (pair.prompt_tokens + pair.max_tokens)
    width, inner = pair.teacher["d_model"], pair.teacher["d_ff"]
    shapes = ((width, inner), (inner, width), (width, width), (width, pair.vocab_size))
    operands = [
        (torch.randn(tokens, k, dtype=dtype), torch.randn(n, k, dtype=dtype)) for k, n in shapes
    ]
    while wait():
        rates = []
        for left, right in operands:
            start = time.perf_counter()
            torch.nn.functional.linear(left, right)
            rates.append(2e-9 * tokens * right.numel() / (time.perf_counter() - start))
        yield {"rate": max(rates)}


CONTESTANTS: dict[str, Callable[[argparse.Namespace], Iterator[dict[str, float]]]] = {
    "brim": brim_steps,
    "plain": plain_steps,
    "trl": trl_steps,
    "matmul": matmul_steps,
}


def wait() -> bool:
    """Whether another step is wanted."""
    return sys.stdin.readline() == "step\n"


def emit(values: Mapping[str, float]) -> None:
    print(f"RESULT {json.dumps(values)}", flush=True)


def work(args: argparse.Namespace) -> None:
    name = args.worker.split()[0]
    if name == "brim":
        from brim.process import flush_denormals, prepare_process

        prepare_process()
        flush_denormals()
    for values in CONTESTANTS[name](args):
        emit({**values, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024})


# -- the run ---------------------------------------------------------------------------------------


class Worker:
    """A contestant's process."""

    def __init__(self, name: str, args: argparse.Namespace, rows: int) -> None:
        command = [sys.executable, __file__, "--worker", name, "--rows", str(rows)]
        command += ["--pair", args.pair, "--precision", args.precision]
        command += ["--tiny"] if args.tiny else []
        self.name = name
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            if not args.verbose else None, text=True,
        )  # fmt: skip
        self.results: list[dict[str, float]] = []

    def step(self, *, keep: bool) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("RESULT "):
                if keep:
                    self.results.append(json.loads(line.removeprefix("RESULT ")))
                return
        raise SystemExit(f"{self.name} stopped; run with --verbose to see why")

    def peak(self) -> float:
        """Largest resident memory, MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1024

    def median(self, name: str) -> float:
        return statistics.median(result[name] for result in self.results)

    def spread(self, name: str) -> float:
        """Half of what lies between the quartiles, as a part of the median."""
        values = [result[name] for result in self.results]
        if len(values) < 4:
            return 0.0
        first, _, third = statistics.quantiles(values, n=4)
        return (third - first) / 2 / statistics.median(values)


def run(names: Sequence[str], args: argparse.Namespace, rows: int) -> dict[str, Worker]:
    workers = {name: Worker(name, args, rows) for name in names}
    for _ in range(WARMUP):
        for worker in workers.values():
            worker.step(keep=False)
    for _ in range(args.rounds):
        for worker in workers.values():
            worker.step(keep=True)
    for worker in workers.values():
        worker.peak_mib = worker.peak()  # type: ignore[attr-defined]
        worker.process.kill()
    return workers


def report(workers: Mapping[str, Any], args: argparse.Namespace, rows: int) -> str:
    """A Markdown table: a row a contestant."""
    from pairs import step_operations

    pair = choose_pair(args)
    operations = step_operations(pair, rows)
    limit = operations.step / (1e9 * workers["matmul"].median("rate"))
    lines = [
        f"{args.pair}, {args.precision}, {rows} rows; matrix products "
        f"{workers['matmul'].median('rate'):.0f}·10⁹ a second, limit {limit:.3f} s",
        "",
        "| | rollout | teacher | update | step, s | ± | tokens/s | peak MiB | of the limit "
        "| by brim's |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    ours = workers["brim"].median("step") if "brim" in workers else None
    for name, worker in workers.items():
        if name == "matmul":
            continue
        known = worker.results[0]
        cells = [f"{worker.median(p):.3f}" if p in known else "" for p in PHASES]
        step = worker.median("step")
        whole = "ragged" not in name
        cells += [
            f"{worker.spread('step'):.0%}",
            f"{worker.median('tokens') / step:,.0f}",
            f"{worker.peak_mib:,.0f}",
            f"{limit / step:.0%}" if whole else "",
            f"{step / ours:.2f}" if ours and whole and name != "brim" else "",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    if "brim ragged" in workers:
        lines += ["", ragged_line(workers["brim"], workers["brim ragged"])]
    return "\n".join(lines)


def ragged_line(whole: Worker, ragged: Worker) -> str:
    """What a token costs that is really read or written, beside the same without padding."""
    costs = ", ".join(
        f"{phase} {_cost(ragged, phase) / _cost(whole, phase):.2f}" for phase in PHASES
    )
    share = ragged.median("tokens") / whole.median("tokens")
    return f"Ragged: {share:.0%} of the tokens; cost of a token beside equal lengths: {costs}."


def _cost(worker: Worker, phase: str) -> float:
    return statistics.median(result[phase] / result["read"] for result in worker.results)


def choose_pair(args: argparse.Namespace) -> Any:
    from pairs import PAIRS, tiny

    return tiny(PAIRS[args.pair]) if args.tiny else PAIRS[args.pair]


def fill_docs(label: str, text: str) -> None:
    page = DOCS.read_text(encoding="utf-8")
    pattern = rf"(<!-- results: {label} -->\n).*?(<!-- end -->)"
    page, count = re.subn(pattern, lambda m: f"{m[1]}{text}\n{m[2]}", page, flags=re.DOTALL)
    if not count:
        raise SystemExit(f"{DOCS} has no <!-- results: {label} -->")
    DOCS.write_text(page, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", choices=("qwen2", "t5"), default="qwen2")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--variants", action="store_true", help="ours alone, in its variants")
    parser.add_argument("--contestants", nargs="+", help="these and no others")
    parser.add_argument("--tiny", action="store_true", help="tiny models: does it run?")
    parser.add_argument("--docs", action="store_true", help="fill the tables of the docs")
    parser.add_argument("--verbose", action="store_true", help="show what the workers say")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args)
        return
    names = ["matmul", "brim"]
    if args.variants:
        names += ["brim compiled", "brim peaked", "brim ragged"]
    else:
        names += ["plain"] if args.pair == "t5" else ["plain", "trl"]
    if args.contestants:
        names = ["matmul", *args.contestants]
    tables = []
    for rows in args.batch:
        tables.append(report(run(names, args, rows), args, rows))
        print(tables[-1], end="\n\n", flush=True)
    if args.docs:
        kind = "variants" if args.variants else args.precision
        fill_docs(f"step {args.pair} {kind}", "\n\n".join(tables))


if __name__ == "__main__":
    main()
