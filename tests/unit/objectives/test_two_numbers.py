"""Each method says truly whether two numbers a token of a teacher are enough for it."""

from itertools import product
from typing import get_args

import pytest
import torch
from enumerable import DECODING, EXAMPLES, pair
from pydantic import ValidationError

from brim.errors import ModelError
from brim.models import Teacher, whole
from brim.objectives import OBJECTIVES, make_objective

# Settings that may need more, with all that they can be; a method takes those it has.
CHOICES = ("q_centering", "immediate", "expected_regrets", "remaining_regret", "critic", "baseline")


class TwoNumbers:
    """A teacher that shows what the protocol has, and no logits."""

    def __init__(self, model):
        self._model = model

    def __getattr__(self, name):
        if name not in {*Teacher.__annotations__, *vars(Teacher)}:
            raise AttributeError(name)
        return getattr(self._model, name)


def every_setting():
    for settings, _ in OBJECTIVES.values():
        fields = {name: settings.model_fields[name] for name in CHOICES
                  if name in settings.model_fields}  # fmt: skip
        values = [get_args(field.annotation) or (False, True) for field in fields.values()]
        for chosen in product(*values):
            try:
                yield settings(num_generations=2, **dict(zip(fields, chosen, strict=True)))
            except ValidationError:
                continue  # settings that do not go together, or a method of one completion
        if "num_generations" not in settings.model_fields:
            yield settings()


@pytest.mark.parametrize("settings", [*every_setting()], ids=lambda s: " ".join(
    str(getattr(s, name, "")) for name in ("name", *CHOICES)))  # fmt: skip
def test_what_needs_the_whole_distribution_says_so(settings):
    student, teacher = pair("gpt2")
    objective = make_objective(settings, DECODING)
    module = objective.prepare(student)
    batch = student.encode(EXAMPLES, max_tokens=None, seeds=[0, 1])
    asked = TwoNumbers(teacher)

    def step():
        with torch.no_grad():
            rollout, _ = objective.collect(batch, student, asked)
        return objective.loss(module, rollout, asked).loss

    if settings.whole_distribution is None:
        assert step().isfinite()
    else:
        with pytest.raises(ModelError, match="whole distribution"):
            step()
        name, _, value = settings.whole_distribution.partition("=")
        assert str(getattr(settings, name)).lower() == value


def test_a_model_shows_all():
    _, teacher = pair("gpt2")
    assert whole(teacher) is teacher
