"""Callbacks: code of the user's own that watches a training, and may end it.

    class Budget(Callback):
        def on_step(self, state):
            if state.metrics["rollout/length"] > 100:
                state.stop("completions have over 100 tokens")

They are called by the main process, between steps, and see numbers and files, no weights in memory:
what they do cannot change what is learned, only when that ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from brim.errors import CallbackError, ConfigError, first_line
from brim.metrics import Score
from brim.support.imports import find_object
from brim.training.predictions import Prediction

Event = Literal["on_step", "on_evaluate", "on_save"]
Methods = dict[Event, Callable[["CallbackState"], Any]]
EVENTS: tuple[Event, ...] = ("on_step", "on_evaluate", "on_save")
KEY, ASKED = "trainer.callbacks", "a callback asked for it"


@dataclass
class CallbackState:
    """A training as its callbacks see it.

    Attributes:
        directory: of the training.
        step: steps done.
        num_steps: that are planned.
        best_step, best_score: of the best evaluation so far; None before the first.
        metrics: what the step logs, by the keys of `metrics.jsonl`; in `on_step` only.
        scores: of the validation split, by name; in `on_evaluate` only.
        predictions: what was written for it; in `on_evaluate` only.
        checkpoint: the folder that was saved; in `on_save` only.
        stopped: why a callback wants the training to end; None where none does.
    """

    directory: Path
    step: int
    num_steps: int
    best_step: int | None = None
    best_score: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[str, Score] = field(default_factory=dict)
    predictions: Sequence[Prediction] = ()
    checkpoint: Path | None = None
    stopped: str | None = None

    def stop(self, reason: str = ASKED) -> None:
        """End the training after this step; from `on_save`, or before the first, after the next.

        That step is evaluated and saved, and the best one tested, as at the end of any training.

        Args:
            reason: for the results.
        """
        self.stopped = self.stopped or reason


class Callback:
    """What a training calls; a class of one's own needs those of the methods that it wants."""

    def on_step(self, state: CallbackState) -> None:
        """Look at a step that is done."""

    def on_evaluate(self, state: CallbackState) -> None:
        """Look at an evaluation; the first one is of step 0."""

    def on_save(self, state: CallbackState) -> None:
        """Look at a checkpoint that was saved."""


class Callbacks:
    """Callbacks in their order, what they ask for, and how one failed.

    Attributes:
        wish: why the training is to end; None where no callback asked for it.
        failure: of the first that failed; it is kept until the step is saved.
    """

    def __init__(self, *given: Any) -> None:
        self.wish: str | None = None
        self.failure: CallbackError | None = None
        self._listeners: list[tuple[str, Methods]] = []
        self.add(*given)

    def add(self, *given: Any) -> None:
        """Call these behind the others.

        Args:
            given: objects with methods of `Callback`, functions, which are called as `on_step`, or
                `MODULE:NAME` of a function or class, which is made without arguments.

        Raises:
            ConfigError: one of them is nothing that can be called.
        """
        self._listeners += map(_listener, given)

    def call(self, event: Event, state: CallbackState) -> None:
        """Call all of them, up to the first that fails."""
        for name, methods in self._listeners:
            if self.failure is not None:
                return
            try:
                methods.get(event, _nothing)(state)
            except Exception as error:  # of the user's code
                self.failure = CallbackError(
                    f"{state.directory}: the callback {name} failed in {event} at step "
                    f"{state.step}: {type(error).__name__}: {first_line(error)}; the step is "
                    "saved: mend the callback, and the same command goes on"
                )
                self.failure.__cause__ = error
        self.wish = self.wish or state.stopped

    def error(self, directory: Path, step: int) -> CallbackError:
        """Return the failure, on this process or on the main one."""
        return self.failure or CallbackError(
            f"{directory}: stopped after step {step}, which is saved: a callback failed on the "
            "main process"
        )


def _nothing(state: CallbackState) -> None:
    pass


def _listener(given: Any) -> tuple[str, Methods]:
    """What errors call a callback, and its methods."""
    name = given if isinstance(given, str) else ""
    one = find_object(given, KEY) if name else given
    if isinstance(one, type):
        try:
            one = one()
        except Exception as error:
            raise ConfigError(
                f"{KEY}: {name or one.__name__} cannot be made without arguments "
                f"({first_line(error)}); give defaults, or an object from Python"
            ) from error
    methods = {event: method for event in EVENTS if callable(method := getattr(one, event, None))}
    if not methods and callable(one):
        methods = {"on_step": one}
    name = name or getattr(one, "__qualname__", type(one).__qualname__)
    if not methods:
        raise ConfigError(
            f"{KEY}: {name} is no callback; give a function, or an object with "
            f"{', '.join(EVENTS[:-1])} or {EVENTS[-1]}"
        )
    return name, methods
