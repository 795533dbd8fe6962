"""One thread that owns the model, and takes rows of several requests through it together.

Before each pass the rows that wait for the same question as the oldest request are grouped by
length, whichever requests they belong to, and the group with the oldest row is taken. Requests that
come while a pass runs join the next one.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Full
from typing import Any, Protocol, Self

from brim.models import LanguageModel
from brim.support.bucketing import length_buckets

# Rows that are looked at for a pass are worth this many passes.
LOOK_AHEAD = 4


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt and what follows it, as token ids.

    Attributes:
        prompt: at least one token.
        completion: what was written; empty where the model is to write.
        seed: of what the model writes.
    """

    prompt: Sequence[int]
    completion: Sequence[int] = ()
    seed: int = 0


class Question(Hashable, Protocol):
    """What is asked of a row; rows with equal questions may share a pass."""

    def room(self, row: Row) -> int:
        """Return the tokens, at most, that the model reads or writes behind the prompt."""
        ...

    def overhead(self, batch_tokens: int) -> int | None:
        """Return what one more pass costs, in tokens; None for a little."""
        ...

    def answer(self, model: LanguageModel, rows: Sequence[Row]) -> Sequence[Any]:
        """Return an answer a row, by one pass."""
        ...


@dataclass(slots=True, eq=False)
class _Job:
    """The rows of a request, the places of those that wait, and the answers that there are."""

    question: Question
    rows: Sequence[Row]
    waiting: list[int]
    answers: dict[int, Any] = field(default_factory=dict)
    future: Future[list[Any]] = field(default_factory=Future)

    def finish(self) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_result([self.answers[i] for i in range(len(self.rows))])

    def fail(self, error: Exception) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class Worker:
    """Answers requests in a thread of its own, while the block runs; then ends all that wait.

    Attributes:
        num_passes: of the model, so far.
    """

    def __init__(self, model: LanguageModel, *, batch_tokens: int, max_jobs: int) -> None:
        self._model, self._batch_tokens, self._max_jobs = model, batch_tokens, max_jobs
        positions = None if model.is_encoder_decoder else model.num_positions
        # The last token of a row is never read.
        self._width = None if positions is None else positions + 1
        self._jobs: list[_Job] = []
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="brim-serve")
        self.num_passes = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    @property
    def num_jobs(self) -> int:
        """Requests that wait or are under way."""
        with self._changed:
            return sum(not job.future.cancelled() for job in self._jobs)

    def submit(self, question: Question, rows: Sequence[Row]) -> Future[list[Any]]:
        """Have rows answered, in order; a future that is cancelled gives up those that wait.

        Raises:
            queue.Full: as many requests wait as may.
        """
        job = _Job(question, rows, list(range(len(rows))))
        with self._changed:
            self._drop_cancelled()
            if len(self._jobs) >= self._max_jobs:
                raise Full
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            question = taken[0][0].question
            try:
                rows = [job.rows[i] for job, i in taken]
                answers = question.answer(self._model, rows)
            except Exception as error:  # belongs to those who asked
                self._end({job for job, _ in taken}, error)
                continue
            self.num_passes += 1
            for (job, i), answer in zip(taken, answers, strict=True):
                job.answers[i] = answer
            self._end({job for job, _ in taken if len(job.answers) == len(job.rows)})

    def _end(self, jobs: set[_Job], error: Exception | None = None) -> None:
        with self._changed:
            self._jobs = [job for job in self._jobs if job not in jobs]
        for job in jobs:
            job.finish() if error is None else job.fail(error)

    def _take(self) -> list[tuple[_Job, int]] | None:
        """Rows of the next pass, the places in their requests; None once all is done."""
        with self._changed:
            self._drop_cancelled()
            while not self._jobs:
                if self._closing:
                    return None
                self._changed.wait()
                self._drop_cancelled()
            taken = self._group()
            for job, i in taken:
                job.waiting.remove(i)
            return taken

    def _drop_cancelled(self) -> None:
        self._jobs = [job for job in self._jobs if not job.future.cancelled()]

    def _group(self) -> list[tuple[_Job, int]]:
        question = self._jobs[0].question
        pool: list[tuple[_Job, int]] = []
        prompts, rooms = [], []
        tokens = 0
        for job in self._jobs:
            for i in job.waiting if job.question == question else ():
                if tokens >= LOOK_AHEAD * self._batch_tokens:
                    break
                pool.append((job, i))
                prompts.append(len(job.rows[i].prompt))
                rooms.append(question.room(job.rows[i]))
                tokens += prompts[-1] + rooms[-1]
        overhead = question.overhead(self._batch_tokens)
        groups = length_buckets(prompts, rooms, self._batch_tokens, overhead=overhead)
        oldest = next(group for group in groups if 0 in group)
        # One row's prompt beside another's completion may be longer than either row.
        prompt, room = prompts[0], rooms[0]
        kept: list[int] = []
        for place in sorted(oldest):
            wider = max(prompt, prompts[place]), max(room, rooms[place])
            if self._width is None or sum(wider) <= self._width:
                (prompt, room) = wider
                kept.append(place)
        return [pool[place] for place in kept]
