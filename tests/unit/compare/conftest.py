"""Fixtures of the comparison tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import written_runs


@pytest.fixture
def references() -> list[list[str]]:
    return written_runs.make_references()


@pytest.fixture
def write_run() -> Callable[..., Path]:
    """write_run(directory, texts, references, **what else there is) -> the directory."""
    return written_runs.write_run
