"""Asking many questions: several at a time, not too many a minute, again where it may help."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from brim.errors import BrimError, RunError
from brim.judge.store import Reply, Store

# So many questions without an answer in a row, each tried again and again: the server is gone.
MAX_FAILURES_IN_A_ROW = 10
# A server that wants to be left alone for longer is come back to by another start.
MAX_WAIT_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How a judge is asked.

    Attributes:
        concurrency: requests at the same time.
        rpm: requests a minute, tries included; None for as many as there can be.
        timeout: seconds of one request, from its beginning to the whole answer.
        max_retries: further tries of a question.
        backoff: seconds before the second try, doubled for each one more, with jitter: times a
            number between ½ and 1½.
        max_backoff: the longest of these waits, jitter aside.
    """

    concurrency: int = 8
    rpm: float | None = None
    timeout: float = 60.0
    max_retries: int = 5
    backoff: float = 1.0
    max_backoff: float = 60.0


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked.

    Attributes:
        key: of the store.
        prompt: writes the prompt: all of them at once would fill the memory.
        read: the verdict of a reply.
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
    """Ask what is not in the store yet; every reply is in the store as soon as it is there.

    Ctrl-C waits for the answers of the requests under way, for they are paid for; a second one
    does not.

    Args:
        questions: by key.
        backend: who is asked.
        store: where replies go.
        limits: how many and how often.
        advance: called for each question that was asked, failed ones too.
        say: told what the person who watches should know.

    Raises:
        BrimError: no further question has any chance; the replies so far are in the store.
        KeyboardInterrupt: after Ctrl-C.
    """
    known = store.get(questions)
    left = [question for key, question in questions.items() if key not in known]
    run = _Run(left, backend, store, limits, advance, say)
    _run(run.whole())
    return run.outcome


class _StoppedError(Exception):
    """No more requests are wanted."""


class _Run:
    def __init__(
        self,
        questions: Iterable[Question],
        backend: Backend,
        store: Store,
        limits: Limits,
        advance: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        self.backend, self.store, self.limits = backend, store, limits
        self.advance, self.say = advance, say
        self.waiting = deque(questions)
        self.outcome = Outcome()
        self.judge = json.dumps(dict(backend.identity), sort_keys=True)
        self.failures_in_a_row = 0
        self.error: BrimError | None = None
        # On the loop's clock: when the next request is due, and when the server may be asked again.
        self.next_turn = self.held_until = 0.0
        self.jitter = random.Random()

    async def whole(self) -> None:
        self.stop = asyncio.Event()
        num_workers = self.limits.concurrency if self.backend.timed else 1
        workers = [asyncio.create_task(self._work()) for _ in range(num_workers)]
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

    async def _work(self) -> None:
        try:
            while self.waiting and not self.stop.is_set():
                number = min(self.backend.batch, len(self.waiting))
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
        for question, reply in zip(group, replies, strict=True):
            self.store.put(
                question.key,
                reply,
                judge=self.judge,
                prompt=question.prompt(),
                verdict=question.read(reply),
            )
            self.advance()

    def _fail(self, group: list[Question], error: Exception) -> None:
        for question in group:
            self.outcome.failed[question.key] = str(error)
            self.advance()

    async def _ask(self, group: list[Question]) -> list[Reply]:
        """The replies, after as many tries as it takes and is allowed."""
        prompts = [question.prompt() for question in group]
        for attempt in range(self.limits.max_retries + 1):
            await self._turn()
            self.outcome.num_requests += 1
            try:
                asked = self.backend.ask(prompts)
                if not self.backend.timed:
                    return await asked
                return await asyncio.wait_for(asked, self.limits.timeout)
            except TimeoutError:
                failure = TransientError(f"no answer within {self.limits.timeout:g} s")
            except TransientError as error:
                failure = error
            if failure.wait is not None:
                self._hold(failure)
            if attempt == self.limits.max_retries:
                raise failure
            pause = min(self.limits.backoff * 2**attempt, self.limits.max_backoff)
            pause *= self.jitter.uniform(0.5, 1.5)
            await self._sleep(max(pause, failure.wait or 0.0))
        raise AssertionError("the last attempt returns or raises")

    def _hold(self, failure: TransientError) -> None:
        """Leave the server alone for as long as it asks, with all questions."""
        assert failure.wait is not None
        if failure.wait > MAX_WAIT_SECONDS:
            raise RunError(
                f"the server asks to be left alone for {failure.wait:.0f} s ({failure}); what was "
                f"answered is in {self.store.path}: start again then"
            )
        now = asyncio.get_running_loop().time()
        self.held_until = max(self.held_until, now + failure.wait)

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


def _run(work: Coroutine[Any, Any, None]) -> None:
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
