"""Who answers: what a back end is, and the one that asks a model in this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from brim.judge.store import Reply


class TransientError(Exception):
    """No answer this time; the same question may be answered later.

    Attributes:
        wait: seconds for which the server asks to be left alone, if it does.
    """

    def __init__(self, reason: str, *, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class RejectedError(Exception):
    """This prompt cannot be answered by this judge; others can."""


class Backend(Protocol):
    """A judge that can be asked."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """The model and all settings that a reply depends on, as JSON values; no secrets."""

    @property
    def batch(self) -> int:
        """Prompts that are asked together."""

    @property
    def timed(self) -> bool:
        """Whether the time limit of a request holds for it."""

    async def ask(self, prompts: Sequence[str]) -> list[Reply]:
        """A reply to each of at most `batch` prompts.

        Raises:
            TransientError: try again.
            RejectedError: there is no sense in trying these prompts again.
            BrimError: there is no sense in trying any prompt; the text says what to mend.
        """
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


@dataclass(frozen=True)
class LocalBackend:
    """A model in this process.

    Attributes:
        identity: as in `Backend`.
        write: a reply to each prompt; raises as `Backend.ask` does. It is called in a thread.
        batch: prompts that are written to together.
    """

    identity: Mapping[str, Any]
    write: Callable[[Sequence[str]], Sequence[Reply]]
    batch: int = 8
    timed: bool = False

    async def ask(self, prompts: Sequence[str]) -> list[Reply]:
        """A reply to each prompt."""
        started = time.monotonic()
        replies = await asyncio.to_thread(self.write, prompts)
        seconds = (time.monotonic() - started) / len(prompts)
        return [replace(reply, seconds=seconds) for reply in replies]

    async def close(self) -> None:
        """Nothing to let go of."""
