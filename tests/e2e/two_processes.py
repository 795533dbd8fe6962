"""A script of two processes of one launch, that import torch once: one is a fork of the other."""

import gc
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable

from brim.cli.process import leave_processes

ENVIRONMENT = {
    **os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true",
    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),  # where helpers of tests are
}  # fmt: skip


def run_script(*command: object) -> None:
    """Have Python run a script or a module, and what it starts, to its end."""
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        env=ENVIRONMENT, text=True, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        _, errors = process.communicate(timeout=400)
    finally:
        # A process whose partner failed may wait for it for ever.
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == 0, errors


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def by_two(work: Callable[[], None]) -> None:
    """Do it in this process and in a fork of it, as if a launcher had started both."""
    import brim.runs.train  # noqa: F401 - or each would import it

    gc.freeze()
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2",
    }  # fmt: skip
    other = os.fork()
    os.environ |= dict.fromkeys(("RANK", "LOCAL_RANK"), "0" if other else "1")
    work()
    leave_processes()
    if other:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]))
