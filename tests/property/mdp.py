"""A text-generation MDP small enough to enumerate, with a teacher table and a tabular student.

Two words and an EOS; a completion ends with the EOS or is cut after `horizon` tokens. A state is a
prefix of words, numbered like a heap: the empty prefix is 0, writing word w in state s leads to
2s + 1 + w. Teacher and student are tables of logits of shape (num_states, 3), one row a prefix.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

NUM_WORDS = 2
EOS = 2


@dataclass(frozen=True)
class Trajectories:
    """N completions, (N, horizon) each; states and actions are 0 where the mask is False."""

    states: Tensor
    actions: Tensor
    mask: Tensor

    def logprobs(self, student: Tensor) -> Tensor:
        """(N, horizon) `log π(a_t | s_t)`, differentiable."""
        return student.log_softmax(-1)[self.states, self.actions]

    def probabilities(self, student: Tensor) -> Tensor:
        """(N,) probability that the student writes each completion, differentiable."""
        return (self.logprobs(student) * self.mask).sum(-1).exp()

    def values(self, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """`taken` and `best` along the completions, NaN where the mask is False."""
        padding = torch.zeros(self.mask.shape, dtype=teacher.dtype)
        padding[~self.mask] = torch.nan
        taken = teacher[self.states, self.actions]
        best = teacher.max(-1).values[self.states]
        return taken + padding, best + padding


class PrefixMDP:
    """Random tables `teacher` (action values q) and `student` (logits of π), in float64."""

    def __init__(self, horizon: int, seed: int):
        self.horizon = horizon
        self.num_states = NUM_WORDS**horizon - 1
        generator = torch.Generator().manual_seed(seed)
        shape = (2, self.num_states, NUM_WORDS + 1)
        tables = torch.randn(shape, dtype=torch.float64, generator=generator)
        self.teacher, self.student = 2 * tables[0], tables[1]

    def all_trajectories(self) -> Trajectories:
        """Every completion there is, each once: 2^(horizon + 1) - 1 of them."""
        found: list[tuple[list[int], list[int]]] = []

        def extend(states: list[int], actions: list[int]) -> None:
            if len(actions) == self.horizon:
                found.append((states[:-1], actions))
                return
            found.append((states, [*actions, EOS]))
            for word in range(NUM_WORDS):
                extend([*states, NUM_WORDS * states[-1] + 1 + word], [*actions, word])

        extend([0], [])
        shape = (len(found), self.horizon)
        result = Trajectories(
            torch.zeros(shape, dtype=torch.long),
            torch.zeros(shape, dtype=torch.long),
            torch.zeros(shape, dtype=torch.bool),
        )
        for i, (states, actions) in enumerate(found):
            result.states[i, : len(states)] = torch.tensor(states)
            result.actions[i, : len(actions)] = torch.tensor(actions)
            result.mask[i, : len(actions)] = True
        return result

    def sample(self, num: int, generator: torch.Generator) -> Trajectories:
        """`num` completions written by the student."""
        cumulative = self.student.softmax(-1).cumsum(-1)
        state = torch.zeros(num, dtype=torch.long)
        alive = torch.ones(num, dtype=torch.bool)
        steps = []
        for _ in range(self.horizon):
            uniform = torch.rand(num, 1, dtype=torch.float64, generator=generator)
            action = (uniform > cumulative[state, :-1]).sum(-1) * alive
            steps.append((state, action, alive))
            alive = alive & (action != EOS)
            state = (NUM_WORDS * state + 1 + action) * alive
        return Trajectories(*(torch.stack(column, dim=1) for column in zip(*steps, strict=True)))
