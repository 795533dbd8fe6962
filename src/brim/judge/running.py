"""Asking many questions: several at a time, not too many a minute, again where it may help."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from brim.errors import BrimError, RunError
from brim.judge.backends import Backend, RejectedError, TransientError
from brim.judge.store import Claim, Reply, Store

_Result = TypeVar("_Result")

# So many questions without an answer in a row, each tried again and again: the server is gone.
MAX_FAILURES_IN_A_ROW = 10
# A server that wants to be left alone for longer is come back to by another start.
MAX_WAIT_SECONDS = 600.0
# Of a question that another process is asking.
POLL_SECONDS = 0.1
_LOCAL_LEASE_SECONDS = 86400.0


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
        advance: called for each question that is done with, failed ones too.
        say: told what the person who watches should know.

    Raises:
        BrimError: no further question has any chance; the replies so far are in the store.
        KeyboardInterrupt: after Ctrl-C.
    """
    run = _Run(questions, backend, store, limits, advance, say)
    _run(run.whole())
    return run.outcome


class _StoppedError(Exception):
    """No more requests are wanted."""


class _Run:
    def __init__(
        self,
        questions: Mapping[str, Question],
        backend: Backend,
        store: Store,
        limits: Limits,
        advance: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        self.backend, self.store, self.limits = backend, store, limits
        self.advance, self.say = advance, say
        self.waiting = deque(questions.values())
        self.outcome = Outcome()
        self.judge = json.dumps(dict(backend.identity), sort_keys=True)
        self.failures_in_a_row = 0
        self.error: BrimError | None = None
        # On the loop's clock: when the next request is due, and when the server may be asked again.
        self.next_turn = self.held_until = 0.0
        self.jitter = random.Random()
        self.told = False

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
                group = await self._take()
                if group:
                    await self._answer(group)
        except _StoppedError:
            pass
        except BrimError as error:
            self.error = self.error or error
            self.stop.set()
        except BaseException:
            self.stop.set()
            raise

    async def _take(self) -> list[Question]:
        """The next questions, claimed; those that another process has go to the end."""
        await asyncio.sleep(0)  # answers may be waiting to be read
        group: list[Question] = []
        theirs: list[Question] = []
        for _ in range(min(self.backend.batch, len(self.waiting))):
            question = self.waiting.popleft()
            claim = self.store.claim(question.key, self._lease(0.0))
            if claim is Claim.OURS:
                group.append(question)
            elif claim is Claim.ANSWERED:
                self.advance()
            else:
                theirs.append(question)
        self.waiting.extend(theirs)
        if theirs and not group:
            if not self.told:
                self.told = True
                self.say("the questions that are left are being asked by another process; waiting")
            await self._sleep(POLL_SECONDS)
        return group

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
        except BaseException:
            for question in group:
                self.store.release(question.key)
            raise
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
            self.store.release(question.key)
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
            wait = min(self.limits.backoff * 2**attempt, self.limits.max_backoff)
            wait = max(wait * self.jitter.uniform(0.5, 1.5), failure.wait or 0.0)
            for question in group:
                self.store.claim(question.key, self._lease(wait))
            await self._sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def _lease(self, wait: float) -> float:
        """Seconds after which a claim may be taken for that of a process that hangs."""
        if not self.backend.timed:
            return _LOCAL_LEASE_SECONDS
        line = self.limits.concurrency * 60.0 / self.limits.rpm if self.limits.rpm else 0.0
        return wait + line + self.limits.timeout + MAX_WAIT_SECONDS

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


def _run(work: Coroutine[Any, Any, _Result]) -> _Result:
    """The result of a coroutine, where a notebook's loop is running too."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    result: list[_Result] = []
    failure: list[BaseException] = []
    cancel: list[Callable[[], object]] = []
    ended = threading.Event()

    async def whole() -> _Result:
        task = asyncio.current_task()
        assert task is not None
        cancel.append(partial(asyncio.get_running_loop().call_soon_threadsafe, task.cancel))
        return await work

    def run() -> None:
        try:
            result.append(asyncio.run(whole()))
        except BaseException as error:
            failure.append(error)
        ended.set()

    threading.Thread(target=run).start()
    try:
        ended.wait()  # a thread that it was interrupted for could not be joined a second time
    except KeyboardInterrupt:
        for stop in cancel:
            stop()
        ended.wait()
        raise
    if failure:
        raise failure[0]
    return result[0]
