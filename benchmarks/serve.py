"""Tokens a second that `brim serve` values, beside the same model in this process.

    python benchmarks/serve.py [--docs]

The teacher of a pair of `benchmarks/random_pairs.py` values the tokens of a rollout: here by
`LanguageModel.action_values`, and behind a server in a process of its own, as one request and as
smaller ones by as many clients at once. Turns alternate; a ratio is the median over turns of the
server's rate by that of the same turn here. Bytes are those of the bodies, a valued token.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import torch
from random_pairs import PAIRS, tiny
from step import fill_docs

from brim.models import Decoding
from brim.types import Rollout

CLIENTS = (1, 8, 32)
HEADER = [
    "| | rows a request | tokens/s | of in process | bytes sent | bytes received |",
    "| --- | ---: | ---: | ---: | ---: | ---: |",
]


@contextmanager
def server(folder: Path) -> Iterator[int]:
    """The port of a server of the model in a folder."""
    command = [sys.executable, "-m", "brim", "serve", str(folder), "--name", "teacher"]
    process = subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        yield int(process.stdout.readline().split()[3].rpartition(":")[2])
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def listed(ids: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
    return [row[kept].tolist() for row, kept in zip(ids, mask, strict=True)]


def post(connection: HTTPConnection, request: bytes) -> bytes:
    connection.request("POST", "/v1/score", request, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise SystemExit(body.decode())
    return body


def requests_of(rollout: Rollout, clients: int) -> list[bytes]:
    """The rollout's rows, dealt out to the clients; the two numbers that a method needs."""
    prompts = listed(rollout.batch.prompt_ids, rollout.batch.prompt_mask)
    completions = listed(rollout.completion_ids, rollout.mask)
    values = {"model": "teacher", "values": ["taken", "logsumexp"]}
    return [
        json.dumps(
            {**values, "prompts": prompts[i::clients], "completions": completions[i::clients]}
        ).encode()
        for i in range(clients)
    ]


def measure(family: str, args: argparse.Namespace) -> list[str]:
    """Lines of a table."""
    pair = tiny(PAIRS[family]) if args.tiny else PAIRS[family]
    model = pair.build("teacher").eval()
    batch = model.encode(pair.examples(args.rows), max_tokens=None)
    rollout = model.generate(batch, Decoding(max_tokens=pair.max_tokens))
    tokens = rollout.num_tokens
    rates: dict[int, list[float]] = {clients: [] for clients in (0, *args.clients)}
    sizes: dict[int, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        with server(Path(folder)) as port, ThreadPoolExecutor(max(args.clients)) as pool:
            connections = [HTTPConnection("127.0.0.1", port) for _ in range(max(args.clients))]
            for _ in range(args.turns + 1):  # the first one is not counted
                started = time.perf_counter()
                model.map(rollout, model.action_values)
                rates[0].append(tokens / (time.perf_counter() - started))
                for clients in args.clients:
                    requests = requests_of(rollout, clients)
                    started = time.perf_counter()
                    answers = list(pool.map(post, connections, requests))
                    rates[clients].append(tokens / (time.perf_counter() - started))
                    sent, received = (sum(map(len, bodies)) for bodies in (requests, answers))
                    sizes[clients] = sent / tokens, received / tokens
            for connection in connections:
                connection.close()
    here = rates.pop(0)[1:]
    lines = [f"| {family} in process | {args.rows} | {statistics.median(here):,.0f} | | | |"]
    for clients, found in rates.items():
        ratio = statistics.median(a / b for a, b in zip(found[1:], here, strict=True))
        sent, received = sizes[clients]
        name = "1 client" if clients == 1 else f"{clients} clients"
        lines.append(
            f"| {family}, {name} | {args.rows // clients} | {statistics.median(found[1:]):,.0f} | "
            f"{ratio:.2f} | {sent:.0f} | {received:.0f} |"
        )
    return lines


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", default=["qwen2", "t5"])
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="tiny models: does it run?")
    parser.add_argument("--docs", action="store_true", help="fill the table of the docs")
    args: Any = parser.parse_args(argv)
    lines = [*HEADER]
    for family in args.families:
        lines += measure(family, args)
    text = "\n".join(lines)
    print(text)
    if args.docs:
        fill_docs("serve", text)


if __name__ == "__main__":
    main()
