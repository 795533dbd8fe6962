"""Servers of tiny models, on a free port of this machine, each with a thread of its own."""

from contextlib import ExitStack
from typing import Any

import pytest
from serving import Gate, Served, serving
from tiny import tiny_language_model


@pytest.fixture(scope="session")
def servers():
    """`servers(family)` is a server of a tiny model, one a family."""
    kept: dict[str, Served] = {}
    with ExitStack() as stack:

        def of(family: str) -> Served:
            if family not in kept:
                model = tiny_language_model(family).eval()
                kept[family] = stack.enter_context(serving(model))
            return kept[family]

        yield of


@pytest.fixture
def serve():
    """`serve(family, **settings)` is a server with settings of its own."""
    with ExitStack() as stack:

        def start(family: str = "llama", **settings: Any) -> Served:
            model = tiny_language_model(family).eval()
            return stack.enter_context(serving(model, **settings))

        yield start


@pytest.fixture
def gate():
    gate = Gate()
    yield gate
    gate.opened.set()
