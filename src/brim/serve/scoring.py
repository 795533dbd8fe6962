"""What is asked of a served model: numbers of tokens, from one chunked pass over its head; text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from brim.errors import NonFiniteError
from brim.examples import Example
from brim.models import Decoding, LanguageModel
from brim.models.encoding import pad
from brim.models.head import EXCLUDED, OutputHead
from brim.serve.batching import Row
from brim.types import Batch, Rollout


@dataclass(frozen=True, slots=True)
class Numbers:
    """What a model says of n tokens, on the CPU; the logits themselves are not kept.

    Attributes:
        values: (n, 4) float32, the `VALUES`: the logit of the token that was written, the largest
            logit, and logsumexp and mean of the logits, over the rows that may be written.
        ranks: (n,) int64, the token's place among the logits, 1 for the largest; 0 where no places
            were asked for.
        top_ids: (n, m) int64, the tokens of the largest logits, in order.
        top_logits: (n, m) float32.
    """

    values: Tensor
    ranks: Tensor
    top_ids: Tensor
    top_logits: Tensor

    def rows(self, places: slice) -> Numbers:
        """Those of some of the tokens."""
        kept = (self.values, self.ranks, self.top_ids, self.top_logits)
        return Numbers(*(one[places] for one in kept))


@dataclass(frozen=True, slots=True)
class Score:
    """Numbers of every token of a row's completion.

    Attributes:
        excluded: tokens that the policy does not write, beside those of the model.
        after: also those of the state behind the last token, as one token more; its `taken` and
            rank mean nothing.
        top: m, how many of the largest logits are kept; None for no places among them either.
    """

    excluded: frozenset[int] = frozenset()
    after: bool = False
    top: int | None = None

    def room(self, row: Row) -> int:
        """See `Question.room`."""
        return len(row.completion) + self.after

    def overhead(self, batch_tokens: int) -> int | None:
        """See `Question.overhead`."""
        return None

    def answer(self, model: LanguageModel, rows: Sequence[Row]) -> list[Numbers]:
        """Return the numbers of each row.

        Raises:
            ModelError: a token is one that the policy excludes.
            NonFiniteError: the model's logits are not finite.
        """
        model = model.without(self.excluded)
        ids, mask = pad([row.completion for row in rows], model.pad_token_id, "right")
        cut = torch.ones(len(rows), dtype=torch.bool)
        rollout = Rollout(make_batch(model, rows), ids.to(model.device), mask, cut)
        with model.evaluating():
            features = model.features(rollout, after=self.after)
        hidden, token_ids = features.hidden, features.token_ids
        if features.after is not None:
            hidden = torch.cat([hidden, features.after])
            token_ids = torch.cat([token_ids, token_ids.new_zeros(len(rows))])
        numbers = head_numbers(hidden, features.head, token_ids, self.top)
        ends = mask.sum(dim=1).cumsum(0).tolist()
        parts = [numbers.rows(slice(*ends)) for ends in zip([0, *ends], ends, strict=False)]
        if not self.after:
            return parts
        behind = [numbers.rows(slice(i, i + 1)) for i in range(ends[-1], len(numbers.values))]
        return [_join(part, end) for part, end in zip(parts, behind, strict=True)]


@dataclass(frozen=True, slots=True)
class Text:
    """A completion: its tokens, end included, and whether it was cut at the limit."""

    token_ids: list[int]
    truncated: bool


@dataclass(frozen=True, slots=True)
class Write:
    """A completion of a row's prompt, drawn from the row's own stream where it is sampled.

    Attributes:
        decoding: the strategy and the limit, which counts what the model is forced to write.
        excluded: tokens that are not written, beside those of the model.
        stops: tokens that end a text, beside those of the model.
    """

    decoding: Decoding
    excluded: frozenset[int] = frozenset()
    stops: frozenset[int] = frozenset()

    def room(self, row: Row) -> int:
        """See `Question.room`."""
        return self.decoding.max_tokens

    def overhead(self, batch_tokens: int) -> int | None:
        """See `Question.overhead`: a pass is as many steps as its longest text has tokens."""
        return batch_tokens

    def answer(self, model: LanguageModel, rows: Sequence[Row]) -> list[Text]:
        """Return a text a row; raises as `LanguageModel.generate`."""
        batch = make_batch(model, rows)
        rollout = model.without(self.excluded).generate(batch, self.decoding)
        columns = (rollout.completion_ids, rollout.lengths, rollout.truncated)
        texts = []
        for ids, length, cut in zip(*(column.tolist() for column in columns), strict=True):
            stop = next((i for i in range(length) if ids[i] in self.stops), None)
            texts.append(
                Text(ids[:length], cut) if stop is None else Text(ids[: stop + 1], truncated=False)
            )
        return texts


def make_batch(model: LanguageModel, rows: Sequence[Row]) -> Batch:
    """The rows' prompts, padded as the model reads them; a prompt of several rows is read once."""
    side = "right" if model.is_encoder_decoder else "left"
    ids, mask = pad([row.prompt for row in rows], model.pad_token_id, side)
    examples: dict[tuple[int, ...], Example] = {}
    own = tuple(examples.setdefault(tuple(row.prompt), Example("", "")) for row in rows)
    return Batch(own, ids, mask, tuple(row.seed for row in rows)).to(model.device)


@torch.no_grad()
def head_numbers(hidden: Tensor, head: OutputHead, token_ids: Tensor, top: int | None) -> Numbers:
    """The numbers of n tokens; logits are made a chunk of tokens at a time.

    Args:
        hidden: (n, d) features of the positions that predict the tokens.
        head: the output head.
        token_ids: (n,) int64, below `head.num_rows`.
        top: see `Score`.

    Raises:
        NonFiniteError: logits are not finite.
    """
    parts: list[tuple[Tensor, ...]] = []
    step = head.chunk_tokens()
    for start in range(0, len(token_ids), step):
        places = slice(start, start + step)
        logits, ids = head.logits(hidden[places]), token_ids[places, None]
        taken, best = logits.gather(1, ids), logits.amax(1, keepdim=True)
        # Not by logsumexp, whose exp is slow where it underflows (see models/head.py).
        total = best - logits.log_softmax(1).amax(1, keepdim=True)
        allowed = logits > EXCLUDED / 2
        mean = logits.where(allowed, 0).sum(1, keepdim=True) / allowed.sum(1, keepdim=True)
        values = torch.cat([taken, best, total, mean], dim=1)
        ranks = ids.new_zeros(len(ids)) if top is None else (logits > taken).sum(1) + 1
        largest = logits.topk(min(top or 0, head.num_rows), dim=1)
        parts.append((values, ranks, largest.indices, largest.values))
    numbers = Numbers(*(torch.cat(column).cpu() for column in zip(*parts, strict=True)))
    if not numbers.values.isfinite().all():
        dtype = str(head.weight.dtype).removeprefix("torch.")
        raise NonFiniteError(f"logits are not finite; check the model's weights ({dtype})")
    return numbers


def _join(tokens: Numbers, end: Numbers) -> Numbers:
    pairs = ((getattr(tokens, name), getattr(end, name)) for name in Numbers.__dataclass_fields__)
    return Numbers(*(torch.cat(pair) for pair in pairs))
