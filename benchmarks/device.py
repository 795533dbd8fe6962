"""What a machine with GPUs shows of this package, in under eight minutes; the first thing to run.

    PYTHONPATH=src python benchmarks/device.py --out DIR
    PYTHONPATH=src python benchmarks/device.py --out DIR --device cpu --short    # does it run?

It needs torch, transformers and accelerate with what these need themselves, and no network: models
have random weights. What lacks a package is skipped, and says so.

Parts, in this order; each is a process of its own, and has a share of the `--minutes`:

- facts: versions, devices, the rates of products and of memory.
- methods: each for some steps, tiny, in float32 and bfloat16, beside the same steps on the CPU.
- resume: the trainer with a stop and without: the same bits?
- checkpointing: the same weights? How much less memory?
- sharding: over all GPUs beside whole copies; an offloaded teacher.
- memory: peaks of a step beside `brim plan`.
- speed: rollout, teacher and update at published sizes beside the hardware's limits and beside a
  plain loop; the output head by the size of its chunks.
- compile: `trainer.compile`: the same greedy text? How much faster?
- trl, vllm: where they are installed.

After every case there is DIR/PART.json, after every part DIR/device.json with all numbers and
DIR/device.md with the same as tables. A part that fails or runs out of time is an error in them,
and the others go on. The command exits with 1 where one is
left, or a check failed.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

# Before torch is imported.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for results that repeat
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # which leaves CUDA to the forks
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from device_checks import checkpointing, compile_layers, methods, resume, sharding
from device_memory import memory
from device_part import Part, say
from device_speed import facts, speed, trl, vllm
from transformers.utils import logging as transformers_logging

from brim.support.files import atomic_write_json, atomic_write_text

# Each with its share of the time; what one leaves goes to those behind it.
PARTS: dict[str, tuple[Callable[[Part], None], int]] = {
    "facts": (facts, 1),
    "methods": (methods, 5),
    "resume": (resume, 2),
    "checkpointing": (checkpointing, 1),
    "sharding": (sharding, 2),
    "memory": (memory, 4),
    "speed": (speed, 6),
    "compile": (compile_layers, 4),
    "trl": (trl, 2),
    "vllm": (vllm, 2),
}
# Seconds beyond its share after which a part is stopped: a case that has begun may end.
GRACE = 30.0


def start_method(device: str) -> str:
    """How parts are started: as forks, which need not import anything, unless CUDA forbids it.

    It does so where something has used CUDA in this process already.
    """
    probe = multiprocessing.get_context("fork").Process(target=use_device, args=(device,))
    probe.start()
    probe.join(60)
    if probe.is_alive():
        probe.kill()
    return "spawn" if probe.exitcode else "fork"


def use_device(device: str) -> None:
    torch.zeros(1, device=device)


def work(part: Part) -> None:
    os.setsid()  # what it starts ends with it
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("brim").setLevel(logging.ERROR)
    PARTS[part.name][0](part)


def run_part(name: str, args: argparse.Namespace, seconds: float, found: Mapping[str, Any]) -> None:
    """Run a part in a process of its own."""
    file = args.out / f"{name}.json"
    file.unlink(missing_ok=True)
    part = Part(
        name=name,
        file=file,
        device=torch.device(args.device),
        short=args.short,
        deadline=time.monotonic() + seconds,
        facts={"peaks": peaks_of(found)},
    )
    process = multiprocessing.get_context(args.start).Process(target=work, args=(part,))
    process.start()
    process.join(seconds + GRACE)
    if process.is_alive():
        with suppress(ProcessLookupError):  # it has no group before it has imported everything
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()
        raise TimeoutError(f"stopped after {seconds + GRACE:.0f} seconds")
    if process.exitcode:
        raise RuntimeError(f"its process ended with {process.exitcode}")


def peaks_of(found: Mapping[str, Any]) -> dict[str, float]:
    rows = found.get("facts", {}).get("rows", [])
    return {row["case"]: row["per_second"] for row in rows if "per_second" in row}


def run(args: argparse.Namespace) -> dict[str, Any]:
    begin, found = time.monotonic(), {}
    for name in args.parts:
        later = [PARTS[other][1] for other in args.parts[args.parts.index(name) :]]
        left = 60 * args.minutes - (time.monotonic() - begin)
        seconds = max(left, 0.0) * later[0] / sum(later)
        say(f"{name}: has {seconds:.0f} seconds")
        start, failure = time.monotonic(), {}
        try:
            run_part(name, args, seconds, found)
        except (RuntimeError, TimeoutError) as error:
            failure = {"error": str(error)}
            say(f"{name}: {error}")
        file = args.out / f"{name}.json"
        rows = json.loads(file.read_text())["rows"] if file.exists() else []
        found[name] = {"seconds": time.monotonic() - start, **failure, "rows": rows}
        atomic_write_json(args.out / "device.json", found)
        atomic_write_text(args.out / "device.md", as_tables(found))
    say(f"done in {time.monotonic() - begin:.0f} seconds: {args.out / 'device.md'}")
    return found


def as_tables(found: Mapping[str, Any]) -> str:
    """A Markdown table a part, with a line a case."""
    lines = ["# Device", ""]
    for name, part in found.items():
        lines += [f"## {name}", "", f"{part['seconds']:.0f} seconds. {part.get('error', '')}", ""]
        # A check has rows of one kind; of facts each row has names of its own.
        if name == "facts":
            rows = [
                {"case": row["case"], "what": key, "value": value}
                for row in part["rows"]
                for key, value in row.items()
                if key not in ("case", "seconds")
            ]
        else:
            rows = part["rows"]
        names = list(dict.fromkeys(key for row in rows for key in row))
        if names:
            lines += [f"| {' | '.join(names)} |", "| --- " * len(names) + "|"]
            lines += [f"| {' | '.join(cell(row.get(key)) for key in names)} |" for row in rows]
            lines.append("")
    return "\n".join(lines)


def cell(value: object) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "**no**"
        case float():
            return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value).replace("|", "\\|")


def failures(found: Mapping[str, Any]) -> list[str]:
    """Parts and cases with an error, and checks that say no."""
    failed = [f"{name}: {part['error']}" for name, part in found.items() if "error" in part]
    for name, part in found.items():
        for row in part["rows"]:
            if "error" in row:
                failed.append(f"{name}, {row['case']}: {row['error']}")
            if row.get("ok") is False:
                failed.append(f"{name}, {row['case']}: not what it should be")
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--short", action="store_true", help="tiny models and few steps")
    parser.add_argument("--minutes", type=float, default=7.0, help="of all parts together")
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=list(PARTS))
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU; --device cpu --short shows whether this runs")
    args.out.mkdir(parents=True, exist_ok=True)
    args.start = start_method(args.device)
    failed = failures(run(args))
    for line in failed:
        say(f"FAILED {line}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
