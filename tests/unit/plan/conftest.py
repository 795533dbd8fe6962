import pytest

from brim.plan.peaks import Cost


@pytest.fixture
def without_peaks(monkeypatch):
    """They take most of a plan's time, and have tests of their own."""
    for name in ("pass_cost", "writing_cost"):
        monkeypatch.setattr(f"brim.plan.memory.{name}", lambda *args, **kwargs: Cost(0, 0, 0))
