"""Sampled policy gradients against the exact ones of an MDP that can be enumerated."""

import pytest
import reference
import torch
from mdp import PrefixMDP
from torch import Tensor

from brim.losses import policy_gradient_loss
from brim.returns import block_returns

MDP = PrefixMDP(horizon=4, seed=19083)
ALL = MDP.all_trajectories()
LOOPS = {"one_step": reference.algorithm_1, "none": reference.equation_7}
CASES = [(1, "one_step"), (2, "one_step"), (2, "none"), (3, "one_step"), (4, "none")]


def run_loop(loop, *args) -> Tensor:
    """A reference loop over every completion there is: (N, horizon), 0 in the padding."""
    result = torch.zeros(ALL.mask.shape, dtype=torch.float64)
    taken, best = ALL.values(MDP.teacher)
    for i, length in enumerate(ALL.mask.sum(1).tolist()):
        row = loop(taken[i, :length].tolist(), best[i, :length].tolist(), *args)
        result[i, :length] = torch.tensor(row, dtype=torch.float64)
    return result


def exact_gradient(returns: Tensor) -> Tensor:
    """E[Σ_t Ĝ_t ∇ log π(a_t|s_t)] of Eq 8, given the returns of every completion there is."""
    student = MDP.student.clone().requires_grad_()
    weights = ALL.probabilities(MDP.student).unsqueeze(-1) * returns
    (weights * ALL.logprobs(student)).sum().backward()
    return student.grad


def sampled_gradients(k: int, tail: str, num_groups: int, group_size: int) -> Tensor:
    """(num_groups, num_states, 3): the library's estimates, each from its own samples."""
    generator = torch.Generator().manual_seed(34007)
    gradients = []
    for _ in range(num_groups):
        student = MDP.student.clone().requires_grad_()
        trajectories = MDP.sample(group_size, generator)
        taken, best = trajectories.values(MDP.teacher)
        returns = block_returns(taken, best, trajectories.mask, k=k, tail=tail)
        loss = policy_gradient_loss(trajectories.logprobs(student), returns, trajectories.mask)
        (loss / group_size).backward()
        gradients.append(-student.grad)
    return torch.stack(gradients)


def test_the_enumeration_is_complete():
    assert len(ALL.mask) == 2**5 - 1
    assert float(ALL.probabilities(MDP.student).sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("k", "tail"), CASES)
def test_sampled_gradients_average_to_the_exact_one(k, tail):
    estimates = sampled_gradients(k, tail, num_groups=100, group_size=2000)
    error = estimates.std(0) / len(estimates) ** 0.5

    def deviations(returns):
        return (estimates.mean(0) - exact_gradient(returns)) / error

    # 45 numbers of which 30 are free: a normal deviate beyond 4 has a chance of 0.3 %.
    z = deviations(run_loop(LOOPS[tail], k))
    assert z.abs().max() < 4
    assert z.square().mean() < 2
    # The samples are enough to tell this K from its neighbour.
    assert deviations(run_loop(reference.equation_7, k % 4 + 1)).abs().max() > 10


def test_with_k_1_the_gradient_is_that_of_the_expected_return():
    """Of J(θ) in Eq 3, the expected sum of the rewards of Eq 2, by finite differences."""
    rewards = run_loop(reference.equation_2).sum(-1)

    def objective(student):
        return float(ALL.probabilities(student) @ rewards)

    taken, best = ALL.values(MDP.teacher)
    gradient = exact_gradient(block_returns(taken, best, ALL.mask, k=1))
    step = 1e-5
    for state, action in torch.cartesian_prod(torch.arange(MDP.num_states), torch.arange(3)):
        move = torch.zeros_like(MDP.student)
        move[state, action] = step
        slope = (objective(MDP.student + move) - objective(MDP.student - move)) / (2 * step)
        assert float(gradient[state, action]) == pytest.approx(slope, abs=1e-8)


@pytest.mark.parametrize(("k", "tail"), CASES)
def test_a_states_logit_offset_never_changes_the_expected_gradient(k, tail):
    def gradient(teacher):
        taken, best = ALL.values(teacher)
        return exact_gradient(block_returns(taken, best, ALL.mask, k=k, tail=tail))

    generator = torch.Generator().manual_seed(310)
    offsets = torch.randn(MDP.num_states, 1, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(
        gradient(MDP.teacher + 5 * offsets), gradient(MDP.teacher), rtol=0, atol=1e-12
    )
