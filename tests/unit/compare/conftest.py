import pytest
from written_runs import make_references


@pytest.fixture
def references() -> list[list[str]]:
    return make_references()
