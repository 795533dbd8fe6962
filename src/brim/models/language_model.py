"""One class for students and teachers, encoder-decoder and decoder-only."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from brim.examples import Example
from brim.models.adapters import restore_weights
from brim.models.backbone import Backbone, DecoderOnly, EncoderDecoder, Prompts
from brim.models.decoding import (
    Hand,
    OnFinished,
    Written,
    generate_with_transformers,
    row_uniforms,
    write_completions,
    write_in_groups,
)
from brim.models.encoding import Encoder
from brim.models.features import Comparison, Features
from brim.models.generation_settings import exclude_tokens, generation_rules
from brim.models.head import OutputHead
from brim.models.head_checks import (
    check_decoder,
    check_same_head,
    head_weight,
    measure_scale,
    one_line,
    protect_head,
    resize_rows,
    start_token_id,
)
from brim.models.modes import compile_layers, evaluating
from brim.models.saving import save_folder
from brim.models.settings import SOFTMAX, Centering, Decoding, Distribution
from brim.models.tokenizers import check_writable, end_token_ids, rows_without_token, without_end
from brim.models.vllm import generate_with_vllm
from brim.types import ActionValues, Batch, Rollout, TokenStatistics

_Record = TypeVar("_Record")

# On two cores a pass of so many tokens is as fast, token by token, as a larger one.
BATCH_TOKENS = 8192


class LanguageModel(nn.Module):
    """A transformers model with its tokenizer, as a policy and as a Q-function.

    The policy is the softmax over the head's rows with a token that the generation settings let it
    write. Others are never sampled, never the best, without gradient.

    Attributes:
        returns_centering: of the Q-values of which an evaluation reports returns.
        encoder: between text and token ids.
        rules: what the model's generation settings say of its text.
        batch_tokens: tokens, padding included, of one pass of `map`.

    Raises:
        ModelError: the model has no output head, does more to its logits than the chunked head, is
            not autoregressive, does not fit the tokenizer, or cannot be run.
    """

    returns_centering: Centering = "none"

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.is_encoder_decoder = bool(model.config.is_encoder_decoder)
        with one_line(model):
            rows_without_token(tokenizer, len(head_weight(model)))
            check_decoder(model)
            self.eos_token_ids = end_token_ids(model, tokenizer)
            if not self.is_encoder_decoder:  # a prompt with an end would be an ended text
                tokenizer = without_end(tokenizer, self.eos_token_ids)
            self.model, self.tokenizer = model, tokenizer
            start_id = start_token_id(model) if self.is_encoder_decoder else None
            self.encoder = Encoder(tokenizer, self.eos_token_ids, start_id)
            self.pad_token_id = self.encoder.pad_token_id
            self._follow_rules()
            protect_head(model)
            self._backbone: Backbone = (
                DecoderOnly(model)
                if start_id is None
                else EncoderDecoder(model, (start_id, *self.rules.forced_start))
            )
            self._scale = measure_scale(self._backbone)
        self.batch_tokens, self._compiled, self.training = BATCH_TOKENS, False, model.training

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device  # type: ignore[no-any-return]

    @property
    def num_positions(self) -> int | None:
        """Tokens of the longest sequence that the model was made for; None where any will do."""
        return self._backbone.num_positions

    @property
    def num_parameters(self) -> int:
        """Parameters, shared ones counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def num_trainable(self) -> int:
        """Parameters that training changes: all of them, or those of the adapters."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    @property
    def excluded_rows(self) -> list[int]:
        """Rows of the output head that have no token, or one that is never written."""
        return [*self._holes, *range(self._num_rows, len(head_weight(self.model)))]

    def exclude(
        self, tokens: Iterable[int], *, unshared: Iterable[int] = (), ends: Collection[int] = ()
    ) -> None:
        """Never write these tokens, and have the generation settings say so, which are saved.

        The `unshared` ones, for which another model has no row, may be in no prompt either. The
        `ends`, at which another model's texts end, end this one's too.

        Raises:
            ModelError: one of them ends every target.
        """
        self.encoder.end_at(ends)
        self.eos_token_ids, num_rows = self.encoder.eos_token_ids, len(head_weight(self.model))
        exclude_tokens(self.model, (i for i in tokens if i < num_rows), self.eos_token_ids)
        self.encoder.unshared |= frozenset(unshared)
        self._follow_rules()

    def without(self, tokens: Iterable[int]) -> LanguageModel:
        """Return the model, its weights shared, as a policy that never writes these tokens either.

        Its generation settings, which are the model's own, do not say so.
        """
        view = copy.copy(self)
        view._holes = sorted({*self._holes, *(i for i in tokens if i < self._num_rows)})
        return view

    def _follow_rules(self) -> None:
        self.rules = self.encoder.rules = generation_rules(self.model, self.eos_token_ids)
        excluded = self.rules.excluded | self.encoder.unshared
        found = rows_without_token(self.tokenizer, len(head_weight(self.model)), excluded)
        self._num_rows, self._holes, rowless = found
        self.encoder.unshared |= rowless

    def encode(
        self,
        examples: Sequence[Example],
        *,
        max_tokens: int | None,
        seeds: Sequence[int] | None = None,
    ) -> Batch:
        """Token ids of the prompts of B examples, on the model's device.

        Longer prompts than `max_tokens` are truncated, see `Encoder.prompts`; `seeds` are those of
        the rows' random streams, by default 0 … B - 1.

        Raises:
            DataError: the chat template refuses an example's messages.
            ModelError: an example has messages and the tokenizer no chat template.
        """
        return self.encoder.batch(examples, max_tokens, seeds).to(self.device)

    def encode_completions(self, batch: Batch, texts: Sequence[str], *, max_tokens: int) -> Rollout:
        """The texts as completions of the batch's prompts, EOS appended.

        One of more than `max_tokens`, with EOS and what is forced, is `truncated` and has no EOS.
        Raises as `Encoder.completions`, and where `max_tokens` leaves no token to choose.
        """
        ids = self.encoder.completions(batch.examples, texts)
        return self.encoder.rollout(batch, ids, max_tokens)

    def encode_targets(self, batch: Batch, *, max_tokens: int) -> Rollout:
        """The batch's `Encoder.targets` as completions; raises as `encode_completions`."""
        ids, truncated = self.encoder.targets(batch.examples)
        return self.encoder.rollout(batch, ids, max_tokens, truncated)

    def decode(self, rollout: Rollout) -> list[str]:
        """The completions as text: all that was written but end, padding and decoder start."""
        rows = zip(rollout.completion_ids.tolist(), rollout.lengths.tolist(), strict=True)
        return self.encoder.texts([row[:length] for row, length in rows])

    def generate(
        self, batch: Batch, decoding: Decoding, *, on_finished: OnFinished | None = None
    ) -> Rollout:
        """Write a completion of each prompt, in evaluation mode and without gradient.

        With the engine `loop` each row draws from a stream of its own, seeded by `batch.seeds`: its
        text depends on no other row nor on any global generator (up to the rounding of matrix
        products of different shapes).

        What the generation settings force is written, counts for `decoding.max_tokens`, and is no
        part of the completion: an end that was forced leaves it `truncated`. `on_finished` gets
        rows that have ended, while others are still written.

        Raises:
            ModelError: the model has too few positions, `max_tokens` leaves no token to choose, or
                the engine cannot write for the model here.
        """
        limit = self.rules.num_chosen(decoding.max_tokens)
        decoding = decoding.model_copy(update={"max_tokens": limit})
        with self.evaluating():
            return write_in_groups(self._write, batch, decoding, self.pad_token_id, on_finished)

    def check_room(self, prompt_tokens: int, max_tokens: int) -> None:
        """Raise a ModelError unless there are positions for a prompt and a text behind it."""
        apart, together = max(prompt_tokens, max_tokens), prompt_tokens + max_tokens - 1
        self._backbone.check_length(apart if self.is_encoder_decoder else together)

    def features(
        self, rollout: Rollout, *, after: bool = False, kept: Tensor | None = None
    ) -> Features:
        """The hidden states that predict the rollout's tokens, before the output head.

        In the model's own mode and with gradient where gradients are on. With `after`, also those
        of the state behind each completion's last token. `kept` are (B, T, d) of an earlier call.

        Raises:
            ModelError: a token is one that the policy excludes, so that its logit is no number.
        """
        if kept is not None:  # where the rollout is: of the tokens all has been checked
            mask = rollout.mask
            return Features(kept[mask], self._head(), rollout.completion_ids[mask], mask)
        rollout = rollout.to(self.device)
        mask = rollout.mask
        token_ids = rollout.completion_ids[mask]
        check_writable(token_ids, self.tokenizer, self._num_rows, self._holes)
        longest = max(int(rollout.lengths.max()), 1)
        completion_ids = self._padded(rollout.completion_ids[:, :longest], mask[:, :longest])
        prompts = self._prompts(rollout.batch)
        with self.uncompiled() if torch.is_grad_enabled() else nullcontext():
            hidden = self._backbone.hidden(prompts, completion_ids, longest + after)
        rows = torch.arange(len(hidden), device=hidden.device)
        following = hidden[rows, rollout.lengths] if after else None
        hidden = hidden[:, :longest][mask[:, :longest]]
        return Features(hidden, self._head(), token_ids, mask, following, rollout.truncated)

    def forward(
        self,
        rollout: Rollout,
        *,
        distribution: Distribution = SOFTMAX,
        comparison: Comparison | None = None,
        chunk_tokens: int | None = None,
    ) -> TokenStatistics:
        """Log-probabilities of the rollout's tokens, with gradient, and the policy's entropy.

        Args:
            rollout: B completions.
            distribution: made of the logits; `Decoding.distribution`, for the policy that sampled.
            comparison: with a teacher's logits, `teacher.features(rollout).comparison(…)`.
            chunk_tokens: tokens that pass the output head at once; by default as memory allows.
        """
        return self.features(rollout).token_statistics(
            distribution=distribution, comparison=comparison, chunk_tokens=chunk_tokens
        )

    def map(self, rollout: Rollout, function: Callable[[Rollout], _Record]) -> _Record:
        """`rollout.map` by `batch_tokens`, in step with other processes that share the model."""
        return rollout.map(function, self.batch_tokens)

    def logprobs(self, rollout: Rollout) -> Tensor:
        """`log π(a_t | s_t)`, (B, T) float32 with gradient; 0 where the mask is False."""
        return self(rollout).logprobs  # type: ignore[no-any-return]

    def action_values(
        self, rollout: Rollout, *, centering: Centering = "none", bootstrap: bool = False
    ) -> ActionValues:
        """The logits as Q-values of the rollout's tokens, in evaluation mode without gradient.

        `centering` is the statistic of the logits at a step that is subtracted from both its
        values; it moves the return of that step alone (method: `q_centering`). `bootstrap` also
        values the state behind completions that were cut.
        """
        with self.evaluating():
            values = self.features(rollout, after=bootstrap).action_values(centering)
        return values.to(rollout.mask.device)

    def statistics(
        self,
        rollout: Rollout,
        *,
        distribution: Distribution = SOFTMAX,
        comparison: Comparison | None = None,
    ) -> TokenStatistics:
        """What `forward` gives, in evaluation mode without gradient."""
        with self.evaluating():
            features = self.features(rollout)
            return features.token_statistics(distribution=distribution, comparison=comparison)

    def gradient_norms(self, rollout: Rollout, *, distribution: Distribution = SOFTMAX) -> Tensor:
        """`‖∇ log π(a_t | s_t)‖²` in the output layer's weight, (B, T), in evaluation mode."""
        with self.evaluating():
            return self.features(rollout).gradient_norms(distribution=distribution)

    def evaluating(self) -> AbstractContextManager[None]:
        """No gradient, no dropout while the block runs."""
        return evaluating(self)

    def copy(self) -> LanguageModel:
        """An independent copy with the same weights.

        Raises:
            ModelError: the copy's output head differs.
        """
        clone = copy.deepcopy(self)
        check_same_head(clone.model, self.model)
        return clone

    def compile_layers(self) -> None:
        """Have `torch.compile` translate the layers, in place, for passes without gradient.

        Every kind of input (padded or not, cached or not) is a translation, made when first needed.
        Passes with gradient run as they are written: on a CPU those of T5 got slower.
        """
        compile_layers(self.model)
        self._compiled = True

    def uncompiled(self) -> AbstractContextManager[None]:
        """The layers as they are written while the block runs, whatever `compile_layers` did."""
        return torch.compiler.set_stance("force_eager") if self._compiled else nullcontext()

    def resize(self, num_rows: int) -> None:
        """Give embedding and output head `num_rows` rows each; new ones are the mean of the old.

        Raises:
            ModelError: a token would lose its row.
        """
        *_, rowless = rows_without_token(self.tokenizer, len(head_weight(self.model)))
        rows_without_token(self.tokenizer, num_rows, possible=rowless)
        resize_rows(self.model, num_rows)

    def save(
        self,
        directory: str | Path,
        *,
        resumable: bool = False,
        state_dict: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Write model and tokenizer so that `from_pretrained` and `load_model` read them.

        Plain transformers, 4 and 5, reads the same ids there and writes the same greedy tokens.
        Adapters are written merged into the weights; the live weights are not changed. `resumable`
        also writes what `restore` needs, the adapters as they are; `state_dict` has the weights of
        a `model` that holds only a part of them.

        Raises:
            ModelError: the head in the file is not the one in memory.
        """
        save_folder(
            Path(directory),
            self.model,
            self.tokenizer,
            state_dict,
            resumable=resumable,
            scaled=self._scale != 1,
            eos_token_ids=self.eos_token_ids,
            unused_rows=set(self.excluded_rows) - self.rules.excluded,
        )

    def restore(self, directory: str | Path, load: Callable[[Path], LanguageModel]) -> None:
        """Put what `save` wrote with `resumable` into this model, in place and bit for bit.

        `load` reads the model of a directory. Of a model with adapters only these are read.

        Raises:
            RunError: the adapters are missing or damaged, or belong to another model.
        """
        restore_weights(self.model, Path(directory), lambda path: load(path).model)

    def _head(self) -> OutputHead:
        return OutputHead.of(self.model, self._num_rows, self._holes, self._scale)

    def _write(self, batch: Batch, decoding: Decoding, hand: Hand) -> Written:
        if decoding.engine != "loop":
            write = generate_with_vllm if decoding.engine == "vllm" else generate_with_transformers
            prompt = int(batch.prompt_mask.sum(dim=1).max())
            self.check_room(prompt, decoding.max_tokens + self.rules.num_forced)
            return write(self, batch, decoding)
        state = self._backbone.start(self._prompts(batch), decoding.max_tokens)
        uniforms = row_uniforms(batch.seeds, decoding.max_tokens).to(self.device)
        eos_ids = torch.tensor(self.eos_token_ids, device=self.device)
        return write_completions(state, self._head(), uniforms, decoding, eos_ids, hand=hand)

    def _prompts(self, batch: Batch) -> Prompts:
        ids = self._padded(batch.prompt_ids, batch.prompt_mask)
        return Prompts.of(replace(batch, prompt_ids=ids), self._backbone.prompt_side)

    def _padded(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The ids with this model's padding, for the other one's of a pair may be unknown to it."""
        return ids.masked_fill(~mask, self.pad_token_id) if self.encoder.unshared else ids
