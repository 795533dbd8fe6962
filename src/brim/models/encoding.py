"""From text to token ids and back into tensors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from brim.errors import DataError, ModelError
from brim.examples import Example
from brim.models.chats import behind_answer, render_chat
from brim.models.generation_settings import GenerationRules
from brim.types import Batch, Rollout


class Spelling(NamedTuple):
    """A text, what its tokens decode to, and whether one of them is the unknown token."""

    text: str
    back: str
    unknown: bool


class Encoder:
    """Turns examples into prompt ids and texts into completion ids, as a kind of model needs it.

    Encoder-decoders get what their tokenizer makes of a text, special tokens included. Decoder-only
    models continue a prompt, so an EOS that the tokenizer appends is taken off, and completions are
    the plain ids that follow. Prompt and completion are tokenized apart and joined as ids, so the
    boundary never moves.

    Args:
        tokenizer: the model's tokenizer.
        eos_token_ids: the tokens that end a completion; the first ends targets, see `ends`.
        decoder_start_id: what opens a completion of an encoder-decoder; None for decoder-only.

    Attributes:
        rules: what the model's generation settings say of its text.
        unshared: tokens for which the model, or the other one of a pair, has no row.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        eos_token_ids: Sequence[int],
        decoder_start_id: int | None,
    ) -> None:
        self.tokenizer, self.eos_token_ids = tokenizer, tuple(eos_token_ids)
        self.is_encoder_decoder = decoder_start_id is not None
        pad_id = tokenizer.pad_token_id
        self.pad_token_id: int = eos_token_ids[0] if pad_id is None else pad_id
        self.rules = GenerationRules()
        self._start_id = next(i for i in (tokenizer.bos_token_id, *eos_token_ids) if i is not None)
        self.unshared: frozenset[int] = frozenset()
        self._prompt_frame = _frame(tokenizer, "text")
        self._target_frame: tuple[list[int], list[int]] = ([], [])
        if self.is_encoder_decoder:
            self._target_frame = _frame(tokenizer, "text_target")
        around = (*self._target_frame, eos_token_ids, (decoder_start_id, tokenizer.pad_token_id))
        self._not_text = {i for ids in around for i in ids}
        frames = (*self._prompt_frame, eos_token_ids, tokenizer.all_special_ids)
        self._special = {i for ids in frames for i in ids} - {tokenizer.unk_token_id}
        self._appends_end = any(i in self.eos_token_ids for i in tokenizer("a").input_ids[-1:])

    def end_at(self, tokens: Collection[int]) -> None:
        """Have these tokens end a completion too."""
        self.eos_token_ids = tuple(dict.fromkeys((*self.eos_token_ids, *tokens)))
        self._not_text, self._special = self._not_text.union(tokens), self._special.union(tokens)

    def prompts(
        self, examples: Sequence[Example], max_tokens: int | None
    ) -> tuple[list[list[int]], int]:
        """Prompt ids and how many prompts were cut.

        A long prompt with an `Example.field` loses the end of this field, and a chat the end of its
        longest message; all else stays (`_shorten`). Where there is neither, or the rest alone is
        too long, an encoder's prompt keeps its beginning, and that of a decoder-only model its end,
        which the completion continues. What the tokenizer puts around a prompt (BOS, EOS, the
        languages of mBART) stays. An empty prompt becomes BOS, or EOS where there is no BOS.

        Raises:
            DataError: the chat template refuses an example's messages, or a prompt spells out a
                token that is `unshared`.
            ModelError: an example has messages and the tokenizer no chat template.
        """
        ids = self._encode(examples)
        if max_tokens is None:
            return ids, 0
        long = [row for row, tokens in enumerate(ids) if len(tokens) > max_tokens]
        shorter = self._shorten(
            [examples[row] for row in long], [len(ids[row]) for row in long], max_tokens
        )
        for row, tokens in zip(long, shorter, strict=True):
            ids[row] = tokens or self._truncate(ids[row], max_tokens)
        return ids, len(long)

    def completions(self, examples: Sequence[Example], texts: Sequence[str]) -> list[list[int]]:
        """Ids of one text an example, each with one of the `ends`.

        A token that the model is forced to begin with is not among them.

        Raises:
            DataError: a text spells out an end-of-sequence token before its end, or holds a token
                that is never written.
            ModelError: the tokenizer begins texts with another token than the model.
        """
        if not texts:  # which tokenizers refuse
            return []
        if self.is_encoder_decoder:
            all_ids = self.tokenizer(text_target=list(texts), verbose=False).input_ids
        else:
            all_ids = self._tokenize(list(texts), add_special_tokens=False)
        before, behind = self._target_frame
        forced = list(self.rules.forced_start)
        if before and forced and before[-1:] != forced:
            names = self.tokenizer.convert_ids_to_tokens([before[-1], *forced])
            raise ModelError(
                f"the tokenizer begins a target with {names[0]!r} where the model is forced to "
                f"begin with {names[1]!r}; give both the same language or start token, by tgt_lang "
                "in tokenizer_config.json or forced_bos_token_id in generation_config.json"
            )
        ends = self.ends(examples)
        for ids, example, end in zip(all_ids, examples, ends, strict=True):
            if behind and ids[-len(behind) :] == behind:  # mBART's language follows the end
                del ids[-len(behind) :]
            if forced and before and ids[: len(before)] == before:
                del ids[len(before) - 1]
            while ids and ids[-1] in self.eos_token_ids:
                ids.pop()
            if any(i in self.eos_token_ids for i in ids):
                raise DataError(
                    f"the target of example {example.id!r} spells out an end-of-sequence token "
                    f"before its end; remove {self.tokenizer.eos_token!r} from it"
                )
            self._check_shared("target", ids, example)
            if not self.rules.excluded.isdisjoint(ids):
                token = next(i for i in ids if i in self.rules.excluded)
                raise DataError(
                    f"the target of example {example.id!r} holds "
                    f"{self.tokenizer.convert_ids_to_tokens(token)!r}, which the generation "
                    "settings (bad_words_ids, suppress_tokens) never let the model write; remove "
                    "it from the target"
                )
            ids.append(end)
        return all_ids  # type: ignore[no-any-return]

    def ends(self, examples: Sequence[Example]) -> list[int]:
        """Return the token that ends the target of each example.

        It is the first of `eos_token_ids`, unless a chat's template ends answers by another one.
        """
        own = chat = self.eos_token_ids[0]
        if any(example.messages for example in examples):
            [behind] = self._tokenize([behind_answer(self.tokenizer)], add_special_tokens=False)
            known = {*self.eos_token_ids} - self.rules.excluded - self.unshared
            chat = next((i for i in behind if i in known), own)
        return [chat if example.messages else own for example in examples]

    def targets(self, examples: Sequence[Example]) -> tuple[list[list[int]], list[bool]]:
        """What examples have to teach: ids, and whether they were cut before.

        Of an example that another model answered these are exactly the tokens that it wrote
        (`Example.target`), with an end only if it wrote one; of any other one the first reference,
        by `completions`.
        """
        plain = [example for example in examples if example.target is None]
        texts = iter(self.completions(plain, [row.references[0] for row in plain]))
        targets = [example.target for example in examples]
        ids = [next(texts) if target is None else [*target.token_ids] for target in targets]
        return ids, [target is not None and target.truncated for target in targets]

    def batch(
        self, examples: Sequence[Example], max_tokens: int | None, seeds: Sequence[int] | None
    ) -> Batch:
        """The padded `prompts` of B examples, with B seeds, by default 0 … B - 1."""
        ids, num_cut = self.prompts(examples, max_tokens)
        side = "right" if self.is_encoder_decoder else "left"
        prompt_ids, prompt_mask = pad(ids, self.pad_token_id, side)
        return Batch(
            examples=tuple(examples),
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            seeds=tuple(range(len(examples)) if seeds is None else seeds),
            num_truncated_prompts=num_cut,
        )

    def rollout(
        self,
        batch: Batch,
        rows: Sequence[Sequence[int]],
        max_tokens: int,
        truncated: Sequence[bool] | None = None,
    ) -> Rollout:
        """Completions of these ids, `truncated` before or at `max_tokens`, forced ones included.

        Raises:
            ModelError: `max_tokens` leaves none to choose.
        """
        limit = self.rules.num_chosen(max_tokens)
        ids, mask = pad([row[:limit] for row in rows], self.pad_token_id, "right")
        before = truncated or [False] * len(rows)
        cut = [was or len(row) > limit for row, was in zip(rows, before, strict=True)]
        device = batch.prompt_ids.device
        return Rollout(batch, ids.to(device), mask.to(device), torch.tensor(cut, device=device))

    def texts(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The ids of each row as text.

        Only what frames a text is left out: end, padding, decoder start, and what the tokenizer
        puts around targets. Another special token, such as a separator, is part of the text.
        """
        return self._decode([[i for i in row if i not in self._not_text] for row in rows])

    def render(self, example: Example) -> str:
        """The text that becomes the prompt: a chat goes through the chat template.

        Raises:
            DataError: the chat template refuses the messages.
            ModelError: there are messages and the tokenizer has no chat template.
        """
        return render_chat(self.tokenizer, example) if example.messages else example.prompt

    def spell(self, texts: Sequence[str], *, as_targets: bool = False) -> list[Spelling]:
        """What becomes of rendered prompts, or of targets, when they are encoded and decoded."""
        if not texts:
            return []
        name = "text_target" if as_targets and self.is_encoder_decoder else "text"
        encoded = self.tokenizer(**{name: list(texts)}, add_special_tokens=False, verbose=False)
        unknown = {self.tokenizer.unk_token_id} - self._not_text - {None}
        rows = encoded.input_ids
        backs = self._decode(rows)
        return [
            Spelling(text, back, not unknown.isdisjoint(ids))
            for text, back, ids in zip(texts, backs, rows, strict=True)
        ]

    def _decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        return self.tokenizer.batch_decode(  # type: ignore[no-any-return]
            rows, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def _encode(self, examples: Sequence[Example]) -> list[list[int]]:
        """The ids of whole prompts."""
        plain = [row for row, example in enumerate(examples) if not example.messages]
        chats = [row for row, example in enumerate(examples) if example.messages]
        ids: list[list[int]] = [[] for _ in examples]
        for row, tokens in zip(
            plain, self._tokenize([examples[i].prompt for i in plain]), strict=True
        ):
            strip = self._appends_end and not self.is_encoder_decoder
            ids[row] = tokens[:-1] if strip else tokens
        rendered = [render_chat(self.tokenizer, examples[i]) for i in chats]
        # A template writes all special tokens itself; only an encoder's final EOS is missing.
        for row, tokens in zip(
            chats, self._tokenize(rendered, add_special_tokens=self.is_encoder_decoder), strict=True
        ):
            ids[row] = tokens
        for tokens, example in zip(ids, examples, strict=True):
            self._check_shared("prompt", tokens, example)
        return [tokens or [self._start_id] for tokens in ids]

    def _check_shared(self, what: str, ids: Sequence[int], example: Example) -> None:
        for token in self.unshared.intersection(ids):
            raise DataError(
                f"the {what} of example {example.id!r} spells out "
                f"{self.tokenizer.convert_ids_to_tokens(token)!r}, for which the model, or its "
                f"teacher or student, has no embedding; remove it from the {what}"
            )

    def _tokenize(self, texts: list[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        if not texts:
            return []
        encoded = self.tokenizer(texts, add_special_tokens=add_special_tokens, verbose=False)
        return encoded.input_ids  # type: ignore[no-any-return]

    def _shorten(
        self, examples: Sequence[Example], lengths: Sequence[int], max_tokens: int
    ) -> list[list[int] | None]:
        """Ids of prompts whose field has lost so much of its end that they fit, no token more.

        A shortened prompt is tokenized as a whole, as if its field had been that short. A field
        ends where one of its tokens did (anywhere, if the tokenizer does not say where they are),
        never inside a character. A message keeps a token at least: chat templates may refuse an
        empty one, or leave it out. None is for prompts without a field, or with too long a rest.
        """
        if not examples:
            return []
        fields = [_field(example) for example in examples]
        texts = [text for text, _ in fields]
        encoded = self.tokenizer(texts, add_special_tokens=False, verbose=False)
        searches = []
        for i, (text, put_back) in enumerate(fields):
            ends, per_token = (
                list(range(len(text) + 1)),
                len(text) / max(1, len(encoded.input_ids[i])),
            )
            if encoded.encodings is not None:
                # The tokens of a character's bytes all end where the character does.
                ends = [0, *(end for _, end in encoded.encodings[i].offsets)]
                # Spaces at the end may be in no token of the field, and in one of the prompt.
                ends += [len(text)] * (ends[-1] < len(text))
                per_token = 1.0
            low, high = 0 if examples[i].messages else -1, len(ends) - 1
            searches.append(_Search(text, put_back, ends, per_token, low, high, high, lengths[i]))
        while searching := [s for s in searches if s.high - s.low > 1 and s.length != max_tokens]:
            guesses = [search.guess(max_tokens) for search in searching]
            for search, ids in zip(searching, self._encode(guesses), strict=True):
                search.learn(ids, fits=len(ids) <= max_tokens)
        return [search.ids for search in searches]

    def _truncate(self, ids: list[int], max_tokens: int) -> list[int]:
        if self.is_encoder_decoder:
            behind = list(itertools.takewhile(self._special.__contains__, reversed(ids)))
            behind = behind[:max_tokens][::-1]
            return ids[: max_tokens - len(behind)] + behind
        before, _ = self._prompt_frame
        if not before or ids[: len(before)] != before:  # a chat's template need not write all of it
            before = ids[:1] if ids[0] == self.tokenizer.bos_token_id else []
        room = max_tokens - len(before)
        return before + ids[len(ids) - room :] if room > 0 else ids[-max_tokens:]


@dataclass(slots=True)
class _Search:
    """Looks for the last of the `ends` of a text, in characters, with which its prompt fits.

    With `ends[high]` it is too long, with `ends[low]` it fits (`ids`) once a guess did; with
    `ends[at]` it has `length` tokens.
    """

    text: str
    put_back: Callable[[str], Example]
    ends: list[int]
    per_token: float
    low: int
    high: int
    at: int
    length: int
    ids: list[int] | None = None
    tried: int = 0

    def guess(self, max_tokens: int) -> Example:
        """The prompt cut where the number of tokens suggests it, which is nearly always right."""
        stop = self.at + math.floor((max_tokens - self.length) * self.per_token)
        self.tried = min(max(stop, self.low + 1), self.high - 1)
        return self.put_back(self.text[: self.ends[self.tried]])

    def learn(self, ids: list[int], *, fits: bool) -> None:
        if fits:
            self.low, self.ids = self.tried, ids
        else:
            self.high = self.tried
        if fits or self.ids is None:
            self.at, self.length = self.tried, len(ids)


def _field(example: Example) -> tuple[str, Callable[[str], Example]]:
    """The text that may lose its end, and what puts another in its place."""
    # The system's message says what to do with the others.
    places = [i for i, message in enumerate(example.messages) if message["role"] != "system"]
    if places:
        place = max(places, key=lambda i: len(example.messages[i]["content"]))
        before, message = example.messages[:place], example.messages[place]
        behind = example.messages[place + 1 :]
        return message["content"], lambda text: replace(
            example, messages=(*before, {**message, "content": text}, *behind)
        )
    start, end = example.field or (0, 0)
    head, tail = example.prompt[:start], example.prompt[end:]
    return example.prompt[start:end], lambda text: replace(example, prompt=head + text + tail)


def _frame(tokenizer: PreTrainedTokenizerBase, side: str) -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer puts before and behind a `text` or a `text_target`."""
    whole, bare = (
        list(tokenizer(**{side: "a"}, add_special_tokens=special).input_ids)
        for special in (True, False)
    )
    places = range(len(whole) - len(bare) + 1)
    start = next((i for i in places if whole[i : i + len(bare)] == bare), None)
    return ([], []) if start is None else (whole[:start], whole[start + len(bare) :])


def pad(rows: Sequence[Sequence[int]], pad_id: int, side: str) -> tuple[Tensor, Tensor]:
    """Ids (B, S) int64 and mask (B, S) bool of rows of different lengths."""
    width = max(map(len, rows))
    lengths = torch.tensor([len(row) for row in rows])
    if side == "left":
        padded = [[pad_id] * (width - len(row)) + list(row) for row in rows]
        mask = torch.arange(width) >= (width - lengths)[:, None]
    else:
        padded = [list(row) + [pad_id] * (width - len(row)) for row in rows]
        mask = torch.arange(width) < lengths[:, None]
    return torch.tensor(padded), mask
