"""Parts of `benchmarks/device.py` that measure: the hardware, memory, seconds."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import step
import torch
from device_memory import shape_of
from device_part import (
    GIB,
    PAIRS,
    Part,
    SkippedError,
    Stepper,
    build,
    examples,
    make_accelerator,
    peak_gib,
    reset_peak,
    seconds_of,
    share_equal,
)
from random_pairs import Pair
from torch.nn import functional as F

from brim.models import Decoding, LanguageModel
from brim.objectives.settings import BRIMConfig
from brim.plan.flops import step_operations
from brim.plan.memory import Learner
from brim.plan.models import Size, stacks_of
from brim.types import Rollout

PACKAGES = (
    "torch", "transformers", "accelerate", "tokenizers", "numpy", "pydantic", "triton", "trl",
    "datasets", "vllm", "bitsandbytes", "peft", "flash-attn",
)  # fmt: skip


# -- the machine -----------------------------------------------------------------------------------


def facts(part: Part) -> None:
    """Versions, devices, and the rates that the hardware reaches."""
    part.case("software", software)
    part.case("devices", partial(devices, part.device))
    for kind in ("float32", "tf32", "bfloat16"):
        part.case(kind, partial(multiply, part, kind))
    part.case("bandwidth", partial(copy_memory, part))


def software() -> Mapping[str, Any]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {"python": platform.python_version(), "cuda": torch.version.cuda, **versions}


def devices(device: torch.device) -> Mapping[str, Any]:
    host = {"cores": os.cpu_count(), "threads": torch.get_num_threads()}
    if device.type == "cpu":
        return {"count": 1, "name": platform.machine(), **host}
    query = ["nvidia-smi", "--query-gpu=driver_version,power.limit,clocks.max.sm"]
    driver = "no nvidia-smi"
    if shutil.which(query[0]):
        driver = subprocess.run(
            [*query, "--format=csv,noheader"], capture_output=True, text=True, check=False
        ).stdout
    found = torch.cuda.get_device_properties(0)
    return {
        "count": torch.cuda.device_count(),
        "name": found.name,
        "memory_gib": found.total_memory / GIB,
        "capability": ".".join(map(str, torch.cuda.get_device_capability(0))),
        "multiprocessors": found.multi_processor_count,
        "bfloat16": torch.cuda.is_bf16_supported(),
        "cudnn": torch.backends.cudnn.version(),
        "driver, power, clock": driver.strip().replace("\n", "; "),
        **host,
    }


def multiply(part: Part, kind: str) -> Mapping[str, Any]:
    """The best rate of a square product, operations a second."""
    if kind == "tf32" and part.device.type == "cpu":
        raise SkippedError("a CPU has no TF32")
    size = 256 if part.short else 8192
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    left, right = (torch.randn(size, size, device=part.device, dtype=dtype) for _ in range(2))
    torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
    try:
        seconds = seconds_of(lambda: [left @ right for _ in range(4)], 5) / 4
    finally:
        torch.set_float32_matmul_precision("highest")
    return {"per_second": 2 * size**3 / seconds}


def copy_memory(part: Part) -> Mapping[str, Any]:
    """Bytes that are read and written in a second."""
    source = torch.empty(2**22 if part.short else 2**32, dtype=torch.uint8, device=part.device)
    target = torch.empty_like(source)
    return {"per_second": 2 * source.nbytes / seconds_of(lambda: target.copy_(source), 5)}


# -- seconds ---------------------------------------------------------------------------------------


def speed(part: Part) -> None:
    """A step at real sizes beside the hardware's limits and beside a plain loop's."""
    for family, published in PAIRS.items():
        pair, rows = part.sized(published), 4 if part.short else 64
        part.case(f"ours, {family}", partial(time_ours, part, pair, rows))
        part.case(f"plain loop, {family}", partial(time_plain, part, pair, rows))
        part.case(f"output head, {family}", partial(time_heads, part, pair))


def rates(pair: Pair, rows: int, seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds and tokens a second of each phase; of a step those of the text that is written."""
    written, read = rows * pair.max_tokens, rows * (pair.max_tokens + pair.prompt_tokens)
    tokens = {"rollout": written, "teacher": read, "update": read, "step": written}
    found = {f"{name}_s": seconds[name] for name in tokens}
    return found | {f"{name}_tokens_s": n / seconds[name] for name, n in tokens.items()}


def time_ours(part: Part, pair: Pair, rows: int) -> Mapping[str, Any]:
    teacher = build(pair, "teacher", part.device, bfloat16=True)
    teacher.batch_tokens = 32768
    stepper = Stepper(
        pair, BRIMConfig(k=4), part.device, rows, "bfloat16", teacher=teacher,
        loop={"micro_batch_tokens": 16384},
    )  # fmt: skip
    stepper.step(0)
    reset_peak(part.device)
    steps = [stepper.step(number)[1] for number in (1, 2)]
    seconds = {name: min(each[name] for each in steps) for name in steps[0]}
    limits = {f"{name}_limit_s": value for name, value in limits_of(part, pair, rows).items()}
    shares = {
        f"{name}_of_limit": limits[f"{name}_limit_s"] / seconds[name]
        for name in ("rollout", "teacher", "update")
        if limits
    }
    peak = peak_gib(part.device)
    return {**rates(pair, rows, seconds), **limits, **shares, "peak_gib": peak}


def limits_of(part: Part, pair: Pair, rows: int) -> dict[str, float]:
    """Seconds below which no phase can be: operations over their rate, or bytes over theirs.

    A rollout reads the decoder's weights and the cache once a token, in bfloat16.
    """
    rate, bandwidth = part.peak("bfloat16"), part.peak("bandwidth")
    if rate is None or bandwidth is None:
        return {}
    size = Size(rows, pair.prompt_tokens, pair.max_tokens)
    student = shape_of(pair, "student")
    learner = Learner(student, BRIMConfig(k=4).passes(), None, size)
    counts = asdict(step_operations(learner, shape_of(pair, "teacher", bfloat16=True), size))
    seconds = {name: count / rate for name, count in counts.items() if count}
    decoder = stacks_of(student.model)["decoder"]
    embedding = student.model.get_input_embeddings().weight.numel()
    weights = sum(p.numel() for p in decoder.parameters()) - embedding + student.head.numel()
    last = student.cache_bytes(size, itemsize=2)
    mean = pair.prompt_tokens + pair.max_tokens / 2
    cache = last * mean / (pair.prompt_tokens + pair.max_tokens)
    seconds["rollout"] = max(
        seconds["rollout"], pair.max_tokens * (2 * weights + cache) / bandwidth
    )
    return seconds


def time_plain(part: Part, pair: Pair, rows: int) -> Mapping[str, Any]:
    """What one writes with transformers in an hour: `generate`, whole logits of both models."""
    teacher = build(pair, "teacher", part.device, bfloat16=True).model
    student = build(pair, "student", part.device)
    batch = student.encode(pair.examples(rows), max_tokens=None)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5, fused=True)
    found = []
    for number in range(3):
        if number == 1:
            reset_peak(part.device)
        try:
            found.append(plain_step(pair, student.model, teacher, batch.prompt_ids, optimizer))
        except torch.OutOfMemoryError:
            return {"out_of_memory": True}
    seconds = {name: min(each[name] for each in found[1:]) for name in found[0]}
    return {**rates(pair, rows, seconds), "peak_gib": peak_gib(part.device)}


def plain_step(
    pair: Pair, student: Any, teacher: Any, prompts: torch.Tensor, optimizer: Any
) -> dict[str, float]:
    device, width = prompts.device, prompts.shape[1]
    autocast = torch.autocast(device.type, torch.bfloat16)
    marks = []

    def mark() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        marks.append(time.perf_counter())

    def logits(model: Any, written: torch.Tensor) -> torch.Tensor:
        if pair.is_encoder_decoder:
            return model(input_ids=prompts, decoder_input_ids=written[:, :-1]).logits
        return model(written).logits[:, width - 1 : -1]

    mark()
    with torch.no_grad(), autocast:
        written = student.eval().generate(
            prompts, attention_mask=torch.ones_like(prompts), do_sample=True, top_k=0, top_p=1.0,
            max_new_tokens=pair.max_tokens, min_new_tokens=pair.max_tokens,
        )  # fmt: skip
        mark()
        actions = written[:, 1 if pair.is_encoder_decoder else width :, None]
        scores = logits(teacher, written)
        rewards = scores.gather(2, actions).squeeze(2) - F.pad(scores.amax(2)[:, 1:], (0, 1))
        returns = rewards.flip(1).cumsum(1).flip(1).clamp(-100, 100)
        del scores
    mark()
    with autocast:
        logprobs = logits(student.train(), written).float().log_softmax(2)
        loss = -(returns * logprobs.gather(2, actions).squeeze(2)).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    mark()
    names = ("rollout", "teacher", "update")
    seconds = {name: marks[i + 1] - marks[i] for i, name in enumerate(names)}
    return {**seconds, "step": marks[-1] - marks[0]}


def time_heads(part: Part, pair: Pair) -> Mapping[str, Any]:
    """Seconds of the output head by the tokens of a chunk, forward and backward, of 4,096 tokens.

    The package's own is what fits 32 MiB, chosen on CPUs.
    """
    student = build(pair, "student", part.device)
    head = student.model.get_output_embeddings().weight
    tokens = 64 if part.short else 4096
    ids = torch.randint(3, pair.vocab_size, (tokens,), device=part.device)
    hidden = torch.randn(tokens, head.shape[1], device=part.device, requires_grad=True)
    mask = torch.ones(1, tokens, dtype=torch.bool, device=part.device)
    batch = student.encode(pair.examples(1), max_tokens=None)
    few = slice(pair.max_tokens)
    features = student.features(Rollout(batch, ids[None, few], mask[:, few], mask[:, 0]))
    features = replace(features, hidden=hidden, token_ids=ids, mask=mask)
    own = features.head.chunk_tokens()

    def learn(chunk: int) -> None:
        with torch.autocast(part.device.type, torch.bfloat16):
            statistics = features.token_statistics(chunk_tokens=chunk)
        statistics.logprobs.sum().backward()
        head.grad = hidden.grad = None

    found: dict[str, Any] = {"own_chunk": own}
    for times in (1, 4, 16, 64):
        reset_peak(part.device)
        found[f"times_{times}_s"] = seconds_of(partial(learn, own * times), 2)
        found[f"times_{times}_peak_gib"] = peak_gib(part.device)
    return found


# -- what may be installed -------------------------------------------------------------------------


def trl(part: Part) -> None:
    """One step of TRL's distillation trainer, on the same shapes."""
    for family in ("qwen2",):  # it distills decoder-only models
        part.case(f"TRL, {family}", partial(time_trl, part, part.sized(PAIRS[family])))


def time_trl(part: Part, pair: Pair) -> Mapping[str, Any]:
    if importlib.util.find_spec("trl") is None:
        raise SkippedError("trl is not installed")
    found: list[Mapping[str, float]] = []

    def build_role(role: str) -> LanguageModel:
        return build(pair, role, part.device, bfloat16=role == "teacher")

    placed = SimpleNamespace(build=build_role, examples=pair.examples, max_tokens=pair.max_tokens)
    step.choose_pair, step.wait, step.emit = lambda _: placed, lambda: True, found.append
    arguments = argparse.Namespace(
        rows=4 if part.short else 64,
        precision="bfloat16",
        cuda=part.device.type == "cuda",
        max_steps=3,
    )
    reset_peak(part.device)
    for _ in step.trl_steps(arguments):
        pass
    seconds = {name: min(each[name] for each in found[1:]) for name in step.PHASES}
    return {**rates(pair, arguments.rows, seconds), "peak_gib": peak_gib(part.device)}


def vllm(part: Part) -> None:
    """Rollouts by vLLM: the loop's greedy text, and its speed."""
    part.case("rollouts, qwen2", partial(compare_vllm, part, part.sized(PAIRS["qwen2"])))


def compare_vllm(part: Part, pair: Pair) -> Mapping[str, Any]:
    if importlib.util.find_spec("vllm") is None:
        raise SkippedError("vllm is not installed")
    make_accelerator(part.device, "float32")
    student: LanguageModel = build(pair, "student", part.device)
    batch = student.encode(examples(pair, 4 if part.short else 64), max_tokens=None)
    loop = Decoding(max_tokens=pair.max_tokens, strategy="greedy")
    engine = loop.model_copy(update={"engine": "vllm"})
    same = share_equal(student.generate(batch, loop), student.generate(batch, engine))
    return {
        "same_text": same,
        "loop_s": seconds_of(lambda: student.generate(batch, loop), 1),
        "vllm_s": seconds_of(lambda: student.generate(batch, engine), 1),
    }
