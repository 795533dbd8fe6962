"""What is said while work goes on: lines in a log, a bar on a terminal."""

from __future__ import annotations

import io
import re
import threading
from types import SimpleNamespace

import pytest
from listening import Listener
from rich.console import Console

from brim.support import progress
from brim.support.progress import Reporter


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves."""
    now = [0.0]
    # Its own name for the module: event loops of other tests' servers tell the time by the module.
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def reporter_on(file: io.StringIO, monkeypatch, **environment: str) -> Reporter:
    for name, value in {"TERM": "xterm", **environment}.items():
        monkeypatch.setenv(name, value)
    reporter = Reporter()
    reporter.console = Console(file=file, width=80)
    return reporter


@pytest.mark.parametrize("environment", [{}, {"FORCE_COLOR": "1"}, {"TTY_COMPATIBLE": "1"}])
def test_a_log_gets_lines_without_control_characters(monkeypatch, clock, environment):
    file = io.StringIO()
    reporter = reporter_on(file, monkeypatch, **environment)
    with reporter.meter("brim", 4) as meter:
        for step in range(1, 5):
            clock[0] += 20
            meter.advance(1, f"return {step}")
    lines = file.getvalue().splitlines()
    assert [line.partition(" in ")[0] for line in lines] == [f"brim: {i}/4" for i in range(1, 5)]
    assert [line.rpartition("  ")[2] for line in lines] == [f"return {i}" for i in range(1, 5)]
    assert "ETA" in lines[0]
    assert "done" in lines[-1]
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", file.getvalue())


def test_a_log_of_days_gets_few_lines_and_the_end_once(monkeypatch, clock):
    file = io.StringIO()
    with reporter_on(file, monkeypatch).meter("brim", 10_000) as meter:
        for _ in range(10_000):
            clock[0] += 30
            meter.advance()
    lines = file.getvalue().splitlines()
    assert 100 < len(lines) < 700
    assert sum("done" in line for line in lines) == 1


def test_work_that_fails_is_not_called_done(monkeypatch):
    file = io.StringIO()

    def work() -> None:
        with reporter_on(file, monkeypatch).meter("brim", 1) as meter:
            meter.advance()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert "done" not in file.getvalue()


def test_a_terminal_gets_a_bar_with_its_note_below_it(monkeypatch):
    file = Terminal()
    with reporter_on(file, monkeypatch).meter("brim", 4) as meter:
        meter.advance(3, "return 1.00 [of the batch]")
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue()).replace("\r", "\n")
    bar, note = last.rstrip().splitlines()[-2:]
    assert bar.startswith("brim ")
    assert "3/4" in bar
    assert "ETA" in bar
    assert note == "  return 1.00 [of the batch]"


def test_a_terminal_that_cannot_move_gets_lines(monkeypatch):
    file = Terminal()
    with reporter_on(file, monkeypatch, TERM="dumb").meter("brim", 1) as meter:
        meter.advance()
    assert file.getvalue() == "brim: 1/1 in 0 s, done\n"


def test_what_is_loaded_is_said_with_facts_and_seconds_if_it_takes_any(clock, monkeypatch):
    listener = Listener()
    with listener.loading("teacher from t5") as facts:
        facts += ["12 parameters", "float32 on cpu"]
    with listener.loading("student from t5") as facts:
        clock[0] += 12
        facts.append("6 parameters")
    assert listener.lines == [
        "teacher from t5: 12 parameters, float32 on cpu",
        "student from t5: 6 parameters, 12 s",
    ]


def test_what_takes_long_is_announced_and_what_fails_is_not_called_loaded(monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE_SECONDS", 0.0)
    listener, said = Listener(), threading.Event()
    monkeypatch.setattr(listener, "say", lambda text: (listener.lines.append(text), said.set()))

    def load() -> None:
        with listener.loading("teacher from t5"):
            assert said.wait(60)
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        load()
    assert listener.lines == ["loading teacher from t5"]


def test_quiet_says_nothing(capfd):
    reporter = Reporter(quiet=True)
    with reporter.loading("teacher") as facts, reporter.meter("brim", 1) as meter:
        facts.append("x")
        meter.advance()
    reporter.say("hello")
    assert not reporter.animated
    assert capfd.readouterr() == ("", "")
