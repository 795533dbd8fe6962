"""Several teachers of one vocabulary: Q-values that are averaged, or a teacher for each example."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from brim.errors import DataError, ModelError
from brim.examples import Example
from brim.models.backbone import Backbone, DecodingState, Prompts
from brim.models.features import Features
from brim.models.head import OutputHead
from brim.models.language_model import LanguageModel
from brim.models.settings import Centering, Decoding
from brim.models.teacher import Teacher
from brim.types import ActionValues, Batch, Rollout, join, merge

_Record = TypeVar("_Record")


class AveragedTeacher(LanguageModel):
    """Teachers whose logits are averaged: `q = Σ_i w_i q_i`.

    A mean of logits is the logits of one wide model, `[w_1 h_1, w_2 h_2, …] [W_1, W_2, …]ᵀ`. So
    this is a model like any other: it scores, it writes, and it shows its whole distribution, which
    is a geometric mean of theirs. The weights of their heads are held once more, side by side.

    Args:
        teachers: of one kind and one vocabulary, see `share_vocabulary`; to be used in this form
            only from now on.
        weights: positive; divided by their sum.

    Raises:
        ModelError: there are fewer than two teachers, or they are of both kinds.
        ValueError: there are not as many weights, or one is not positive.
    """

    def __init__(self, teachers: Sequence[LanguageModel], weights: Sequence[float]) -> None:
        if len(weights) != len(teachers) or not all(weight > 0 for weight in weights):
            raise ValueError("each teacher needs a weight above 0")
        if len(teachers) < 2 or len({model.is_encoder_decoder for model in teachers}) > 1:
            raise ModelError(
                "a mean is of two teachers or more, all encoder-decoder or all decoder-only"
            )
        vars(self).update(vars(teachers[0]))  # tokenizer, encoder and rules are those of all
        vars(self)["_modules"] = {"teachers": nn.ModuleList(teachers)}
        self.parts = [*teachers]
        self._wide: OutputHead | None = None
        self.weights = [weight / sum(weights) for weight in weights]
        self._backbone = _Beside(self.parts, self.weights)
        self._share_padding()

    @property
    def model(self) -> Any:
        """The first teacher's, for what all share."""
        return self.parts[0].model

    def exclude(
        self, tokens: Iterable[int], *, unshared: Iterable[int] = (), ends: Collection[int] = ()
    ) -> None:
        """Have none of them ever write these tokens; see `LanguageModel.exclude`."""
        tokens, unshared = [*tokens], [*unshared]
        for part in self.parts:
            part.exclude(tokens, unshared=unshared, ends=ends)
        first = self.parts[0]
        self.rules, self._num_rows, self._holes = first.rules, first._num_rows, first._holes
        self.eos_token_ids = first.eos_token_ids
        self._wide = None
        self._share_padding()

    def _share_padding(self) -> None:
        """Pad with what each has a row for: the first one's padding may be its own addition."""
        pad_ids = (part.pad_token_id for part in self.parts)
        known = (i for i in pad_ids if i not in self.encoder.unshared)
        self.pad_token_id = next(known, self.eos_token_ids[0])

    def features(
        self, rollout: Rollout, *, after: bool = False, kept: Tensor | None = None
    ) -> Features:
        """Return the hidden states of all, side by side; see `LanguageModel.features`."""
        found = super().features(rollout, after=after, kept=kept)
        dtype = found.head.weight.dtype
        following = None if found.after is None else found.after.to(dtype)
        return replace(found, hidden=found.hidden.to(dtype), after=following)

    def compile_layers(self) -> None:
        """Have `torch.compile` translate the layers of each."""
        for part in self.parts:
            part.compile_layers()
        self._compiled = True

    def _head(self) -> OutputHead:
        if self._wide is None or self._wide.weight.device != self.device:
            self._wide = _head_beside([part._head() for part in self.parts], self.weights)
        return self._wide


def _head_beside(heads: Sequence[OutputHead], weights: Sequence[float]) -> OutputHead:
    rows = heads[0].num_rows
    weight = torch.cat([head.weight[:rows] for head in heads], dim=1)
    biases = [w * h.bias for w, h in zip(weights, heads, strict=True) if h.bias is not None]
    return OutputHead(weight, torch.stack(biases).sum(0) if biases else None, rows)


class _Beside(Backbone):
    """Hidden states of several models, each times its weight and its head's scale."""

    def __init__(self, parts: Sequence[LanguageModel], weights: Sequence[float]) -> None:
        super().__init__(parts[0].model)
        self.parts = [part._backbone for part in parts]
        self.prompt_side = self.parts[0].prompt_side  # type: ignore[misc]
        self.factors = [w * part._scale for w, part in zip(weights, parts, strict=True)]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """(…, d_i) each -> (…, Σ d_i)."""
        return torch.cat([f * h for f, h in zip(self.factors, parts, strict=True)], dim=-1)

    def hidden(self, prompts: Prompts, completion_ids: Tensor, num_positions: int) -> Tensor:
        """See `Backbone.hidden`."""
        return self.join([p.hidden(prompts, completion_ids, num_positions) for p in self.parts])

    def start(self, prompts: Prompts, max_tokens: int) -> DecodingState:
        """See `Backbone.start`."""
        return _StatesBeside(self, [part.start(prompts, max_tokens) for part in self.parts])

    @property
    def num_positions(self) -> int | None:
        """Of the one with the fewest."""
        return min((n for p in self.parts if (n := p.num_positions) is not None), default=None)


class _StatesBeside(DecodingState):
    def __init__(self, backbone: _Beside, states: Sequence[DecodingState]) -> None:
        self._backbone, self._states = backbone, states
        self.hidden = backbone.join([state.hidden for state in states])

    def advance(self, inputs: Tensor) -> Tensor:
        return self._backbone.join([state.advance(inputs) for state in self._states])

    def keep(self, count: int, holes: Tensor, movers: Tensor) -> None:
        for state in self._states:
            state.keep(count, holes, movers)


class TeacherOfEach:
    """A teacher for each example, the one that `Example.teacher` names; a `Teacher`.

    What asks for a whole distribution is refused: the rows of one pass would have several.

    Args:
        teachers: by name, of one kind and one vocabulary.
    """

    def __init__(self, teachers: Mapping[str, Teacher]) -> None:
        self.teachers = dict(teachers)
        first = next(iter(self.teachers.values()))
        self.tokenizer, self.encoder, self.rules = first.tokenizer, first.encoder, first.rules
        self.eos_token_ids, self.is_encoder_decoder = first.eos_token_ids, first.is_encoder_decoder
        self.batch_tokens = first.batch_tokens
        self.encode, self.encode_completions = first.encode, first.encode_completions
        self.decode = first.decode

    @property
    def num_parameters(self) -> int | None:
        """Of all together; None where one does not say."""
        found = [teacher.num_parameters for teacher in self.teachers.values()]
        known = [number for number in found if number is not None]
        return sum(known) if len(known) == len(found) else None

    @property
    def returns_centering(self) -> Centering:
        """The logits themselves where all show them, else log-probabilities."""
        found = {teacher.returns_centering for teacher in self.teachers.values()}
        return "none" if found == {"none"} else "logsumexp"

    def exclude(
        self, tokens: Iterable[int], *, unshared: Iterable[int] = (), ends: Collection[int] = ()
    ) -> None:
        """Have none of them ever write these tokens; see `LanguageModel.exclude`."""
        tokens, unshared = [*tokens], [*unshared]
        for teacher in self.teachers.values():
            teacher.exclude(tokens, unshared=unshared, ends=ends)
        first = next(iter(self.teachers.values()))
        self.rules, self.eos_token_ids = first.rules, first.eos_token_ids

    @property
    def num_positions(self) -> int | None:
        """Of the one with the fewest."""
        found = (teacher.num_positions for teacher in self.teachers.values())
        return min((number for number in found if number is not None), default=None)

    def check_room(self, prompt_tokens: int, max_tokens: int) -> None:
        """Raise a ModelError unless each has positions for a prompt and a text behind it."""
        for teacher in self.teachers.values():
            teacher.check_room(prompt_tokens, max_tokens)

    def check_examples(self, examples: Sequence[Example]) -> None:
        """Check that each names a teacher that there is.

        Raises:
            DataError: one does not.
        """
        for example in examples:
            if example.teacher not in self.teachers:
                named = "names no teacher" if example.teacher is None else (
                    f"names the teacher {example.teacher!r}"
                )  # fmt: skip
                raise DataError(
                    f"example {example.id!r} {named}; there are {', '.join(self.teachers)}"
                )

    def map(self, rollout: Rollout, function: Callable[[Rollout], _Record]) -> _Record:
        """Return what `function` makes of the rows, those of each teacher by its own passes."""
        return self._by_teacher(rollout, lambda teacher, part: teacher.map(part, function))

    def action_values(
        self, rollout: Rollout, *, centering: Centering = "none", bootstrap: bool = False
    ) -> ActionValues:
        """Return the Q-values of each row by its own teacher."""
        return self._by_teacher(
            rollout,
            lambda teacher, part: teacher.action_values(
                part, centering=centering, bootstrap=bootstrap
            ),
        )

    def generate(self, batch: Batch, decoding: Decoding) -> Rollout:
        """Write a completion of each prompt by its own teacher."""
        parts = [
            (rows, self.teachers[name].generate(batch.select(rows), decoding))
            for name, rows in self._groups(batch).items()
        ]
        return merge(batch, parts, self.encoder.pad_token_id)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """No gradient, no dropout in any of them while the block runs."""
        with ExitStack() as stack:
            for teacher in self.teachers.values():
                stack.enter_context(teacher.evaluating())
            yield

    def _by_teacher(
        self, rollout: Rollout, function: Callable[[Teacher, Rollout], _Record]
    ) -> _Record:
        groups = self._groups(rollout.batch)
        parts = [
            function(self.teachers[name], rollout.select(rows)) for name, rows in groups.items()
        ]
        return join(parts, [*groups.values()])

    def _groups(self, batch: Batch) -> dict[str, list[int]]:
        """The rows of each teacher."""
        self.check_examples(batch.examples)
        groups: dict[str, list[int]] = {}
        for row, example in enumerate(batch.examples):
            groups.setdefault(str(example.teacher), []).append(row)
        return groups
