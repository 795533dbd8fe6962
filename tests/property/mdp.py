"""A text-generation MDP small enough to enumerate, with a teacher table and a tabular student.

Two words and an EOS; a completion ends with the EOS or is cut after `horizon` tokens. A state is a
prefix of words, numbered like a heap: the empty prefix is 0, writing word w in state s leads to
2s + 1 + w. Teacher and student are tables of logits of shape (num_states, 3), one row a prefix.

`TabularModel` makes a table what the objectives take for a `LanguageModel`, in float64, so that
their own code can be run on every completion there is.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from brim.examples import Example
from brim.models import SOFTMAX, Comparison, Decoding, Distribution, Features, LanguageModel
from brim.models.head import OutputHead, keep_likeliest
from brim.types import ActionValues, Batch, Rollout, TokenStatistics

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

    def rollout(self, batch: Batch | None = None) -> Rollout:
        """The same completions as the objectives see them."""
        last = self.actions.gather(1, self.mask.sum(1, keepdim=True) - 1).squeeze(1)
        batch = make_batch(len(self.mask)) if batch is None else batch
        return Rollout(batch, self.actions, self.mask, truncated=last != EOS)


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

    def sample(
        self, num: int, generator: torch.Generator, student: Tensor | None = None
    ) -> Trajectories:
        """`num` completions written by the student."""
        cumulative = (self.student if student is None else student).softmax(-1).cumsum(-1)
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


def make_batch(num_rows: int, seed: int = 0) -> Batch:
    """The empty prompt, `num_rows` times."""
    return Batch(
        examples=tuple(Example(f"{i}", "prompt") for i in range(num_rows)),
        prompt_ids=torch.zeros(num_rows, 1, dtype=torch.long),
        prompt_mask=torch.ones(num_rows, 1, dtype=torch.bool),
        seeds=tuple(range(seed * num_rows, (seed + 1) * num_rows)),
    )


def at(logits: Tensor, distribution: Distribution, written: Tensor | None = None) -> Tensor:
    """The logits whose softmax is the distribution."""
    tempered = logits / distribution.temperature
    return keep_likeliest(tempered, distribution.top_k, distribution.top_p, written)


class TabularModel(LanguageModel):
    """A table of logits with all that objectives ask of a model; its parameter is the table.

    `chunked` has the package's own head read the table, in float32, a chunk of tokens at a time.
    """

    def __init__(self, table: Tensor, mdp: PrefixMDP, *, chunked: bool = False):
        nn.Module.__init__(self)
        self.batch_tokens, self.chunked, self.eos_token_ids = 8192, chunked, (EOS,)
        self.table, self.mdp = nn.Parameter(table.detach().clone()), mdp

    def generate(self, batch: Batch, decoding: Decoding) -> Rollout:
        generator = torch.Generator().manual_seed(batch.seeds[0])
        logits = at(self.table.detach(), decoding.distribution)
        return self.mdp.sample(len(batch), generator, logits).rollout(batch)

    def features(
        self, rollout: Rollout, *, after: bool = False, kept: Tensor | None = None
    ) -> Features:
        states = [torch.zeros_like(rollout.mask[:, 0], dtype=torch.long)]
        for action in rollout.completion_ids[:, :-1].unbind(1):
            states.append(NUM_WORDS * states[-1] + 1 + action)
        written = torch.stack(states, 1)[rollout.mask]
        tokens = rollout.completion_ids[rollout.mask]
        if self.chunked:
            features = torch.nn.functional.one_hot(written, self.mdp.num_states).double()
            features = features if kept is None else kept[rollout.mask]
            head = OutputHead(self.table.t(), None, NUM_WORDS + 1)
            return Features(features, head, tokens, rollout.mask)
        logits = self.table[written] if kept is None else kept[rollout.mask]
        return TabularFeatures(logits, None, tokens, rollout.mask)

    def copy(self) -> "TabularModel":
        return copy.deepcopy(self)


class TabularFeatures(Features):
    """The features of the tokens are their logits already."""

    def to(self, device) -> "TabularFeatures":
        return self

    def token_statistics(
        self, *, distribution=SOFTMAX, comparison=None, chunk_tokens=None
    ) -> TokenStatistics:
        logits = at(self.hidden, distribution, self.token_ids)
        logprobs = logits.log_softmax(-1)
        taken = logprobs.gather(1, self.token_ids[:, None]).squeeze(1)
        entropy = -(logprobs.exp() * logprobs).sum(-1).detach()
        compared = None
        if comparison is not None:
            values = comparison.function(logits, comparison.hidden, *comparison.arguments)
            compared = self.scatter(values)
        return TokenStatistics(self.scatter(taken), self.scatter(entropy), compared)

    def gradient_norms(self, *, distribution=SOFTMAX) -> Tensor:
        logits = at(self.hidden, distribution, self.token_ids)
        gradients = torch.zeros_like(logits).scatter(1, self.token_ids[:, None], 1.0)
        gradients = (gradients - logits.softmax(-1)) / distribution.temperature
        return self.scatter(gradients.square().sum(-1))

    def comparison(self, function, *arguments, temperature=1.0) -> Comparison:
        tokens = tuple(argument[self.mask] for argument in arguments)
        return Comparison(function, self.hidden / temperature, None, tokens)

    def action_values(self, centering="none") -> ActionValues:
        center = {
            "none": torch.zeros_like(self.hidden[:, :1]),
            "mean": self.hidden.mean(-1, keepdim=True),
            "max": self.hidden.amax(-1, keepdim=True),
            "logsumexp": self.hidden.logsumexp(-1, keepdim=True),
        }[centering]
        values = self.hidden - center
        logprobs = self.hidden.log_softmax(-1)
        taken, logprob = (
            x.gather(1, self.token_ids[:, None]).squeeze(1) for x in (values, logprobs)
        )
        best = values.amax(-1)
        return ActionValues(self.scatter(taken), self.scatter(best), self.scatter(logprob))


def gradients_by_row(objective, rollout: Rollout, student: TabularModel, teacher=None) -> Tensor:
    """(N, num_states, 3): minus the gradient of the objective's loss on each completion alone."""
    gradients = []
    for row in (rollout.select([i]) for i in range(len(rollout))):
        loss = objective.loss(student, row, teacher).loss
        gradients.append(-torch.autograd.grad(loss, student.table)[0])
    return torch.stack(gradients)


def expectation(probabilities: Tensor, gradients: Tensor) -> tuple[Tensor, float]:
    """Mean of the completions' gradients, and their variance, summed over its components."""
    mean = torch.einsum("n,nsa->sa", probabilities, gradients)
    return mean, float(probabilities @ (gradients - mean).square().sum((1, 2)))
