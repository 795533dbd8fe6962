"""One training step of ours beside TRL's and beside a plain loop, in turn within one run.

    python benchmarks/step.py                              # decoder-only, float32, 32 and 128 rows
    python benchmarks/step.py --pair t5
    python benchmarks/step.py --precision bfloat16
    python benchmarks/step.py --variants                   # compiled, peaked, ragged; ours alone

Each contestant is a process of its own, which sleeps while another makes a step: a machine that is
slow for a while is slow for all. The first two steps of each are left out. All write the same
number of tokens to prompts of the same length (a token that ends a text is one of 8,000).

- brim: the trainer's updater with BRIM (K = 4), in the environment that the command line sets.
- trl: `DistillationTrainer`, on-policy, torch's defaults. Needs the extra `bench`.
- plain: what one writes with transformers in an hour: `generate`, whole logits of both models,
  REINFORCE on rewards to go; torch's defaults.

The limit is the operations of the matrix products of a step (`benchmarks/random_pairs.py`) over the
rate of such products in the same run.
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
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs" / "performance.md"
WARMUP = 2
PHASES = ("rollout", "teacher", "update", "step")


# -- contestants: each waits for a line, makes a step, prints its seconds --------------------------


def brim_steps(args: argparse.Namespace) -> Iterator[dict[str, float]]:
    from accelerate import Accelerator
    from random_pairs import collect, make_updater, ragged_lengths, ragged_prompts

    from brim.models import Decoding
    from brim.objectives import make_objective
    from brim.objectives.settings import BRIMConfig
    from brim.support.timing import phases, timed

    pair = choose_pair(args)
    student, teacher = pair.build("student"), pair.build("teacher")
    if "compiled" in args.worker:
        student.compile_layers()
        teacher.compile_layers()
    if "peaked" in args.worker:
        for model in (student, teacher):
            model.model.get_output_embeddings().weight.data *= 20
    prompts, seeds, lr = None, None, 1e-5
    if "ragged" in args.worker:
        prompts, seeds = ragged_prompts(student, pair, args.rows)
        lr = 0.0  # an update like any other, and the same lengths the next time
    if "equal" in args.worker:  # as many tokens as ragged ones, without padding
        mean = round(statistics.mean(ragged_lengths(pair, args.rows)))
        pair = replace(pair, max_tokens=mean)
    precision = "bf16" if args.precision == "bfloat16" else "no"
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    objective = make_objective(BRIMConfig(k=4), Decoding(max_tokens=pair.max_tokens))
    updater = make_updater(objective, student, teacher, accelerator, batch=args.rows)
    step = 0
    while wait():
        examples = prompts or pair.examples(args.rows, seed=step)
        with phases() as seconds, timed("step"):
            updater.begin_step(step, lr)
            rollout = collect(updater, examples, step, seeds)
            with timed("update"):
                updater.update(rollout, step, finite=True)
        step += 1
        tokens, width = rollout.num_tokens, pair.prompt_tokens
        yield {
            **{name: seconds[name] for name in PHASES},
            "tokens": tokens,
            "read": tokens + args.rows * width,
        }


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

    from brim.support.timing import phases, timed

    pair = choose_pair(args)
    student, teacher = pair.build("student"), pair.build("teacher")

    class Trainer(DistillationTrainer):  # type: ignore[misc]
        """With a clock; the teacher's head is a part of the loss, and of the update here."""

        def _generate_and_score_completions(self, *inputs: Any, **named: Any) -> Any:
            with timed("rollout"):
                return super()._generate_and_score_completions(*inputs, **named)

        def _get_last_hidden_state(self, model: Any, *inputs: Any, **named: Any) -> Any:
            with timed("teacher") if model is teacher.model else ExitStack():
                return super()._get_last_hidden_state(model, *inputs, **named)

    class Turns(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, own: Any, state: Any, control: Any, **named: Any) -> None:
            if not wait():
                os._exit(0)
            self.clock = ExitStack()
            self.seconds = self.clock.enter_context(phases())
            self.clock.enter_context(timed("step"))

        def on_step_end(self, own: Any, state: Any, control: Any, **named: Any) -> None:
            self.clock.close()
            update = 2 * self.seconds["step"] - sum(self.seconds.values())
            emit({**self.seconds, "update": update, "tokens": args.rows * pair.max_tokens})

    with tempfile.TemporaryDirectory() as directory:
        config = DistillationConfig(
            directory, use_cpu=not args.cuda, bf16=args.precision == "bfloat16", report_to="none",
            per_device_train_batch_size=args.rows, gradient_accumulation_steps=1,
            max_completion_length=pair.max_tokens, top_p=1.0, top_k=0, learning_rate=1e-5,
            gradient_checkpointing=False, max_steps=args.max_steps, save_strategy="no",
            logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        prompts = [example.prompt for example in pair.examples(4096)]
        tokenizer = student.tokenizer
        tokenizer.padding_side = "left"
        Trainer(
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
    """Say that all is ready; then whether a step is wanted."""
    print("READY", flush=True)
    return sys.stdin.readline() == "step\n"


def emit(values: Mapping[str, float]) -> None:
    print(f"RESULT {json.dumps(values)}", flush=True)


def work(args: argparse.Namespace) -> None:
    name, *variant = args.worker.split()
    if "float32" in variant:
        args.precision = "float32"
    if name == "brim":
        from brim.cli.process import flush_denormals, prepare_process

        prepare_process()
        flush_denormals(True)
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
        self.floor_mib = self.peak_mib = 0.0  # of memory, with the models alone and in the end

    def ready(self) -> None:
        """Wait until the models are built, or the last step is done."""
        self._read("READY")

    def step(self, *, keep: bool) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        result = json.loads(self._read("RESULT"))
        self.ready()
        if keep:
            self.results.append(result)

    def _read(self, word: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(word):
                return line.removeprefix(word)
        raise SystemExit(f"{self.name} stopped; run with --verbose to see why")

    def peak(self) -> float:
        """Largest resident memory, MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1024

    def median(self, name: str) -> float:
        return statistics.median(result[name] for result in self.results)

    def ratio(self, other: Worker, name: str, per: str | None = None) -> float:
        """Median over the rounds of ours by the other's, each by its own `per` where given."""
        pairs = zip(self.results, other.results, strict=True)
        return statistics.median(
            (a[name] / b[name]) * (b[per] / a[per] if per else 1) for a, b in pairs
        )

    def spread(self, name: str) -> float:
        """Half of what lies between the quartiles, as a part of the median."""
        values = [result[name] for result in self.results]
        if len(values) < 4:
            return 0.0
        first, _, third = statistics.quantiles(values, n=4)
        return (third - first) / 2 / statistics.median(values)


def run(names: Sequence[str], args: argparse.Namespace, rows: int) -> dict[str, Worker]:
    workers = {name: Worker(name, args, rows) for name in names}
    for worker in workers.values():
        worker.ready()
        worker.floor_mib = worker.peak()
    for number in range(WARMUP + args.rounds):
        for worker in workers.values():
            worker.step(keep=number >= WARMUP)
    for worker in workers.values():
        worker.peak_mib = worker.peak()
        worker.process.kill()
    return workers


def report(workers: Mapping[str, Worker], args: argparse.Namespace, rows: int) -> str:
    """A Markdown table: a row a contestant."""
    from random_pairs import step_operations

    pair = choose_pair(args)
    rate = workers["matmul"].median("rate")
    limit = step_operations(pair, rows).step / (1e9 * rate)
    lines = [
        f"{args.pair}, {args.precision}, {rows} rows; matrix products "
        f"{rate:.0f}·10⁹ a second, limit {limit:.3f} s",
        "",
        "| | rollout | teacher | update | step, s | tokens/s | peak MiB (models) | of the limit "
        "| by brim's |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    ours = workers.get("brim")
    for name, worker in workers.items():
        if name == "matmul":
            continue
        step = worker.median("step")
        whole = not {"ragged", "equal"} & set(name.split())
        cells = [f"{worker.median(phase):.3f} ±{worker.spread(phase):.0%}" for phase in PHASES]
        cells += [
            f"{worker.median('tokens') / step:,.0f}",
            f"{worker.peak_mib:,.0f} ({worker.floor_mib:,.0f})",
            f"{limit / step:.0%}" if whole and "float32" not in name else "",
            f"{worker.ratio(ours, 'step'):.2f}" if ours and whole and name != "brim" else "",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    if "brim ragged" in workers:
        ragged, equal = workers["brim ragged"], workers["brim equal"]
        costs = ", ".join(f"{p} {ragged.ratio(equal, p, 'read'):.2f}" for p in PHASES)
        lines += [
            "",
            f"Ragged: {ragged.median('tokens'):,.0f} tokens in {rows} texts of different lengths; "
            f"the cost of a token, read or written, beside texts of equal length: {costs}.",
        ]
    return "\n".join(lines)


def choose_pair(args: argparse.Namespace) -> Any:
    from random_pairs import PAIRS, tiny

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
    parser.add_argument("--verbose", action="store_true", help="show what the workers say")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    parser.set_defaults(cuda=False, max_steps=10_000)  # of TRL
    args = parser.parse_args()
    if args.worker:
        work(args)
        return
    names = ["matmul", "brim"]
    if args.variants:
        names += ["brim compiled", "brim peaked", "brim ragged", "brim equal"]
    else:
        names += ["plain"] if args.pair == "t5" else ["plain", "trl"]
        # On some machines TRL is slower in bfloat16: its best is what counts.
        names += ["trl float32"] if "trl" in names and args.precision != "float32" else []
    if args.contestants:
        names = ["matmul", *args.contestants]
    for rows in args.batch:
        print(report(run(names, args, rows), args, rows), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
