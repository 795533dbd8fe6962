import math

import pytest
import torch

from brim.divergences import (
    expected_value,
    forward_kl,
    jensen_shannon,
    reverse_kl,
    student_to_mixture,
    teacher_to_mixture,
    total_variation,
)

# p = (1/2, 1/4, 1/4) and q = (1/4, 1/2, 1/4), each with an offset of its own.
TEACHER = torch.tensor([[0.5, 0.25, 0.25]]).log() + 3
STUDENT = torch.tensor([[0.25, 0.5, 0.25]]).log() - 7
LOG2 = math.log(2)


@pytest.mark.parametrize("function", [forward_kl, reverse_kl])
def test_kl_by_hand(function):
    assert function(STUDENT, TEACHER).item() == pytest.approx(LOG2 / 2 - LOG2 / 4)


def test_the_directions_of_kl_by_hand():
    certain = torch.tensor([[50.0, 0.0]])
    open_minded = torch.zeros(1, 2)
    # A certain student misses half of what an undecided teacher says, 25 nats on average each.
    assert forward_kl(certain, open_minded).item() == pytest.approx(25 - LOG2)
    assert reverse_kl(certain, open_minded).item() == pytest.approx(LOG2)


def test_mixtures_by_hand():
    # m = (3/8, 3/8, 1/4) at the middle, (5/16, 7/16, 1/4) with a quarter of the teacher.
    middle = math.log(4 / 3) / 2 + math.log(2 / 3) / 4
    assert jensen_shannon(STUDENT, TEACHER).item() == pytest.approx(middle)
    teachers = math.log(8 / 5) / 2 + math.log(4 / 7) / 4
    students = math.log(4 / 5) / 4 + math.log(8 / 7) / 2
    assert teacher_to_mixture(STUDENT, TEACHER, 0.25).item() == pytest.approx(teachers, rel=1e-5)
    assert student_to_mixture(STUDENT, TEACHER, 0.25).item() == pytest.approx(students, rel=1e-5)
    assert jensen_shannon(STUDENT, TEACHER, 0.25).item() == pytest.approx(
        teachers / 4 + students * 3 / 4, rel=1e-5
    )


def test_total_variation_by_hand():
    assert total_variation(STUDENT, TEACHER).item() == pytest.approx(0.25)


def test_expected_value_by_hand():
    values = torch.tensor([[4.0, -2.0, 8.0]])
    assert expected_value(STUDENT, values).item() == pytest.approx(1 - 1 + 2)
