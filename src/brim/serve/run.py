"""`brim serve`: load a model and answer until a signal stops the process."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from brim import __version__
from brim.models import LanguageModel, load_model
from brim.models.loading import describe_model
from brim.serve.app import Service
from brim.serve.batching import Worker
from brim.serve.checks import Place
from brim.serve.settings import ServeConfig
from brim.training.accelerator import make_accelerator

# A client that trains has more to do between two requests than the five seconds of uvicorn.
KEEP_ALIVE_SECONDS = 120
# How long a server that stops waits for requests under way: one may be half sent for ever.
STOP_SECONDS = 120


def serve(settings: ServeConfig, place: Place, say: Callable[[str], None]) -> None:
    """Serve a model until SIGINT or SIGTERM; what is under way then is finished.

    Args:
        settings: of the server.
        place: what `prepare` made of them.
        say: gets one line when the server is ready.

    Raises:
        ModelError: the model cannot be loaded, or not quantized as asked.
        RunError: a file of a run's checkpoint is damaged.
    """
    with place.listener:
        model = load_model(
            place.source,
            dtype=settings.dtype,
            device=settings.device or make_accelerator().device,
            quantization=settings.quantization,
        )
        limits = settings.limits
        worker = Worker(model, batch_tokens=settings.batch_tokens, max_jobs=limits.queue)
        service = Service(
            model,
            worker,
            settings,
            key=place.key,
            identity=identify(model, settings),
            stopping=lambda: server.should_exit,
        )
        server = make_server(service)
        with worker, _stopping_by(server):
            place.listen(limits.queue)
            say(_ready(settings, place))
            server.run(sockets=[place.listener])


def make_server(service: Service) -> uvicorn.Server:
    """Return the HTTP server of a service, which logs its own bugs and nothing else."""
    return uvicorn.Server(
        uvicorn.Config(
            service.app(),
            log_config=None,
            log_level="error",
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=STOP_SECONDS,
            server_header=False,
            lifespan="off",
            ws="none",
        )
    )


def identify(model: LanguageModel, settings: ServeConfig) -> dict[str, Any]:
    """Return what the server says of its model; `sha256` is the fingerprint of a manifest."""
    return {
        "id": settings.served_name,
        "object": "model",
        "owned_by": "brim",
        "root": settings.model,
        "sha256": describe_model(model)["sha256"],
        "max_model_len": model.num_positions,
        "encoder_decoder": model.is_encoder_decoder,
        "forced_tokens": model.rules.num_forced,
        "version": __version__,
    }


def _ready(settings: ServeConfig, place: Place) -> str:
    source = f"server: {place.url}, model: {settings.served_name}"
    if settings.key_env is not None:
        source += f", key_env: {settings.key_env}"
    return f"serving {settings.served_name} at {place.url} · recipe: teacher: {{{source}}}"


@contextmanager
def _stopping_by(server: uvicorn.Server) -> Iterator[None]:
    """Have the signals that stop a process stop the server, which then returns.

    uvicorn has handlers of its own while it runs, and raises the signal again behind that.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, server.handle_exit) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
