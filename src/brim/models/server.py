"""A teacher behind a server: two numbers a token, and text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from brim.errors import ModelError
from brim.examples import Example
from brim.models.decoding import Hand, Written, write_in_groups
from brim.models.encoding import Encoder, pad
from brim.models.generation_settings import GenerationRules, rules_of
from brim.models.server_api import Allowed, RowValues, ServerAPI
from brim.models.server_settings import RequestsConfig
from brim.models.settings import Centering, Decoding
from brim.models.tokenizers import without_end
from brim.types import ActionValues, Batch, Rollout

_Record = TypeVar("_Record")


class ServerTeacher:
    """A `Teacher` that others serve. It has no weights here and no gradient.

    Args:
        api: the server's, with the model.
        tokenizer: the model's, as the student has it.
        generation: the generation settings that go with it.
        requests: how many of how many tokens.

    Attributes:
        tokenizer, encoder, rules, eos_token_ids, is_encoder_decoder, batch_tokens: see `Teacher`.
        num_parameters: not known.

    Raises:
        ModelError: there is no token that ends a text.
    """

    num_parameters = None

    def __init__(
        self,
        api: ServerAPI,
        tokenizer: PreTrainedTokenizerBase,
        generation: GenerationConfig,
        requests: RequestsConfig,
    ) -> None:
        self.api, self.batch_tokens = api, requests.tokens
        self.is_encoder_decoder = bool(api.card.get("encoder_decoder"))
        listed = generation.eos_token_id
        listed = listed if isinstance(listed, list) else [listed]
        ends = dict.fromkeys(i for i in (tokenizer.eos_token_id, *listed) if i is not None)
        if not ends:
            raise ModelError(
                "the tokenizer has no end-of-sequence token, so no completion could end; "
                "set eos_token in its tokenizer_config.json"
            )
        self.eos_token_ids = tuple(ends)
        start: int | None = None
        if self.is_encoder_decoder:
            known = (generation.decoder_start_token_id, tokenizer.pad_token_id)
            start = next((i for i in known if i is not None), self.eos_token_ids[0])
        else:
            tokenizer = without_end(tokenizer, self.eos_token_ids)
        self.tokenizer = tokenizer
        self.encoder = Encoder(tokenizer, self.eos_token_ids, start)
        self.rules = rules_of(
            generation, self.eos_token_ids, is_encoder_decoder=self.is_encoder_decoder
        )
        self._vocabulary = frozenset(tokenizer.get_vocab().values())
        self._follow(self.rules)
        self._pool = ThreadPoolExecutor(requests.concurrency, thread_name_prefix="teacher")

    @property
    def num_positions(self) -> int | None:
        """As of a model in this process: two less than the server takes; None if it does not say.

        Such a model does not read the last token; a server does, and is asked for one behind it.
        """
        limit = self.api.max_tokens
        return limit if limit is None or self.is_encoder_decoder else limit - 2

    @property
    def returns_centering(self) -> Centering:
        """The logits themselves where the server shows them, else log-probabilities."""
        return self.api.centerings[0]

    def exclude(
        self, tokens: Iterable[int], *, unshared: Iterable[int] = (), ends: Collection[int] = ()
    ) -> None:
        """Have these tokens never written and never the best; see `LanguageModel.exclude`.

        Raises:
            ModelError: one of them ends every target.
        """
        excluded = self.rules.excluded | set(tokens)
        if self.eos_token_ids[0] in excluded:
            raise ModelError(
                f"the student never writes token {self.eos_token_ids[0]}, which ends a text of the "
                "teacher; remove it from the student's generation_config.json"
            )
        self.encoder.end_at(ends)
        self.eos_token_ids = self.encoder.eos_token_ids
        self.encoder.unshared |= frozenset(unshared)
        rules = GenerationRules(excluded, self.rules.forced_start, self.rules.forces_end)
        self._follow(rules)

    def _follow(self, rules: GenerationRules) -> None:
        self.rules = self.encoder.rules = rules
        self.allowed = Allowed.of(self._vocabulary, rules.excluded)

    def encode(
        self,
        examples: Sequence[Example],
        *,
        max_tokens: int | None,
        seeds: Sequence[int] | None = None,
    ) -> Batch:
        """Return token ids of prompts; see `LanguageModel.encode`."""
        return self.encoder.batch(examples, max_tokens, seeds)

    def encode_completions(self, batch: Batch, texts: Sequence[str], *, max_tokens: int) -> Rollout:
        """Return texts as completions; see `LanguageModel.encode_completions`."""
        ids = self.encoder.completions(batch.examples, texts)
        return self.encoder.rollout(batch, ids, max_tokens)

    def decode(self, rollout: Rollout) -> list[str]:
        """Return the completions as text."""
        return self.encoder.texts(rows_of(rollout.completion_ids, rollout.mask))

    def check_room(self, prompt_tokens: int, max_tokens: int) -> None:
        """Raise a ModelError unless the server takes a prompt and a text behind it."""
        # One more: a server that reads a text is asked for a token behind it.
        both = prompt_tokens + max_tokens + 1
        needed = max(prompt_tokens, max_tokens) if self.is_encoder_decoder else both
        if self.api.max_tokens is not None and needed > self.api.max_tokens:
            raise ModelError(
                f"a prompt of {prompt_tokens} tokens and a text of {max_tokens} need {needed}, and "
                f"the server takes {self.api.max_tokens}; lower decoding.max_prompt_tokens or "
                "decoding.max_tokens, or start it with a larger --max-model-len"
            )

    def close(self) -> None:
        """Close the connections, and have requests that wait fail at once."""
        self.api.client.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def evaluating(self) -> AbstractContextManager[None]:
        """Nothing: the server knows no other mode."""
        return nullcontext()

    def map(self, rollout: Rollout, function: Callable[[Rollout], _Record]) -> _Record:
        """Return what a function makes of all rows; requests are made as large as they may be."""
        return function(rollout)

    def action_values(
        self, rollout: Rollout, *, centering: Centering = "none", bootstrap: bool = False
    ) -> ActionValues:
        """Return the Q-values of the rollout's tokens; see `LanguageModel.action_values`.

        Raises:
            ModelError: the server's API cannot give the centering.
            AwayError: the server stays away.
        """
        scoring = self.begin(centering=centering, bootstrap=bootstrap)
        scoring.add(range(len(rollout)), rollout)
        return scoring.finish(rollout)

    def begin(self, *, centering: Centering, bootstrap: bool = False) -> Scoring:
        """Return what has rows scored in the background as they come.

        Raises:
            ModelError: the server's API cannot give the centering.
        """
        if centering not in self.api.centerings:
            raise ModelError(
                f"q_centering {centering}: {self.api.name} gives "
                f"{' and '.join(self.api.centerings)} only; choose one of these"
            )

        def ask(prompts: list[list[int]], completions: list[list[int]]) -> list[RowValues]:
            return self.api.score(
                prompts,
                completions,
                centering=centering,
                bootstrap=bootstrap,
                allowed=self.allowed,
            )

        return Scoring(self._pool, ask, self.batch_tokens, bootstrap=bootstrap)

    def generate(self, batch: Batch, decoding: Decoding) -> Rollout:
        """Write a completion of each prompt, greedily or by samples.

        Raises:
            ModelError: another strategy, a server that takes too few tokens, or one that wrote a
                token that it must not.
            AwayError: the server stays away.
        """
        limit = self.rules.num_chosen(decoding.max_tokens)
        self.check_room(int(batch.prompt_mask.sum(dim=1).max()), decoding.max_tokens)
        decoding = decoding.model_copy(update={"max_tokens": limit})
        return write_in_groups(self._write, batch, decoding, self.encoder.pad_token_id)

    def _write(self, batch: Batch, decoding: Decoding, hand: Hand) -> Written:
        prompts = rows_of(batch.prompt_ids, batch.prompt_mask)
        size = 1  # of samples: a request has one seed
        if decoding.strategy != "sampling":
            longest = max(map(len, prompts)) + decoding.max_tokens
            size = max(1, self.batch_tokens // longest)

        unshared = frozenset() if self.api.takes_any_id else self.encoder.unshared
        excluded = [i for i in self.allowed.excluded if i not in unshared]
        forced = self.api.counted(self.rules.num_forced)
        asked = decoding.model_copy(update={"max_tokens": decoding.max_tokens + forced})

        def ask(start: int) -> list[list[int]]:
            return self.api.write(
                prompts[start : start + size],
                asked,
                seed=batch.seeds[start],
                ends=self.eos_token_ids,
                excluded=excluded,
            )

        parts = self._pool.map(ask, range(0, len(prompts), size))
        written = [ids for part in parts for ids in part]
        for ids in written:
            self._check_written(ids, decoding.max_tokens)
        padded, mask = pad(written, self.encoder.pad_token_id, "right")
        truncated = torch.tensor([row[-1] not in self.eos_token_ids for row in written])
        device = batch.prompt_ids.device
        return padded.to(device), mask.sum(dim=1).to(device), truncated.to(device)

    def _check_written(self, ids: Sequence[int], limit: int) -> None:
        wrong = [token for token in ids if token not in self.allowed.tokens]
        if wrong:
            raise ModelError(
                f"{self.api.client.url}: wrote token {wrong[0]}, which the tokenizer does not have "
                "or which teacher and student do not both write; load the model in this process "
                "(path)"
            )
        inside = any(token in self.eos_token_ids for token in ids[:-1])
        ended = ids[-1:] and ids[-1] in self.eos_token_ids
        if inside or not ids or len(ids) > limit or not (ended or len(ids) == limit):
            raise ModelError(
                f"{self.api.client.url}: wrote {len(ids)} tokens where it should have stopped at "
                f"an end or after {limit}; check teacher.api and the server's version"
            )


class Scoring:
    """Rows that are sent as soon as they make up a request, and their values.

    Args:
        pool: whose threads wait for answers.
        ask: the values of prompts and completions.
        tokens: of a request.
        bootstrap: whether the values of the states behind count.
    """

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        ask: Callable[[list[list[int]], list[list[int]]], list[RowValues]],
        tokens: int,
        *,
        bootstrap: bool,
    ) -> None:
        self._pool, self._ask, self._tokens, self._bootstrap = pool, ask, tokens, bootstrap
        self._waiting: list[tuple[int, list[int], list[int]]] = []
        self._num_waiting = 0  # tokens of them
        self._sent: list[tuple[list[int], Future[list[RowValues]]]] = []

    def add(self, places: Iterable[int], rows: Rollout) -> None:
        """Have rows scored; `places` are theirs in the rollout that `finish` is given."""
        prompts = rows_of(rows.batch.prompt_ids, rows.batch.prompt_mask)
        completions = rows_of(rows.completion_ids, rows.mask)
        for row in zip(places, prompts, completions, strict=True):
            if not row[2]:
                continue
            number = len(row[1]) + len(row[2])
            if self._num_waiting + number > self._tokens:
                self._send()
            self._waiting.append(row)
            self._num_waiting += number
            if self._num_waiting >= self._tokens:
                self._send()

    def finish(self, rollout: Rollout) -> ActionValues:
        """Return the values of all rows that were added, once they have come; (B, T) each.

        Raises:
            BrimError: a request failed.
        """
        self._send()
        mask = rollout.mask
        taken, best, logprobs = (torch.zeros(mask.shape) for _ in range(3))
        after = torch.zeros(len(mask))
        try:
            for places, future in self._sent:
                for place, values in zip(places, future.result(), strict=True):
                    length = len(values.taken)
                    taken[place, :length] = torch.tensor(values.taken)
                    best[place, :length] = torch.tensor(values.best)
                    logprobs[place, :length] = torch.tensor(values.logprobs)
                    after[place] = values.after or 0.0
        finally:
            self.cancel()
        behind = after.masked_fill(~rollout.truncated.cpu(), 0.0) if self._bootstrap else None
        return ActionValues(taken, best, logprobs, behind).to(mask.device)

    def cancel(self) -> None:
        """Send nothing more, and forget what was sent."""
        for _, future in self._sent:
            future.cancel()
        self._waiting, self._sent, self._num_waiting = [], [], 0

    def _send(self) -> None:
        if not self._waiting:
            return
        places, prompts, completions = (list(column) for column in zip(*self._waiting, strict=True))
        self._sent.append((places, self._pool.submit(self._ask, prompts, completions)))
        self._waiting, self._num_waiting = [], 0


def rows_of(ids: Tensor, mask: Tensor) -> list[list[int]]:
    """Return the ids of each row where its mask is True."""
    return [row[counts].tolist() for row, counts in zip(ids.cpu(), mask.cpu(), strict=True)]
