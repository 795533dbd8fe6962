"""Parts of `benchmarks/device.py` that check what is computed."""

from __future__ import annotations

import multiprocessing
import os
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

import torch
from device_part import (
    GIB,
    PAIRS,
    Part,
    SkippedError,
    Stepper,
    build,
    examples,
    largest_difference,
    make_accelerator,
    peak_gib,
    reset_peak,
    seconds_of,
    share_equal,
)
from random_pairs import Pair, tiny
from torch import nn

from brim.errors import first_line
from brim.metrics import Score
from brim.models import Decoding, LanguageModel, hash_tensors
from brim.objectives import OBJECTIVES, make_objective
from brim.objectives.method import MethodConfig
from brim.returns import rewards_to_go
from brim.training.callbacks import Callbacks, CallbackState
from brim.training.evaluation import Evaluation
from brim.training.loop_settings import LoopConfig, OptimConfig
from brim.training.sharding import ShardedTeacher, gather
from brim.training.tracking import Tracker
from brim.training.trainer import Interrupted, Trainer

METHODS: dict[str, dict[str, Any]] = {
    "seqkd": {},
    "kl": {},
    "rkl": {},
    "js": {},
    "tvd": {},
    "llmr": {},
    "brim": {"k": 2},
    "anchored": {},
    "anchored learned": {"remaining_regret": "learned", "per_token": False},
    "anchored sampled": {"immediate": "sampled", "expected_regrets": False},
    "ppo_llmr shared": {"critic": "shared"},
    "ppo_llmr separate": {"critic": "separate"},
    "ppo_llmr anchored": {"critic": "anchored"},
    "ppo_brim": {"k": 2},
}
# Adam divides a gradient by itself, be it a rounding error; eps bounds what comes of that.
OPTIM = OptimConfig(lr=1e-3, eps=1e-5)
# Of a step of the learning rate, by which a weight may differ from the CPU's in float32.
TOLERANCE = 0.1
# By how much a Q-value of about 1 may differ where products are made in other shapes.
OFF_IN_BFLOAT16 = 0.05


def method_of(label: str) -> MethodConfig:
    name = label.split()[0]
    return OBJECTIVES[name][0](**METHODS[label])


def methods(part: Part) -> None:
    """Every method: some steps on the device in both precisions beside the same on the CPU."""
    for family, pair in PAIRS.items():
        for label in ("js", "anchored learned") if part.short and family == "t5" else METHODS:
            part.case(f"{label}, {family}", partial(compare_method, part, tiny(pair), label))


def compare_method(part: Part, pair: Pair, label: str) -> Mapping[str, Any]:
    steps, rows = (1, 4) if part.short else (2, 8)

    def run(device: torch.device, precision: str) -> Stepper:
        stepper = Stepper(
            pair, method_of(label), device, rows, precision, optim=OPTIM,
            loop={"micro_batch_tokens": 64}, teacher=teachers[device], start=start,
        )  # fmt: skip
        texts.append([stepper.step(step)[0] for step in range(steps)])
        return stepper

    # A GPU draws other weights than a CPU.
    cpu, texts = torch.device("cpu"), []
    start = build(pair, "student", cpu).state_dict()
    teachers = {cpu: build(pair, "teacher", cpu)}
    teachers[part.device] = build(pair, "teacher", part.device)
    teachers[part.device].load_state_dict(teachers[cpu].state_dict())
    reference, own = run(cpu, "float32"), run(part.device, "float32")
    half = run(part.device, "bfloat16")
    difference = largest_difference(own.weights(), reference.weights()) / OPTIM.lr
    same = min(share_equal(*pair) for pair in zip(texts[0], texts[1], strict=True))
    return {
        # A number at the border of two tokens may fall on either side; then nothing is the same.
        "ok": difference <= TOLERANCE if same == 1 else None if same > 0.5 else False,
        "same_text": same,
        "weights_off_in_steps": difference,
        "loss_cpu": reference.losses[-1],
        "loss": own.losses[-1],
        "loss_bfloat16": half.losses[-1],
        "same_text_bfloat16": min(share_equal(*p) for p in zip(texts[0], texts[2], strict=True)),
    }


def resume(part: Part) -> None:
    """The trainer twice, and once with a stop and a resume: the same bits."""
    settings = [("brim", "qwen2"), ("anchored learned", "t5")]
    if not part.short:
        settings.append(("ppo_llmr shared", "qwen2"))
    for label, family in settings:
        for deterministic in (label != "brim",) if part.short else (False, True):
            kind = ", deterministic algorithms" if deterministic else ""
            work = partial(compare_resumed, part, tiny(PAIRS[family]), label, deterministic)
            part.case(f"{label}, {family}{kind}", work)


def compare_resumed(part: Part, pair: Pair, label: str, deterministic: bool) -> Mapping[str, Any]:
    first = build(pair, "student", part.device).state_dict()
    teacher = build(pair, "teacher", part.device)

    def run(folder: Path, stop: int | None = None) -> str:
        trainer = make_trainer(part, pair, label, folder, teacher)
        trainer.student.load_state_dict(first)

        def on_step(state: CallbackState) -> None:
            trainer.stop_requested = state.step == stop

        trainer.callbacks = Callbacks(on_step)
        trainer.train()
        moments = trainer.updater.optimizer.state_dict()["state"]
        tensors = {f"{i}.{name}": v for i, own in moments.items() for name, v in own.items()}
        tensors |= dict(trainer.updater.module.named_parameters())
        return hash_tensors(tensors, also=(folder / "metrics.jsonl").read_text())

    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    try:
        with tempfile.TemporaryDirectory() as name:
            whole = [run(Path(name) / str(i)) for i in range(2)]
            try:
                run(Path(name) / "resumed", stop=2)
            except Interrupted:
                resumed = run(Path(name) / "resumed")
    finally:
        torch.use_deterministic_algorithms(False)
    twice, found = whole[0] == whole[1], whole[0] == resumed
    # Where two runs without a stop differ, a resume cannot be asked for more.
    return {"ok": found or not twice, "same_twice": twice, "same_resumed": found}


def make_trainer(
    part: Part, pair: Pair, label: str, folder: Path, teacher: LanguageModel
) -> Trainer:
    folder.mkdir(exist_ok=True)
    rows = examples(pair, 16)
    decoding = Decoding(max_tokens=pair.max_tokens)

    def mean_return(model: LanguageModel) -> Evaluation:  # without an interval, which needs scipy
        batch = model.encode(rows[:2], max_tokens=None)
        written = model.generate(batch, decoding.greedy(4096))
        q = teacher.map(written, teacher.action_values)
        value = float(rewards_to_go(q.q_taken, q.q_max, written.mask)[:, 0].mean())
        score = Score("return", value, None, None, 0.95, "", higher_is_better=True, num_examples=2)
        return Evaluation({"return": score}, [], 0)

    return Trainer(
        student=build(pair, "student", part.device),
        teacher=teacher,
        objective=make_objective(method_of(label), decoding),
        examples=rows,
        evaluate=mean_return,
        metric="return",
        optim=OPTIM,
        settings=LoopConfig(max_steps=4, rollout_batch_size=8, save_every=2, evaluate_every=4),
        directory=folder,
        accelerator=make_accelerator(part.device, "float32"),
        tracker=Tracker(folder),
    )


def compile_layers(part: Part) -> None:
    """`trainer.compile`: the same greedy text, and how much faster."""
    for family, pair in PAIRS.items():
        # A translation takes time by the layer.
        few = replace(pair, student={**pair.student, "layers": 4})
        if family == "qwen2" or not part.short:
            part.case(family, partial(compare_compiled, part, part.sized(few)))


def compare_compiled(part: Part, pair: Pair) -> Mapping[str, Any]:
    rows = 4 if part.short else 32
    student, decoding = build(pair, "student", part.device), Decoding(max_tokens=pair.max_tokens)
    batch = student.encode(pair.examples(rows), max_tokens=None)
    greedy = decoding.greedy(decoding.batch_tokens)
    found: dict[str, Any] = {}
    if part.short:  # the C++ compiler takes a minute; what dynamo makes of a model takes a second
        nn.Module.compile = partialmethod(nn.Module.compile, backend="eager")
    for kind in ("plain", "compiled"):
        if kind == "compiled":
            student.compile_layers()
        with torch.autocast(part.device.type, torch.bfloat16):
            found[kind] = student.generate(batch, greedy)
            repeat = 1 if part.short else 2
            found[f"rollout_{kind}_s"] = seconds_of(
                lambda: student.generate(batch, decoding), repeat
            )
            found[f"score_{kind}_s"] = seconds_of(
                lambda text=found[kind]: student.map(text, student.action_values), repeat
            )
    same = share_equal(found.pop("plain"), found.pop("compiled"))
    gain = found["rollout_plain_s"] / found["rollout_compiled_s"]
    return {"same_text": same, **found, "rollout_gain": gain}


def checkpointing(part: Part) -> None:
    """`trainer.gradient_checkpointing`: the same weights, less memory."""
    for family, pair in PAIRS.items():
        part.case(family, partial(compare_checkpointed, part, part.sized(pair)))


def compare_checkpointed(part: Part, pair: Pair) -> Mapping[str, Any]:
    rows = 4 if part.short else 16
    method, found, weights = method_of("brim"), {}, []
    teacher = build(pair, "teacher", part.device)
    start = build(pair, "student", part.device).state_dict()
    rollout = None
    for kind in ("plain", "checkpointed"):
        loop = {"gradient_checkpointing": kind == "checkpointed"}
        stepper = Stepper(
            pair, method, part.device, rows, optim=OPTIM, loop=loop, teacher=teacher, start=start
        )
        rollout = stepper.collect() if rollout is None else rollout
        reset_peak(part.device)
        stepper.update(rollout)
        found[f"peak_{kind}_gib"] = peak_gib(part.device)
        weights.append(stepper.weights())
    difference = largest_difference(*weights) / OPTIM.lr
    return {"ok": difference <= TOLERANCE, "weights_off_in_steps": difference, **found}


# -- several processes -----------------------------------------------------------------------------


def sharding(part: Part) -> None:
    """Sharded students and teachers over all GPUs beside whole ones; offload on one."""
    count = torch.cuda.device_count() if part.device.type == "cuda" else 2
    for family in PAIRS:
        for way in ("fsdp both",) if part.short else ("fsdp student", "fsdp both"):
            part.case(f"{way}, {family}", partial(compare_sharded, part, family, way, count))
    for family in PAIRS:
        part.case(f"offloaded teacher, {family}", partial(compare_offloaded, part, family))


def compare_sharded(part: Part, family: str, way: str, count: int) -> Mapping[str, Any]:
    if count < 2:
        raise SkippedError("one GPU has nothing to share out")
    whole, shared = (launch(part, family, kind, count) for kind in ("whole", way))
    difference = largest_difference(whole, shared) / OPTIM.lr
    return {"ok": difference <= TOLERANCE, "processes": count, "weights_off_in_steps": difference}


def launch(part: Part, family: str, way: str, count: int) -> dict[str, torch.Tensor]:
    """Return what the first of so many processes found; each is a fork, as torchrun sets it up."""
    # CUDA does not outlive a fork.
    context = multiprocessing.get_context("fork" if part.device.type == "cpu" else "spawn")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    receive, send = context.Pipe(duplex=False)
    processes = [
        context.Process(target=work_of_rank, args=(part, family, way, count, rank, port, send))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    try:
        if not receive.poll(120):
            raise TimeoutError("the processes did not answer within two minutes")
        found = receive.recv()
    finally:
        for process in processes:
            process.join(10)
            if process.is_alive():
                process.kill()
    if isinstance(found, str):
        raise RuntimeError(found)
    return {name: torch.from_numpy(weight) for name, weight in found.items()}


def work_of_rank(
    part: Part, family: str, way: str, count: int, rank: int, port: int, send: Any
) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count), "RANK": str(rank), "LOCAL_RANK": str(rank),
    }  # fmt: skip
    if part.device.type == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    try:
        found = train_share(part, family, way)
        if rank == 0:
            send.send(found)
    except Exception as error:
        send.send(f"process {rank}: {type(error).__name__}: {first_line(error)}")
        raise
    os._exit(0)  # a thread of gloo could abort the interpreter's exit


def train_share(part: Part, family: str, way: str) -> dict[str, Any]:
    device = make_accelerator(part.device, "float32").device
    pair, cpu = tiny(PAIRS[family]), torch.device("cpu")
    teacher = build(pair, "teacher", cpu)
    teacher = ShardedTeacher(teacher, device) if way == "fsdp both" else teacher.to(device)
    start = build(pair, "student", cpu).state_dict()
    loop = {"micro_batch_tokens": 64, "sharding": "none" if way == "whole" else "fsdp"}
    stepper = Stepper(
        pair, method_of("brim"), device, 8, optim=OPTIM, loop=loop, teacher=teacher, start=start
    )
    for step in range(2):
        stepper.step(step)
    weights = gather(dict(stepper.updater.student.model.named_parameters()))
    # A tensor would go by shared memory, which ends with this process.
    return {name: weight.numpy() for name, weight in weights.items()}


def compare_offloaded(part: Part, family: str) -> Mapping[str, Any]:
    """A teacher whose weights are in the host's memory says what it said before."""
    pair = part.sized(PAIRS[family])
    make_accelerator(part.device, "float32")
    teacher = build(pair, "teacher", part.device, bfloat16=True)
    rows = 4 if part.short else 16
    decoding = Decoding(max_tokens=pair.max_tokens)
    written = teacher.generate(teacher.encode(pair.examples(rows), max_tokens=None), decoding)
    before = teacher.map(written, teacher.action_values)
    teacher.to("cpu")
    offloaded = ShardedTeacher(teacher, part.device, offload=True)
    reset_peak(part.device)
    values = offloaded.map(written, offloaded.action_values)
    weights = sum(weight.nbytes for weight in offloaded.parameters()) / GIB
    off = float((values.q_taken.cpu() - before.q_taken.cpu()).abs().max())
    return {
        "ok": off <= OFF_IN_BFLOAT16,
        "values_off": off,
        "weights_gib": weights,
        "peak_gib": peak_gib(part.device),
        "seconds_a_pass": seconds_of(lambda: offloaded.map(written, offloaded.action_values), 1),
    }
