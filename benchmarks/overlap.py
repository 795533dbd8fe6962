"""A step with a teacher behind a server: read behind the writing, and while it lasts.

    python benchmarks/overlap.py --docs
    python benchmarks/overlap.py --bytes                   # of a token, of vLLM's recorded answers

The server is another process, which answers each request after a pause and computes nothing: what
is measured is the waiting. Four requests at a time, 512 tokens each. Both steps are the trainer's
(LLMR, 64 texts of 8 to 64 tokens), in turn within one run; the teacher of the sequential one is
asked when all is written. With --docs table and figure are put into docs/performance.md.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ANSWERS = Path(__file__).parents[1] / "tests" / "data" / "vllm_answers.json.gz"
DELAYS = (0, 50, 200, 1000)  # milliseconds
ROWS, ROUNDS, WARMUP = 64, 7, 1


class Sequential:
    """A teacher behind a server that is asked when all is written, as one in process is."""

    def __init__(self, teacher: Any) -> None:
        self._teacher = teacher

    def __getattr__(self, name: str) -> Any:
        return getattr(self._teacher, name)


def serve(delay: float) -> None:
    """Answer as `brim serve` does, zeros after a pause; prints the port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize, disable_nagle_algorithm = 2**16, True

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self.answer({"data": [{"id": "slow", "owned_by": "brim"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            time.sleep(delay)
            lengths = [len(ids) for ids in body["completions"]]
            rows = [{name: [0.0] * n for name in body["values"]} for n in lengths]
            self.answer({"rows": rows})

        def answer(self, found: Any) -> None:
            content = json.dumps(found).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()


@contextmanager
def slow_server(delay: float) -> Iterator[str]:
    command = [sys.executable, __file__, "--serve", str(delay)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


def measure(
    delays: Sequence[int], rounds: int, *, small: bool
) -> Iterator[tuple[int, dict[str, list[dict[str, float]]]]]:
    """By pause, seconds by phase of both kinds of steps, round by round."""
    from accelerate import Accelerator
    from random_pairs import PAIRS, collect, make_updater, ragged_prompts, tiny

    from brim.models import Decoding, ServerTeacher
    from brim.models.http import HTTPClient
    from brim.models.server_kinds import find_api
    from brim.models.server_settings import RequestsConfig
    from brim.objectives import make_objective
    from brim.objectives.settings import LLMRConfig
    from brim.support.timing import phases, timed

    pair = tiny(PAIRS["qwen2"]) if small else PAIRS["qwen2"]
    student = pair.build("student")
    generation = student.model.generation_config
    prompts, seeds = ragged_prompts(student, pair, ROWS)
    objective = make_objective(LLMRConfig(), Decoding(max_tokens=pair.max_tokens))
    own = pair.build("student")  # takes the teacher's place until there is a server
    updater = make_updater(objective, student, own, Accelerator(cpu=True), batch=ROWS)
    requests = RequestsConfig(concurrency=4, tokens=512)

    def step(teacher: Any) -> dict[str, float]:
        updater.teacher = teacher
        with phases() as seconds, timed("step"):
            updater.begin_step(0, 0.0)  # the same texts each time
            rollout = collect(updater, prompts, 0, seeds)
            with timed("update"):
                updater.update(rollout, 0, finite=True)
        return dict(seconds)

    for delay in delays:
        found: dict[str, list[dict[str, float]]] = {"sequential": [], "overlapped": []}
        with slow_server(delay / 1000) as url:
            api = find_api(HTTPClient(url, None, requests), "slow", "auto")
            teacher = ServerTeacher(api, student.tokenizer, generation, requests)
            for number in range(WARMUP + rounds):
                for name, asked in (("sequential", Sequential(teacher)), ("overlapped", teacher)):
                    seconds = step(asked)
                    if number >= WARMUP:
                        found[name].append(seconds)
        yield delay, found


def row(found: Mapping[str, list[dict[str, float]]]) -> dict[str, float]:
    """Medians: phases of the sequential step, both steps, and what could be reached."""

    def median(kind: str, phase: str) -> float:
        return statistics.median(seconds[phase] for seconds in found[kind])

    write, score = median("sequential", "rollout"), median("sequential", "teacher")
    update = median("sequential", "update")
    steps = {kind: median(kind, "step") for kind in found}
    return {"write": write, "score": score, "update": update, **steps,
            "reachable": max(write, score) + update}  # fmt: skip


def table(rows: Mapping[int, Mapping[str, float]]) -> str:
    names = ["write", "score", "update", "sequential", "overlapped", "reachable"]
    head = ["pause, ms", "write", "score", "update", "sequential step", "overlapped step",
            "max(write, score) + update"]  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "| ---: " * len(head) + "|"]
    for delay, values in rows.items():
        lines.append(f"| {delay:,} | {' | '.join(f'{values[name]:.2f}' for name in names)} |")
    return "\n".join(lines)


def picture(rows: Mapping[int, Mapping[str, float]]) -> bytes:
    from brim.support.figures import render

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        places = range(len(rows))
        shades = {"sequential": "#b0b0b0", "overlapped": "#1f77b4"}
        for shift, (kind, color) in zip((-0.2, 0.2), shades.items(), strict=True):
            heights = [values[kind] for values in rows.values()]
            axes.bar([p + shift for p in places], heights, 0.4, label=kind, color=color)
        reachable = [values["reachable"] for values in rows.values()]
        axes.plot(places, reachable, "k_", markersize=20, label="max(write, score) + update")
        axes.set_xticks(list(places), [f"{delay:,}" for delay in rows])
        axes.set_xlabel("pause of the server before each answer, ms")
        axes.set_ylabel("seconds a step")
        figure.legend(loc="outside upper center", ncols=3)

    return render((6.0, 3.0), paint).png


def count_bytes() -> str:
    """What a prompt's token takes on the way to vLLM and back."""
    pairs = json.loads(gzip.decompress(ANSWERS.read_bytes()))
    asked = [pair for pair in pairs if (pair["request"] or {}).get("prompt_logprobs") == 1]
    pair = next(pair for pair in asked if isinstance(pair["request"]["prompt"][0], list))
    tokens = sum(map(len, pair["request"]["prompt"]))
    sent, came = (len(json.dumps(pair[key])) / tokens for key in ("request", "response"))
    return f"bytes a token: {sent:.0f} sent, {came:.0f} received, of {tokens} tokens"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--tiny", action="store_true", help="tiny models: does it run?")
    parser.add_argument("--docs", action="store_true", help="fill table and figure of the docs")
    parser.add_argument("--bytes", action="store_true", help="count bytes in recorded answers")
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve is not None:
        serve(args.serve)
        return
    if args.bytes:
        print(count_bytes())
        return
    delays = DELAYS[:2] if args.tiny else DELAYS
    measured = measure(delays, args.rounds, small=args.tiny)
    rows = {delay: row(found) for delay, found in measured}
    print(table(rows))
    if args.docs:
        from step import DOCS, fill_docs

        fill_docs("overlap", f"{table(rows)}\n\n![Seconds of both steps](overlap.png)")
        DOCS.with_name("overlap.png").write_bytes(picture(rows))


if __name__ == "__main__":
    main()
