"""A teacher that reads a student's text in tokens of its own, and what that says of the student's.

The teacher's tokens b_1 … b_m spell the same text, with regrets d_j along them; what is maximized
is the return of the text, `q(b_1) − Σ_{j>1} d_j`. A token of the student answers for every regret
but those that were certain before it was written: of the teacher's tokens before the last place of
the text where one begins *whatever is written next* (`Boundaries`). These places cut the text into
segments, and a student's token belongs to the one that is open when it is written: one that begins
a new word, to the word that it closes.
"""

from __future__ import annotations

import logging
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from brim.errors import ModelError
from brim.examples import Example
from brim.masking import zero_padding
from brim.models.boundaries import Boundaries, SpaceBoundaries, starts_of
from brim.models.encoding import Encoder, pad
from brim.models.settings import Centering, Decoding
from brim.models.teacher import Teacher
from brim.types import ActionValues, Batch, Rollout, Segments

logger = logging.getLogger(__name__)

_Record = TypeVar("_Record")

_BROKEN = "\N{REPLACEMENT CHARACTER}"  # what bytes of half a character decode to
_WINDOWS = 1 << 16  # decoded windows that are remembered


class Reading(NamedTuple):
    """A text in a model's tokens.

    Attributes:
        ids: the tokens, what frames them included.
        starts: where they begin, in characters, ascending; 0 where the tokenizer does not say.
        stops: where they end.
        unspelled: tokens that stand for what the model cannot spell, or were left out.
    """

    ids: list[int]
    starts: list[int]
    stops: list[int]
    unspelled: int


class Written(NamedTuple):
    """The text of a completion.

    Attributes:
        text: without what was no complete character when the text was cut.
        known: its complete characters before each token.
    """

    text: str
    known: list[int]


def read_text(
    encoder: Encoder,
    texts: Sequence[str],
    ended: Sequence[bool],
    examples: Sequence[Example] | None = None,
) -> list[Reading]:
    """Return texts in a model's tokens, whatever they spell.

    A spelled special token is text. A token that the model never writes within a text stands as the
    unknown token, or is left out where there is none.

    Args:
        encoder: of the model.
        texts: B texts.
        ended: whether each has an end, the model's own.
        examples: whose they are, by which the texts of chats end (`Encoder.ends`).
    """
    if not texts:
        return []
    tokenizer = encoder.tokenizer
    found = tokenizer(
        **{"text_target" if encoder.is_encoder_decoder else "text": list(texts)},
        add_special_tokens=False,
        split_special_tokens=True,
        verbose=False,
    )
    frame = encoder.completions([Example("", "")], [""])[0][:-1]
    unknown = tokenizer.unk_token_id
    never = {*encoder.eos_token_ids, *encoder.rules.excluded, *encoder.unshared}
    ends = encoder.ends(examples or [Example("", "")] * len(texts))
    readings = []
    for row, (text, ids) in enumerate(zip(texts, found.input_ids, strict=True)):
        starts, stops = [0] * len(ids), [len(text)] * len(ids)
        if found.encodings is not None:
            starts = starts_of(found.encodings[row])
            stops = [stop for _, stop in found.encodings[row].offsets]
        spelled = [unknown if i in never else i for i in ids]
        kept = [n for n, i in enumerate(spelled) if i is not None and i not in never]
        end = [ends[row]] if ended[row] else []
        readings.append(
            Reading(
                [*frame, *(spelled[n] for n in kept), *end],
                [*(0 for _ in frame), *(starts[n] for n in kept), *(len(text) for _ in end)],
                [*(0 for _ in frame), *(stops[n] for n in kept), *(len(text) for _ in end)],
                len(ids) - len(kept) + sum(spelled[n] == unknown for n in kept),
            )
        )
    return readings


class AlignedTeacher:
    """A teacher of another tokenizer than the student's, for scoring what the student writes.

    `action_values` are those of segments, see `brim.types.ActionValues`: K = 1 gives each token the
    exact return of the text less what was certain before it. Everything else is the teacher's own.

    Args:
        teacher: any teacher.
        student: the encoder of the student.
        max_prompt_tokens: of the teacher's own prompts; None for all.
        boundaries: where its tokens begin whatever follows; by default what `SpaceBoundaries` finds
            of its tokenizer.
        texts: what these are tried on.
    """

    def __init__(
        self,
        teacher: Teacher,
        student: Encoder,
        *,
        max_prompt_tokens: int | None = None,
        boundaries: Boundaries | None = None,
        texts: Iterable[str] = (),
    ) -> None:
        self.teacher, self.student, self.max_prompt_tokens = teacher, student, max_prompt_tokens
        self.tokenizer, self.encoder, self.rules = teacher.tokenizer, teacher.encoder, teacher.rules
        self.eos_token_ids, self.batch_tokens = teacher.eos_token_ids, teacher.batch_tokens
        self.is_encoder_decoder = teacher.is_encoder_decoder
        if boundaries is None:
            boundaries = spaces = SpaceBoundaries(teacher.tokenizer, texts)
            if not spaces.kinds:
                logger.warning(
                    "the teacher's tokenizer lets tokens lie across spaces, or does not say where "
                    "they are: each text is one segment, and every token has the whole text's "
                    "return; expect more variance"
                )
        self._boundaries, self._crossed = boundaries, False
        self._decode = lru_cache(_WINDOWS)(lambda ids: student.texts([ids])[0])

    def action_values(
        self, rollout: Rollout, *, centering: Centering = "none", bootstrap: bool = False
    ) -> ActionValues:
        """Return the Q-values of the student's tokens: those of their segments, `(B, T)` each.

        Of a segment g, `best(g)` is `max_a q` where it begins, centered there, and d(g) the sum of
        the regrets of the teacher's tokens that begin in it. Each of its tokens has `best(g)` as
        `q_max`, and as `q_taken`, but for the last one, which has `best(g) − d(g)`.

        Raises:
            ModelError: `bootstrap` is asked for: a text that is cut inside a token of the teacher
                has no state of the teacher behind it.
        """
        if bootstrap:
            raise ModelError(
                "a teacher that reads text has no state behind a text that was cut; set "
                "objective.truncated to keep or drop"
            )
        rows = zip(
            rollout.completion_ids.tolist(),
            rollout.lengths.tolist(),
            rollout.truncated.tolist(),
            strict=True,
        )
        written = [self.written(ids[:length], cut=cut) for ids, length, cut in rows]
        read, readings = self._read(rollout, [text for text, _ in written])
        values = self.teacher.map(
            read, lambda part: self.teacher.action_values(part, centering=centering)
        ).to("cpu")
        return _by_token(rollout, read.mask.cpu(), values, self._segments(written, readings))

    def written(self, token_ids: Sequence[int], *, cut: bool) -> Written:
        """Return the text of the student's tokens, and how much of it there is before each.

        Bytes of half a character wait for the rest of it.
        """
        text, known, start, done, before = "", [], 0, 0, ""
        for stop in range(1, len(token_ids) + 1):
            known.append(len(text))
            window = self._decode(tuple(token_ids[start:stop]))
            if window.startswith(before) and not window.endswith(_BROKEN):
                # A window begins with a token that was decoded: decoders treat a first one alone.
                text += window[len(before) :]
                start, done = done, stop
                before = self._decode(tuple(token_ids[start:done]))
        whole = self.student.texts([token_ids])[0]
        if not whole.startswith(text):  # a decoder that looks further back than a token
            text, known = "", []
            for stop, prefix in enumerate(
                self.student.texts([token_ids[:n] for n in range(len(token_ids) + 1)])
            ):
                complete = prefix.rstrip(_BROKEN)
                text = complete if whole.startswith(complete) else text
                if stop < len(token_ids):
                    known.append(len(text))
        return Written(text if cut else whole, known)

    def _read(self, rollout: Rollout, texts: Sequence[str]) -> tuple[Rollout, list[Reading]]:
        """The same texts as the teacher's own completions of its own prompts."""
        batch = self.teacher.encode(rollout.batch.examples, max_tokens=self.max_prompt_tokens)
        ended = (~rollout.truncated).tolist()
        readings = read_text(self.encoder, texts, ended, rollout.batch.examples)
        limit = self.num_positions
        if limit is not None:
            if not self.is_encoder_decoder:
                limit -= batch.prompt_ids.shape[1] - 1
            readings = [
                reading._replace(
                    ids=reading.ids[:limit],
                    unspelled=reading.unspelled + max(len(reading.ids) - limit, 0),
                )
                for reading in readings
            ]
        pad_id, device = self.encoder.pad_token_id, batch.prompt_ids.device
        ids, mask = pad([reading.ids or [pad_id] for reading in readings], pad_id, "right")
        mask &= torch.tensor([bool(reading.ids) for reading in readings])[:, None]
        read = Rollout(batch, ids.to(device), mask.to(device), rollout.truncated.to(device))
        return read, readings

    def _segments(
        self, written: Sequence[Written], readings: Sequence[Reading]
    ) -> list[tuple[list[int], list[int], int]]:
        """Of each text the segments of the student's tokens and of the teacher's, and unspelled."""
        found = []
        for (text, known), reading in zip(written, readings, strict=True):
            places, certain = zip((0, 0), *self._boundaries(text), strict=True)
            opens = [places[bisect_right(certain, length) - 1] for length in known]
            starts = sorted(set(opens))
            if any(
                bisect_right(starts, start) < bisect_left(starts, stop)
                for start, stop in zip(reading.starts, reading.stops, strict=True)
            ):
                self._warn_of_crossing(text)
                opens, starts = [0] * len(known), [0]
            mine = [bisect_left(starts, place) for place in opens]
            theirs = [bisect_right(starts, start) - 1 for start in reading.starts]
            found.append((mine, theirs[: len(reading.ids)], reading.unspelled))
        return found

    def _warn_of_crossing(self, text: str) -> None:
        if not self._crossed:
            self._crossed = True
            logger.warning(
                "a token of the teacher lies across a place of %r where one should begin; such "
                "texts are one segment each",
                text[:80],
            )

    # The teacher's own.

    @property
    def num_parameters(self) -> int | None:
        """Of the teacher; None where that is not known."""
        return self.teacher.num_parameters

    @property
    def returns_centering(self) -> Centering:
        """As of the teacher."""
        return self.teacher.returns_centering

    def exclude(
        self, tokens: Iterable[int], *, unshared: Iterable[int] = (), ends: Collection[int] = ()
    ) -> None:
        """Never write these of its own tokens; see `LanguageModel.exclude`."""
        self.teacher.exclude(tokens, unshared=unshared, ends=ends)
        self.rules = self.teacher.rules

    @property
    def num_positions(self) -> int | None:
        """Tokens of the longest sequence that the teacher was made for; None where any will do."""
        return self.teacher.num_positions

    def encode(
        self,
        examples: Sequence[Example],
        *,
        max_tokens: int | None,
        seeds: Sequence[int] | None = None,
    ) -> Batch:
        """Return prompts in the teacher's tokens; see `LanguageModel.encode`."""
        return self.teacher.encode(examples, max_tokens=max_tokens, seeds=seeds)

    def encode_completions(self, batch: Batch, texts: Sequence[str], *, max_tokens: int) -> Rollout:
        """Return texts in the teacher's tokens; see `LanguageModel.encode_completions`."""
        return self.teacher.encode_completions(batch, texts, max_tokens=max_tokens)

    def decode(self, rollout: Rollout) -> list[str]:
        """Return completions of the teacher's tokens as text."""
        return self.teacher.decode(rollout)

    def generate(self, batch: Batch, decoding: Decoding) -> Rollout:
        """Write in the teacher's tokens; see `LanguageModel.generate`."""
        return self.teacher.generate(batch, decoding)

    def check_room(self, prompt_tokens: int, max_tokens: int) -> None:
        """Raise a ModelError unless there are positions for a prompt and a text behind it."""
        self.teacher.check_room(prompt_tokens, max_tokens)

    def map(self, rollout: Rollout, function: Callable[[Rollout], _Record]) -> _Record:
        """Return `function(rollout)`: the teacher's passes are over its own tokens."""
        return function(rollout)

    def evaluating(self) -> AbstractContextManager[None]:
        """No gradient, no dropout while the block runs."""
        return self.teacher.evaluating()


def _by_token(
    rollout: Rollout,
    read: Tensor,
    values: ActionValues,
    rows: Sequence[tuple[list[int], list[int], int]],
) -> ActionValues:
    """What the teacher's values along its tokens (B, M), under `read`, say of the student's."""
    shape = rollout.mask.shape
    mine = torch.zeros(shape, dtype=torch.long)
    theirs = torch.zeros(read.shape, dtype=torch.long)
    # Of each segment the first of the teacher's tokens from its begin on; behind the last there is
    # a state without value, for a segment in which none is left.
    firsts = torch.full(shape, read.shape[1])
    for row, (own, others, _) in enumerate(rows):
        mine[row, : len(own)], theirs[row, : len(others)] = map(torch.tensor, (own, others))
        begins = [bisect_left(others, number) for number in range(max(own, default=-1) + 1)]
        begins = [begin if begin < len(others) else read.shape[1] for begin in begins]
        firsts[row, : len(begins)] = torch.tensor(begins, dtype=torch.long)

    def sums(tokens: Tensor) -> Tensor:
        tokens = zero_padding(tokens, read)
        exact = torch.zeros(shape, dtype=torch.float64)
        return exact.scatter_add(1, theirs, tokens.double()).to(tokens.dtype)

    mask = rollout.mask.cpu()
    best = torch.nn.functional.pad(zero_padding(values.q_max, read), (0, 1)).gather(1, firsts)
    q_max = zero_padding(best.gather(1, mine), mask)
    last = mask.clone()
    last[:, :-1] &= ~mask[:, 1:] | (mine[:, 1:] != mine[:, :-1])
    regrets, logprobs = (
        zero_padding(sums(tokens).gather(1, mine), last)
        for tokens in (values.q_max - values.q_taken, values.logprobs)
    )
    segments = Segments(
        mine,
        teacher_tokens=read.sum(1),
        unspelled=torch.tensor([unspelled for *_, unspelled in rows], dtype=torch.long),
    )
    found = ActionValues(q_max - regrets, q_max, logprobs, segments=segments)
    return found.to(rollout.mask.device)
