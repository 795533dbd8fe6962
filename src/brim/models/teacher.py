"""What is asked of a teacher, wherever it is: the two numbers of each token, and text.

A `LanguageModel` is one. So is a model behind a server, which may show two numbers a token and no
more; what needs its whole distribution asks `whole` for it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar, cast

from transformers import PreTrainedTokenizerBase

from brim.errors import ModelError
from brim.examples import Example
from brim.models.encoding import Encoder
from brim.models.generation_settings import GenerationRules
from brim.models.language_model import LanguageModel
from brim.models.settings import Centering, Decoding
from brim.types import ActionValues, Batch, Rollout

_Record = TypeVar("_Record")


class Teacher(Protocol):
    """A model that scores what a student wrote, and writes text itself.

    Attributes:
        tokenizer, encoder, rules, eos_token_ids, is_encoder_decoder: as of a `LanguageModel`.
        batch_tokens: tokens, padding included, of one pass of `map`.
    """

    tokenizer: PreTrainedTokenizerBase
    encoder: Encoder
    rules: GenerationRules
    eos_token_ids: tuple[int, ...]
    is_encoder_decoder: bool
    batch_tokens: int

    @property
    def num_parameters(self) -> int | None:
        """Parameters, shared ones counted once; None where that is not known."""

    @property
    def returns_centering(self) -> Centering:
        """Of the Q-values of which an evaluation reports returns: `none` where they can be had."""
        ...

    @property
    def num_positions(self) -> int | None:
        """Tokens of the longest sequence that the model was made for; None where any will do."""

    def encode(
        self,
        examples: Sequence[Example],
        *,
        max_tokens: int | None,
        seeds: Sequence[int] | None = None,
    ) -> Batch:
        """Return token ids of prompts; see `LanguageModel.encode`."""
        ...

    def encode_completions(self, batch: Batch, texts: Sequence[str], *, max_tokens: int) -> Rollout:
        """Return texts as completions; see `LanguageModel.encode_completions`."""
        ...

    def decode(self, rollout: Rollout) -> list[str]:
        """Return the completions as text."""
        ...

    def generate(self, batch: Batch, decoding: Decoding) -> Rollout:
        """Write a completion of each prompt; see `LanguageModel.generate`."""
        ...

    def exclude(
        self, tokens: Iterable[int], *, unshared: Iterable[int] = (), ends: Collection[int] = ()
    ) -> None:
        """Have these tokens never written and never the best; see `LanguageModel.exclude`."""

    def check_room(self, prompt_tokens: int, max_tokens: int) -> None:
        """Raise a ModelError unless there are positions for a prompt and a text behind it."""

    def map(self, rollout: Rollout, function: Callable[[Rollout], _Record]) -> _Record:
        """Return `rollout.map(function, batch_tokens)`, by as many passes as it takes."""
        ...

    def action_values(
        self, rollout: Rollout, *, centering: Centering = "none", bootstrap: bool = False
    ) -> ActionValues:
        """Return the Q-values of the rollout's tokens; see `LanguageModel.action_values`."""
        ...

    def evaluating(self) -> AbstractContextManager[None]:
        """No gradient, no dropout while the block runs."""
        ...


def whole(teacher: Teacher) -> LanguageModel:
    """Return a teacher whose logits can be had, all of them.

    Raises:
        ModelError: it shows two numbers a token only. A run refuses such settings before training,
            see `MethodConfig.whole_distribution`.
    """
    if not hasattr(teacher, "features"):
        raise ModelError(
            "this teacher gives two numbers a token, and the method needs its whole distribution; "
            "choose llmr, brim or anchored with immediate=sampled and expected_regrets=false"
        )
    return cast(LanguageModel, teacher)
