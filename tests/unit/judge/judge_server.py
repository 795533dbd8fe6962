"""A local server with OpenAI's interface: scripted judges and faults, and what it has seen."""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "sk-very-secret-0123456789"
KEY_NAME = "BRIM_TEST_JUDGE_KEY"

LISTED = re.compile(r"^(?:Summary|Translation|Answer) ([AB]): (.*)$", re.MULTILINE)


def listed(prompt: str) -> list[tuple[str, str]]:
    """(ID, text) of the candidates, in the order of the prompt."""
    return LISTED.findall(prompt)


def preferred(choice: str) -> str:
    return f"Overall Quality: One of them is better.\n\nPreferred: {choice}"


def always_a(prompt: str) -> str:
    return preferred("A")


def first(prompt: str) -> str:
    return preferred(listed(prompt)[0][0])


def longer(prompt: str) -> str:
    return preferred(max(listed(prompt), key=lambda candidate: len(candidate[1]))[0])


@dataclass
class Fault:
    """What is sent in place of a chat completion."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: str = "{}"
    hang: float = 0.0
    reset: bool = False
    cut: bool = False
    trickle: bool = False


@dataclass
class Server:
    """Attributes: judge answers a prompt; fault may spoil the answer to its nth try."""

    judge: Callable[[str], object] = longer
    fault: Callable[[str, int], Fault | None] = lambda prompt, n: None
    url: str = ""
    tries: Counter = field(default_factory=Counter)
    answered: Counter = field(default_factory=Counter)
    times: list[float] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    bodies: list[dict] = field(default_factory=list)
    busy: int = 0
    most_busy: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    stopped: threading.Event = field(default_factory=threading.Event)

    @property
    def num_requests(self) -> int:
        return sum(self.tries.values())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        server: Server = self.server.script  # type: ignore[attr-defined]
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][0]["content"]
        with server.lock:
            server.tries[prompt] += 1
            n = server.tries[prompt]
            server.times.append(time.monotonic())
            server.keys.add(self.headers["Authorization"])
            server.bodies.append(body)
            server.busy += 1
            server.most_busy = max(server.busy, server.most_busy)
        try:
            fault = server.fault(prompt, n)
            if fault is None:
                answer = server.judge(prompt)
                with server.lock:
                    server.answered[prompt] += 1
                self.send(200, {}, completion(answer))
            else:
                self.spoil(server, fault)
        except OSError:
            pass  # the client has gone
        finally:
            with server.lock:
                server.busy -= 1

    def spoil(self, server: Server, fault: Fault) -> None:
        server.stopped.wait(fault.hang)
        if fault.reset:
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
            self.close_connection = True
        elif fault.trickle:
            self.send(200, {"Content-Length": "1000000"}, "")
            while not server.stopped.wait(0.02):
                self.wfile.write(b" ")
        elif fault.cut:
            whole = completion(preferred("A"))
            self.send(200, {}, whole[: len(whole) // 2])
        else:
            self.send(fault.status, fault.headers, fault.body)

    def send(self, status: int, headers: dict[str, str], text: str) -> None:
        self.send_response(status)
        length = str(len(text.encode()))
        usual = {"Content-Type": "application/json", "Content-Length": length}
        for name, value in {**usual, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())


def completion(answer: object) -> str:
    """`answer` is the reply's text, or a whole choice."""
    choice = answer
    if not isinstance(answer, dict):
        choice = {"message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}
    return json.dumps(
        {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": "judge",
            "choices": [{"index": 0, **choice}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        }
    )


@contextmanager
def serving(script: Server) -> Iterator[Server]:
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    httpd.daemon_threads = True
    httpd.script = script  # type: ignore[attr-defined]
    script.url = f"http://127.0.0.1:{httpd.server_port}/v1"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield script
    finally:
        script.stopped.set()
        httpd.shutdown()
        httpd.server_close()
        thread.join()
