"""What is left of a training, from seconds that a clock of the tests gives."""

import pytest

from brim.support import timing
from brim.support.progress import Meter
from brim.training.loop_settings import LoopConfig
from brim.training.optimizer import count_evaluations, count_saves
from brim.training.pace import RECENT, Pace

LOOP = LoopConfig(max_steps=95, evaluate_every=20, save_every=50)


@pytest.fixture
def clock(monkeypatch):
    """A clock that work moves on."""
    now = [0.0]
    monkeypatch.setattr(timing, "_now", lambda: now[0])

    def work(seconds):
        def do():
            now[0] += seconds

        return do

    return work


@pytest.mark.parametrize("after", [-1, 0, 19, 20, 94, 95])
def test_what_is_counted_is_what_the_loop_does(after):
    steps = range(max(after, 0) + (after >= 0), 96)
    done = [step for step in steps if step == 95 or step % 20 == 0]
    assert count_evaluations(LOOP, 95, after=after) == len(done)
    saved = [step for step in steps if step == 95 or step % 50 == 0]
    assert count_saves(LOOP, 95, after=after) == len(saved)


def test_what_is_left_is_steps_evaluations_and_saves(clock):
    pace = Pace(LOOP, 95)
    assert pace.seconds_left(0) is None
    assert pace.measure("evaluation", clock(7.0)) == 7.0
    pace.add_step(100.0)  # the first one, which also chooses kernels
    for _ in range(9):
        pace.add_step(2.0)
    # Evaluations behind steps 20, 40, 60, 80 and 95; of saves nothing is known.
    assert pace.seconds_left(10) == pytest.approx(85 * 2.0 + 5 * 7.0)
    pace.measure("best", clock(0.5))
    assert pace.seconds_left(10) == pytest.approx(85 * 2.0 + 5 * 7.0 + 2 * 3 * 0.5)
    pace.measure("save", clock(4.0))
    assert pace.seconds_left(10) == pytest.approx(85 * 2.0 + 5 * 7.0 + 2 * 4.0)
    assert pace.seconds_left(95) == pytest.approx(7.0 + 4.0)  # its own are still to come


def test_only_recent_steps_count_for_texts_change(clock):
    pace = Pace(LoopConfig(max_steps=1000), 1000)
    for seconds in [1.0, *[9.0] * 50, *[3.0] * RECENT]:
        pace.add_step(seconds)
    assert pace.seconds_left(999) == pytest.approx(3.0)


def test_the_first_step_counts_until_there_is_another():
    pace = Pace(LoopConfig(max_steps=3), 3)
    pace.add_step(8.0)
    assert pace.seconds_left(1) == pytest.approx(2 * 8.0)


def test_a_meter_shows_what_is_known_of_the_time_left():
    shown = []
    meter = Meter("brim", 4, show=lambda meter: shown.append(meter.eta))
    meter.advance(1, seconds_left=3725.4)
    meter.advance(3, seconds_left=2.0)  # a last evaluation
    meter.advance(0, seconds_left=0.0)
    assert shown == ["ETA 1:02:05", "ETA 0:00:02", "done"]
