"""Asking many questions: several at a time, not too many a minute, again where it may help."""

from __future__ import annotations

import asyncio
import json
import random
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from brim.errors import BrimError, RunError
from brim.judge.settings import Limits
from brim.judge.store import Reply, Store

# So many questions without an answer in a row, each tried again and again: the server is gone.
MAX_FAILURES_IN_A_ROW = 10
# A server that asks for a longer pause than this is left to another start.
MAX_WAIT_SECONDS = 600.0


class TransientError(Exception):
    """No answer this time; the same question may be answered later.

    Attributes:
        wait: seconds of pause that the server asks for, if it does.
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
    def batched(self) -> bool:
        """Whether it answers `concurrency` prompts together, and takes its time.

        Otherwise a request has one prompt and a time limit, and there are `concurrency` at a time.
        """

    async def ask(self, prompts: Sequence[str]) -> list[Reply]:
        """Return a reply to each prompt.

        Raises:
            TransientError: try again.
            RejectedError: there is no sense in trying these prompts again.
            BrimError: there is no sense in trying any prompt; the text says what to mend.
        """
        ...

    async def close(self) -> None:
        """Close connections."""
        ...


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, its key in the store, and what reads the verdict of a reply.

    `prompt` writes the prompt: all of them at once would fill the memory.
    """

    key: str
    prompt: Callable[[], str]
    read: Callable[[Reply], str]


@dataclass
class Outcome:
    """What came of asking.

    Attributes:
        failed: why a question has no answer, by its key; the next start asks it again.
        num_requests: sent by this process, tries included.
    """

    failed: dict[str, str] = field(default_factory=dict)
    num_requests: int = 0


def ask_all(
    questions: Mapping[str, Question],
    backend: Backend,
    store: Store,
    limits: Limits,
    *,
    advance: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """Ask what is not in the store yet; every reply is in the store as soon as it arrives.

    Ctrl-C waits for the answers of the requests under way, for they are paid for; a second one
    does not. `advance` is called for each question that was asked, failed ones too.

    Raises:
        BrimError: no further question has any chance; the replies so far are in the store.
        KeyboardInterrupt: after Ctrl-C.
    """
    known = store.get(questions)
    left = deque(question for key, question in questions.items() if key not in known)
    run = _Run(left, backend, store, limits, advance, say)
    _run_to_end(run.ask_all())
    return run.outcome


class _StoppedError(Exception):
    """No more requests are wanted."""


@dataclass
class _Run:
    waiting: deque[Question]
    backend: Backend
    store: Store
    limits: Limits
    advance: Callable[[], None]
    say: Callable[[str], None]
    outcome: Outcome = field(default_factory=Outcome)
    failures_in_a_row: int = 0
    error: BrimError | None = None
    jitter: random.Random = field(default_factory=random.Random)
    # On the loop's clock: when the next request is due, and when the server may be asked again.
    next_turn: float = 0.0
    held_until: float = 0.0

    async def ask_all(self) -> None:
        self.stop = asyncio.Event()
        num_workers, size = self.limits.concurrency, 1
        if self.backend.batched:
            num_workers, size = size, num_workers
        workers = [asyncio.create_task(self._work(size)) for _ in range(num_workers)]
        try:
            await asyncio.wait(workers)
        except asyncio.CancelledError:
            self.say("stopping: waiting for the answers under way; Ctrl-C again does not wait")
            self.stop.set()
            await asyncio.wait(workers)
            raise
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            with suppress(Exception):
                await self.backend.close()
        for worker in workers:
            worker.result()  # a bug of ours, if it raises
        if self.error is not None:
            raise self.error

    async def _work(self, size: int) -> None:
        try:
            while self.waiting and not self.stop.is_set():
                number = min(size, len(self.waiting))
                await self._answer([self.waiting.popleft() for _ in range(number)])
        except _StoppedError:
            pass
        except BrimError as error:
            self.error = self.error or error
            self.stop.set()
        except BaseException:
            self.stop.set()
            raise

    async def _answer(self, group: list[Question]) -> None:
        try:
            replies = await self._ask(group)
        except RejectedError as error:
            if len(group) > 1:  # one of them, perhaps
                for question in group:
                    await self._answer([question])
            else:
                self._fail(group, error)
            return
        except TransientError as error:
            self._fail(group, error)
            self.failures_in_a_row += 1
            if self.failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
                raise RunError(
                    f"{self.failures_in_a_row} questions in a row have no answer ({error}); what "
                    f"was answered is in {self.store.path}: start again when the server is well"
                ) from None
            return
        self.failures_in_a_row = 0
        judge = json.dumps(dict(self.backend.identity), sort_keys=True)
        for question, reply in zip(group, replies, strict=True):
            verdict = question.read(reply)
            self.store.put(
                question.key, reply, judge=judge, prompt=question.prompt(), verdict=verdict
            )
            self.advance()

    def _fail(self, group: list[Question], error: Exception) -> None:
        for question in group:
            self.outcome.failed[question.key] = str(error)
            self.advance()

    async def _ask(self, group: list[Question]) -> list[Reply]:
        """The replies, after as many tries as it takes and is allowed."""
        prompts = [question.prompt() for question in group]
        timeout = None if self.backend.batched else self.limits.timeout
        for attempt in range(self.limits.max_retries + 1):
            await self._turn()
            self.outcome.num_requests += 1
            try:
                return await asyncio.wait_for(self.backend.ask(prompts), timeout)
            except TimeoutError:
                failure = TransientError(f"no answer within {timeout:g} s")
            except TransientError as error:
                failure = error
            if failure.wait is not None:
                self._hold(failure.wait, failure)
            if attempt == self.limits.max_retries:
                raise failure
            pause = min(self.limits.backoff * 2**attempt, self.limits.max_backoff)
            await self._sleep(max(pause * self.jitter.uniform(0.5, 1.5), failure.wait or 0.0))
        raise AssertionError("the last attempt returns or raises")

    def _hold(self, seconds: float, failure: TransientError) -> None:
        """Ask the server nothing for as long as it wants, by any worker."""
        if seconds > MAX_WAIT_SECONDS:
            raise RunError(
                f"the server asks to be left alone for {seconds:.0f} s ({failure}); what was "
                f"answered is in {self.store.path}: start again then"
            )
        self.held_until = max(self.held_until, asyncio.get_running_loop().time() + seconds)

    async def _turn(self) -> None:
        """Wait until the next request may be sent."""
        clock = asyncio.get_running_loop().time
        while (start := max(self.next_turn, self.held_until)) > (now := clock()):
            await self._sleep(start - now)
        if self.limits.rpm is not None:
            self.next_turn = now + 60.0 / self.limits.rpm

    async def _sleep(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self.stop.wait(), max(seconds, 0.0))
        if self.stop.is_set():
            raise _StoppedError


def _run_to_end(work: Coroutine[Any, Any, None]) -> None:
    """Wait for a coroutine to end, where a notebook's loop is running too."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    loop = asyncio.new_event_loop()
    task = loop.create_task(work)
    thread = ThreadPoolExecutor(max_workers=1)
    ended = thread.submit(loop.run_until_complete, task)
    thread.submit(loop.close)
    thread.shutdown(wait=False)
    try:
        ended.result()
    except KeyboardInterrupt:
        loop.call_soon_threadsafe(task.cancel)
        wait([ended])
        raise
