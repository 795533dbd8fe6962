"""What can be refused before torch is imported, which takes seconds."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path

from brim.errors import ConfigError, ModelError
from brim.runs.directory import RunDirectory
from brim.serve.settings import ServeConfig
from brim.support.http import read_key


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model comes from, and where it will answer.

    Attributes:
        source: the model's folder or hub name.
        listener: bound, and not listening yet.
        key: that requests must carry; None where they need none.
    """

    source: Path | str
    listener: socket.socket
    key: str | None

    @property
    def url(self) -> str:
        """The address that clients connect to."""
        host, port = self.listener.getsockname()[:2]
        if ip_address(host).is_unspecified:  # all addresses of this machine
            host = socket.gethostname()
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def listen(self, backlog: int) -> None:
        """Let clients connect; raises as `bind`, for another program may have been faster."""
        try:
            self.listener.listen(backlog)
        except OSError as error:
            host, port = self.listener.getsockname()[:2]
            raise _refusal(host, port, error) from None


def prepare(settings: ServeConfig) -> Place:
    """Find the model and the key, and take the port.

    Raises:
        ConfigError: a package is missing, the key is, or the address cannot be had.
        ModelError: there is no such folder.
        RunError: the run has no best checkpoint, or a damaged one.
    """
    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"brim serve needs the package {missing[0]}; pip install 'brim-distill[serve]'"
        )
    key = read_key(settings.key_env, "key_env") or None
    source = find_source(settings.model)
    return Place(source, bind(settings.host, settings.port), key)


def find_source(model: str) -> Path | str:
    """Return the folder of a run's best checkpoint, or the model as it is named.

    Raises:
        ModelError: a path that does not exist.
        RunError: the run has no best checkpoint, or a damaged one.
    """
    path = Path(model).expanduser()
    if (path / "config.yaml").exists():
        RunDirectory(path).check_best()
        return path / "best"
    if path.is_dir():
        return path
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise ModelError(f"{model}: no such directory; give a run, a model's folder or a hub name")
    return model


def bind(host: str, port: int) -> socket.socket:
    """Return a TCP socket of the address, which does not listen yet; port 0 is any free one.

    Raises:
        ConfigError: the address is not one of this machine's, or is in use.
    """
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        if os.name == "posix":  # a server that was just stopped leaves its port waiting
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise _refusal(host, port, error) from None
    return listener


def _refusal(host: str, port: int, error: OSError) -> ConfigError:
    reason = (error.strerror or str(error)).lower()
    return ConfigError(f"{host}:{port}: cannot listen there: {reason}; choose another host or port")
