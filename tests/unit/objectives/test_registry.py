"""The registry: every method is made from its settings, and settings are read without torch."""

from typing import get_args

import pytest

from brim.models import Decoding
from brim.objectives import OBJECTIVES, ObjectiveConfig, make_objective


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_method_is_made_from_its_settings(name):
    settings = OBJECTIVES[name][0]()
    assert settings.name == name
    decoding = Decoding(max_tokens=3)
    objective = make_objective(settings, decoding)
    assert objective.settings is settings
    assert objective.decoding is decoding
    assert objective.state_dict() == {}


def test_recipes_know_every_method():
    union, _ = get_args(ObjectiveConfig)
    assert list(get_args(union)) == [settings for settings, _ in OBJECTIVES.values()]
