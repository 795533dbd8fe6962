"""One class for students and teachers, encoder-decoder and decoder-only."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from brim.errors import ModelError, RunError
from brim.examples import Example
from brim.models.adapters import (
    ADAPTERS,
    has_adapters,
    load_adapters,
    merged_state_dict,
    save_adapters,
)
from brim.models.backbone import Backbone, DecoderOnly, EncoderDecoder, Prompts
from brim.models.decoding import Decoding, row_uniforms, write_completions
from brim.models.encoding import Encoder, pad
from brim.models.features import Comparison, Reading
from brim.models.generate import generate_with_transformers
from brim.models.generation_settings import exclude_tokens, generation_rules
from brim.models.head import EXCLUDED, SOFTMAX, Centering, Distribution, OutputHead
from brim.models.head_checks import (
    check_decoder,
    check_same_head,
    check_stored_head,
    head_weight,
    measure_scale,
    one_line,
    protect_head,
    resize_rows,
    start_token_id,
)
from brim.models.saving import save_folder
from brim.models.tokenizers import end_token_ids, rows_without_token, without_end
from brim.models.vllm import generate_with_vllm
from brim.support.bucketing import length_buckets
from brim.types import ActionValues, Batch, Rollout, TokenStatistics

_Record = TypeVar("_Record")

# On two cores a pass of so many tokens is as fast, token by token, as a larger one.
BATCH_TOKENS = 8192

# Kinds of passes that are compiled; what exceeds them is run as it is written.
TRANSLATIONS = 32


class LanguageModel(nn.Module):
    """A transformers model with its tokenizer, as a policy and as a Q-function.

    The policy is the softmax over the rows of the output head that have a token which the model's
    generation settings let it write; all other rows are never sampled, never the best, and get no
    gradient.

    Args:
        model: a sequence-to-sequence or causal language model of transformers.
        tokenizer: the tokenizer it was trained with.

    Attributes:
        encoder: between text and token ids.
        rules: what the model's generation settings say of its text.
        batch_tokens: tokens, padding included, of one pass over a rollout without gradient, for
            those who ask with `rollout.map`.

    Raises:
        ModelError: the model has no output head, does something to its logits that the chunked
            head does not, is not autoregressive, does not fit the tokenizer, or cannot be run.
    """

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
            pad_id = tokenizer.pad_token_id
            self.pad_token_id: int = self.eos_token_ids[0] if pad_id is None else pad_id
            start_id = start_token_id(model) if self.is_encoder_decoder else None
            self.encoder = Encoder(tokenizer, self.eos_token_ids, start_id)
            self.rules = generation_rules(model, self.eos_token_ids)
            self._follow_rules()
            protect_head(model)
            self._backbone: Backbone = (
                DecoderOnly(model)
                if start_id is None
                else EncoderDecoder(model, (start_id, *self.rules.forced_start))
            )
            self._scale = measure_scale(self._backbone)
        self.batch_tokens, self._compiled = BATCH_TOKENS, False
        self.training = model.training

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

    def exclude(self, tokens: Iterable[int], *, unshared: Iterable[int] = ()) -> None:
        """Never write these tokens, and have the generation settings say so, which are saved.

        Args:
            tokens: their ids.
            unshared: those of them that may stand in no prompt either, for another model that is
                to read it does not know them.

        Raises:
            ModelError: one of them ends every target.
        """
        num_rows = len(head_weight(self.model))
        exclude_tokens(self.model, (i for i in tokens if i < num_rows), self.eos_token_ids)
        self.encoder.unshared = frozenset(unshared)
        self.rules = generation_rules(self.model, self.eos_token_ids)
        self._follow_rules()

    def _follow_rules(self) -> None:
        self._num_rows, self._holes = rows_without_token(
            self.tokenizer, len(head_weight(self.model)), self.rules.excluded
        )
        self.encoder.rules = self.rules

    def encode(
        self,
        examples: Sequence[Example],
        *,
        max_tokens: int | None,
        seeds: Sequence[int] | None = None,
    ) -> Batch:
        """Token ids of the examples' prompts, on the model's device.

        A prompt longer than `max_tokens` loses the end of its `Example.field`, a chat that of its
        longest message. Where there is neither, or the rest alone is too long, it loses its end
        before an encoder (the EOS is kept) and its beginning before a decoder-only model (the BOS
        is kept). The batch counts all of them.

        Args:
            examples: B rows; those with messages are rendered by the chat template.
            max_tokens: limit of a prompt, or None.
            seeds: B seeds of the rows' random streams, by default 0 … B - 1.

        Raises:
            DataError: the chat template refuses an example's messages.
            ModelError: an example has messages and the tokenizer no chat template.
        """
        ids, num_cut = self.encoder.prompts(examples, max_tokens)
        prompt_ids, prompt_mask = pad(ids, self.pad_token_id, self._backbone.prompt_side)
        return Batch(
            examples=tuple(examples),
            prompt_ids=prompt_ids.to(self.device),
            prompt_mask=prompt_mask.to(self.device),
            seeds=tuple(range(len(examples)) if seeds is None else seeds),
            num_truncated_prompts=num_cut,
        )

    def encode_completions(self, batch: Batch, texts: Sequence[str], *, max_tokens: int) -> Rollout:
        """The texts as completions of the batch's prompts, EOS appended.

        One longer than `max_tokens`, EOS and what the generation settings force included, is cut:
        it is `truncated` and has no EOS.

        Raises:
            DataError: a text spells out an end-of-sequence token before its end, or holds a token
                that is never written.
            ModelError: the tokenizer begins texts with another token than the model, or
                `max_tokens` leaves none to choose.
        """
        ids = self.encoder.completions(batch.examples, texts)
        return self._completed(batch, ids, [False] * len(ids), max_tokens)

    def encode_targets(self, batch: Batch, *, max_tokens: int) -> Rollout:
        """What the batch's examples have to teach, as completions of their prompts.

        Of an example that another model answered these are exactly the tokens that it wrote
        (`Example.target`), with an end only if it wrote one; of any other one the first reference,
        as `encode_completions` reads it.

        Raises:
            DataError: as `encode_completions`.
            ModelError: as `encode_completions`.
        """
        plain = [example for example in batch.examples if example.target is None]
        texts = iter(self.encoder.completions(plain, [row.references[0] for row in plain]))
        targets = [example.target for example in batch.examples]
        ids = [next(texts) if target is None else target.token_ids for target in targets]
        cut = [target is not None and target.truncated for target in targets]
        return self._completed(batch, ids, cut, max_tokens)

    def _completed(
        self, batch: Batch, rows: Sequence[Sequence[int]], cut: Sequence[bool], max_tokens: int
    ) -> Rollout:
        """Completions of these ids, `cut` before they came here or at `max_tokens`."""
        max_tokens = self.rules.num_chosen(max_tokens)
        ids, mask = pad([row[:max_tokens] for row in rows], self.pad_token_id, "right")
        truncated = [was or len(row) > max_tokens for row, was in zip(rows, cut, strict=True)]
        device = self.device
        return Rollout(
            batch, ids.to(device), mask.to(device), torch.tensor(truncated, device=device)
        )

    def decode(self, rollout: Rollout) -> list[str]:
        """The completions as text: all that was written but end, padding and decoder start."""
        rows = zip(rollout.completion_ids.tolist(), rollout.lengths.tolist(), strict=True)
        return self.encoder.texts([row[:length] for row, length in rows])

    def generate(self, batch: Batch, decoding: Decoding) -> Rollout:
        """Write a completion of each prompt, in evaluation mode and without gradient.

        Each row draws from a stream of its own, seeded by `batch.seeds`: its text does not depend
        on the rest of the batch nor on any global generator (up to the rounding of matrix products
        of different shapes). Rows of similar prompt length are decoded together. That is
        the engine `loop`; the others keep less of it, see `Decoding`.

        What the generation settings force is written, counts for `decoding.max_tokens`, and is no
        part of the completion: an end that was forced leaves it `truncated`.

        Raises:
            ModelError: the model has too few positions, `max_tokens` leaves no token to choose, or
                the engine cannot write for the model here.
        """
        device = self.device
        decoding = replace(decoding, max_tokens=self.rules.num_chosen(decoding.max_tokens))
        prompt_lengths = batch.prompt_mask.sum(dim=1).tolist()
        limit = max(1, decoding.batch_tokens // decoding.num_beams)
        # One more pass costs as many steps as the longest completion: it is hardly ever worth it.
        groups = length_buckets(
            prompt_lengths, [decoding.max_tokens] * len(batch), limit, overhead=limit
        )
        if decoding.engine == "vllm":  # which has a schedule of its own
            groups = [list(range(len(batch)))]
        ids = torch.empty(len(batch), decoding.max_tokens, dtype=torch.long, device=device)
        lengths = torch.empty(len(batch), dtype=torch.long, device=device)
        truncated = torch.empty(len(batch), dtype=torch.bool, device=device)
        with self.evaluating():
            for rows in groups:
                written, lengths[rows], truncated[rows] = self._write(batch.select(rows), decoding)
                ids[rows, : written.shape[1]] = written
        longest = int(lengths.max())
        mask = torch.arange(longest, device=device) < lengths[:, None]
        completion_ids = ids[:, :longest].masked_fill(~mask, self.pad_token_id)
        return Rollout(batch, completion_ids, mask, truncated)

    def check_room(self, prompt_tokens: int, max_tokens: int) -> None:
        """Check that the model has positions for a prompt and what may be written behind it.

        Raises:
            ModelError: it has fewer.
        """
        self._backbone.check_length(
            max(prompt_tokens, max_tokens)
            if self.is_encoder_decoder
            else prompt_tokens + max_tokens - 1
        )

    def read(self, rollout: Rollout, *, after: bool = False) -> Reading:
        """The features that predict the rollout's tokens, before the output head.

        In the model's own mode and with gradient where gradients are on.

        Args:
            rollout: B completions, of whoever wrote them.
            after: also those of the state behind each completion's last token.

        Raises:
            ModelError: a token is one that the policy excludes, so that its logit is no number.
        """
        rollout = rollout.to(self.device)
        mask = rollout.mask
        token_ids = rollout.completion_ids[mask]
        self._check_writable(token_ids)
        longest = max(int(rollout.lengths.max()), 1)
        completion_ids = self._padded(rollout.completion_ids[:, :longest], mask[:, :longest])
        prompts = self._prompts(rollout.batch)
        with self.uncompiled() if torch.is_grad_enabled() else nullcontext():
            hidden = self._backbone.hidden(prompts, completion_ids, longest + after)
        rows = torch.arange(len(hidden), device=hidden.device)
        return Reading(
            features=hidden[:, :longest][mask[:, :longest]],
            head=self._head(),
            token_ids=token_ids,
            mask=mask,
            after=hidden[rows, rollout.lengths] if after else None,
            truncated=rollout.truncated,
        )

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
            rollout: B completions, of whoever wrote them.
            distribution: made of the logits; `Decoding.distribution`, for the policy that sampled.
            comparison: with a teacher's logits along the same tokens, `teacher.read(rollout)`.
            chunk_tokens: tokens that pass the output head at once; by default what keeps the
                logits in memory under 32 MiB, in a comparison all that is made of them under 224.
        """
        return self.read(rollout).token_statistics(
            distribution=distribution, comparison=comparison, chunk_tokens=chunk_tokens
        )

    def map(self, rollout: Rollout, function: Callable[[Rollout], _Record]) -> _Record:
        """`rollout.map` with passes as large as `batch_tokens` allows, in step with others.

        Of a model whose weights several processes share (`brim.training.sharding`), all of them
        must call it equally often.
        """
        return rollout.map(function, self.batch_tokens)

    def logprobs(self, rollout: Rollout) -> Tensor:
        """`log π(a_t | s_t)`, (B, T) float32 with gradient; 0 where the mask is False."""
        return self(rollout).logprobs  # type: ignore[no-any-return]

    def action_values(
        self, rollout: Rollout, *, centering: Centering = "none", bootstrap: bool = False
    ) -> ActionValues:
        """The logits as Q-values of the rollout's tokens, in evaluation mode without gradient.

        Args:
            rollout: B completions, of whoever wrote them.
            centering: the statistic of the logits at a step that is subtracted from both its
                values; it moves the return of that step alone (method: `q_centering`).
            bootstrap: also value the state behind completions that were cut.
        """
        with self.evaluating():
            values = self.read(rollout, after=bootstrap).action_values(centering)
        return values.to(rollout.mask.device)

    def measure(
        self,
        rollout: Rollout,
        *,
        distribution: Distribution = SOFTMAX,
        comparison: Comparison | None = None,
    ) -> TokenStatistics:
        """What `forward` gives, in evaluation mode without gradient."""
        with self.evaluating():
            return self.read(rollout).token_statistics(
                distribution=distribution, comparison=comparison
            )

    def gradient_norms(self, rollout: Rollout, *, distribution: Distribution = SOFTMAX) -> Tensor:
        """`‖∇ log π(a_t | s_t)‖²` with respect to the output layer, (B, T) float32.

        In evaluation mode without gradient; 0 where the mask is False.
        """
        with self.evaluating():
            return self.read(rollout).gradient_norms(distribution=distribution)

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

        A rollout and a pass of a teacher are a translation each, made when it is first needed, and
        so is every kind of input (padded or not, cached or not). Sizes are not: those are left
        open. Passes with gradient run as they are written: on a CPU those of T5 got slower.
        """
        settings: dict[str, Any] = {"dynamic": True}
        if "recompile_limit" in inspect.signature(torch.compile).parameters:
            settings["recompile_limit"] = TRANSLATIONS
        self.model.get_decoder().compile(**settings)
        if self.is_encoder_decoder:
            self.model.get_encoder().compile(**settings)
        self._compiled = True

    def uncompiled(self) -> AbstractContextManager[None]:
        """The layers as they are written while the block runs, whatever `compile_layers` did."""
        return torch.compiler.set_stance("force_eager") if self._compiled else nullcontext()

    def resize(self, num_rows: int) -> None:
        """Give embedding and output head `num_rows` rows each; new ones are the mean of the old.

        Raises:
            ModelError: a token would lose its row.
        """
        rows_without_token(self.tokenizer, num_rows)
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
        Adapters are written merged into the weights; the live weights are not changed.

        Args:
            directory: made if need be.
            resumable: also write what `restore` needs, the adapters as they are.
            state_dict: the weights of `model`, where it holds only a part of them.

        Raises:
            ModelError: the head in the file is not the one in memory.
        """
        adapted = has_adapters(self.model)
        if adapted:
            state_dict = merged_state_dict(self.model)
        save_folder(
            Path(directory),
            self.model,
            self.tokenizer,
            state_dict,
            scaled=self._scale != 1,
            eos_token_ids=self.eos_token_ids,
            unused_rows=set(self.excluded_rows) - self.rules.excluded,
        )
        check_stored_head(self.model, Path(directory), state_dict)
        if adapted and resumable:
            save_adapters(self.model, Path(directory))

    def restore(self, directory: str | Path, load: Callable[[Path], LanguageModel]) -> None:
        """Put the weights of a checkpoint into this model, in place and bit for bit.

        Of a model with adapters only these are read: its frozen weights are what it began with.

        Args:
            directory: what `save` wrote with `resumable`.
            load: reads the model of a directory.

        Raises:
            RunError: the adapters in the directory are missing or damaged, or belong to another
                model than this one.
        """
        path = Path(directory)
        if has_adapters(self.model):
            load_adapters(self.model, path)
        elif (path / ADAPTERS).exists():
            raise RunError(f"{path}: is of a model with adapters; add them to this one first")
        else:
            self.model.load_state_dict(load(path).model.state_dict())

    def _check_writable(self, token_ids: Tensor) -> None:
        unknown = token_ids >= self._num_rows
        if self._holes:
            unknown |= torch.isin(token_ids, torch.tensor(self._holes, device=token_ids.device))
        if unknown.any():
            token = int(token_ids[unknown][0])
            raise ModelError(
                f"a completion holds token {token} ({self.tokenizer.convert_ids_to_tokens(token)}),"
                " which this model never writes; brim.models.share_vocabulary has two models "
                "exclude the same tokens"
            )

    def _head(self) -> OutputHead:
        head = self.model.get_output_embeddings()
        bias = getattr(head, "bias", None)
        added = getattr(self.model, "final_logits_bias", None)  # BART and Marian
        if added is not None:
            bias = added[0] if bias is None else bias + added[0]
        if bias is not None:
            bias = bias[: self._num_rows].float()
        if self._holes:
            excluded = torch.zeros(self._num_rows, device=self.device)
            excluded[self._holes] = EXCLUDED
            bias = excluded if bias is None else bias + excluded
        return OutputHead(head.weight, bias, self._num_rows, self._scale)

    def _write(self, batch: Batch, decoding: Decoding) -> tuple[Tensor, Tensor, Tensor]:
        if decoding.engine != "loop":
            write = generate_with_vllm if decoding.engine == "vllm" else generate_with_transformers
            prompt = int(batch.prompt_mask.sum(dim=1).max())
            self.check_room(prompt, decoding.max_tokens + self.rules.num_forced)
            return write(self, batch, decoding)
        state = self._backbone.start(self._prompts(batch), decoding.max_tokens)
        uniforms = row_uniforms(batch.seeds, decoding.max_tokens).to(self.device)
        head = self._head()
        eos_ids = torch.tensor(self.eos_token_ids, device=self.device)
        return write_completions(state, head, uniforms, decoding, eos_ids)

    def _padded(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The ids with this model's padding, for the other one's of a pair may be unknown to it."""
        return ids.masked_fill(~mask, self.pad_token_id) if self.encoder.unshared else ids

    def _prompts(self, batch: Batch) -> Prompts:
        """The batch's prompts, each once, without the padding that all of them share."""
        width = int(batch.prompt_mask.sum(dim=1).max())
        left = self._backbone.prompt_side == "left"
        columns = slice(-width, None) if left else slice(width)
        mask = batch.prompt_mask[:, columns]
        ids = self._padded(batch.prompt_ids[:, columns], mask)
        numbers: dict[int, int] = {}  # of the distinct examples, in order of appearance
        rows = [numbers.setdefault(id(example), len(numbers)) for example in batch.examples]
        if len(numbers) == len(rows):
            return Prompts(ids, mask)
        index = torch.tensor(rows, device=ids.device)
        first = [rows.index(number) for number in range(len(numbers))]
        return Prompts(ids[first], mask[first], index)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """No gradient, no dropout while the block runs; each submodule's mode is restored."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part in training:
            part.training = True
