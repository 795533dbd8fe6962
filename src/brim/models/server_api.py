"""What inference servers call things: requests in their words, answers as numbers.

Here vLLM's completions API; `server_kinds` has the others. Prompts and completions travel as token
ids. vLLM gives log-probabilities, which are logits less their logsumexp over all rows of the head:
a centering by a number of the state alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from brim.errors import BrimError, ConfigError, ModelError
from brim.models.http import HTTPClient
from brim.models.settings import Centering, Decoding

Ids = Sequence[int]

# What vLLM shows of a state where its best row is none that is allowed (its own default limit).
MORE_LOGPROBS = 20
# vLLM has no bias below this.
LOWEST_BIAS = -100.0


@dataclass(frozen=True, slots=True)
class RowValues:
    """Of a completion of n tokens, the centered values of each.

    Attributes:
        taken, best, logprobs: n numbers each; see `ActionValues`.
        after: the best value of the state behind the last token; None where it was not asked for.
    """

    taken: Sequence[float]
    best: Sequence[float]
    logprobs: Sequence[float]
    after: float | None = None


@dataclass(frozen=True, slots=True)
class Allowed:
    """The tokens that may be written.

    Attributes:
        tokens: their ids.
        excluded: ids below the largest of them that are none.
    """

    tokens: frozenset[int]
    excluded: tuple[int, ...]

    @classmethod
    def of(cls, vocabulary: Collection[int], excluded: Collection[int]) -> Allowed:
        """Return the tokens of a vocabulary, less some."""
        tokens = frozenset(vocabulary) - frozenset(excluded)
        return cls(tokens, tuple(sorted(set(range(max(vocabulary) + 1)) - tokens)))


class ServerAPI:
    """What a server is asked, in vLLM's words.

    Args:
        client: connections to it.
        card: what it says of the model in /v1/models.
    """

    name: ClassVar[str] = "vllm"
    centerings: ClassVar[tuple[Centering, ...]] = ("logsumexp", "max")
    # Whether a token that is excluded may be one for which the server has no row.
    takes_any_id: ClassVar[bool] = False
    # A text ends by our tokens only, and the server's generation_config.json has no say.
    plain: ClassVar[Mapping[str, Any]] = {
        "ignore_eos": True,
        "repetition_penalty": 1.0,
        "top_k": -1,
        "top_p": 1.0,
    }

    def __init__(self, client: HTTPClient, card: Mapping[str, Any]) -> None:
        self.client, self.card, self.model = client, card, str(card["id"])

    @property
    def max_tokens(self) -> int | None:
        """Tokens of the longest sequence, as the server says; None where it does not."""
        value = self.card.get("max_model_len")
        return value if isinstance(value, int) else None

    def counted(self, num_forced: int) -> int:
        """Return how many tokens that a model does not choose the server counts for its limit.

        `num_forced` are those of the generation settings at hand; vLLM forces none.
        """
        return 0

    def version(self) -> str | None:
        """Return the server's version, None where it does not say."""
        if isinstance(self.card.get("version"), str):
            return str(self.card["version"])
        return text_of(self.if_known(lambda: self.client.get("/version")), "version")

    def tokenize(self, text: str) -> list[int] | None:
        """Return the server's ids of a text, without special tokens; None where it cannot."""
        body = {"model": self.model, "prompt": text, "add_special_tokens": False}
        found = self.if_known(lambda: self.client.post("/tokenize", body))
        if found is None:
            more = {"max_tokens": 1, "temperature": 0, "return_token_ids": True}
            found = self.if_known(lambda: self.client.post("/v1/completions", body | more))
            found = {"tokens": _choices(found, 1)[0].get("prompt_token_ids")} if found else {}
        tokens = found.get("tokens")
        return [int(i) for i in tokens] if isinstance(tokens, list) else None

    def score(
        self,
        prompts: Sequence[Ids],
        completions: Sequence[Ids],
        *,
        centering: Centering,
        bootstrap: bool,
        allowed: Allowed,
    ) -> list[RowValues]:
        """Return the values of each completion.

        Args:
            prompts: ids of each row.
            completions: the same; none is empty.
            centering: one of `centerings`.
            bootstrap: also value the states behind the last tokens.
            allowed: the tokens among which a state's best is.

        Raises:
            ModelError: the answer is not of this API, or shows no best token that is allowed.
            BrimError: as `HTTPClient.post`.
        """
        rows = list(zip(prompts, completions, strict=True))
        return self._score(rows, centering, bootstrap, allowed)

    def _score(
        self,
        rows: Sequence[tuple[Ids, Ids]],
        centering: Centering,
        bootstrap: bool,
        allowed: Allowed,
        shown: int = 1,
    ) -> list[RowValues]:
        states = self._states(rows, shown, after=bootstrap)
        found: list[RowValues] = []
        again: list[int] = []
        for i, (taken, tops) in enumerate(states):
            bests = [best_allowed(top, allowed.tokens, shown) for top in tops]
            if None in bests:
                again.append(i)
            best = [0.0 if value is None else value for value in bests]
            after = best.pop() if bootstrap else None
            found.append(RowValues(taken, best, taken, after))
        if again and shown < MORE_LOGPROBS:
            some = [rows[i] for i in again]
            more = self._score(some, "logsumexp", bootstrap, allowed, MORE_LOGPROBS)
            for i, values in zip(again, more, strict=True):
                found[i] = values
        elif again:
            raise ModelError(
                f"{self.client.url}: the {shown} likeliest rows of a state have no token, or one "
                "that teacher and student do not both write; load the model in this process (path)"
            )
        return [_by_max(values) if centering == "max" else values for values in found]

    def _states(
        self, rows: Sequence[tuple[Ids, Ids]], shown: int, *, after: bool
    ) -> list[tuple[list[float], list[dict[int, float]]]]:
        """Of each row the log-probabilities of its tokens, and of the likeliest ones of each state.

        With `after` the states end with the one behind the completion.
        """
        body = {
            "model": self.model,
            "prompt": [[*prompt, *completion] for prompt, completion in rows],
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": shown,
            "return_tokens_as_token_ids": True,
            **self.plain,
            **({"logprobs": shown} if after else {}),
        }
        choices = _choices(self.client.post("/v1/completions", body), len(rows))
        found = []
        for (prompt, completion), choice in zip(rows, choices, strict=True):
            with reading(self):
                states = choice["prompt_logprobs"][len(prompt) :]
                tops = [
                    {int(i): float(entry["logprob"]) for i, entry in state.items()}
                    for state in states
                ]
                taken = [top[token] for top, token in zip(tops, completion, strict=True)]
                if after:
                    last = choice["logprobs"]["top_logprobs"][0]
                    tops.append({_token_id(name): float(v) for name, v in last.items()})
            found.append((taken, tops))
        return found

    def write(
        self,
        prompts: Sequence[Ids],
        decoding: Decoding,
        *,
        seed: int,
        ends: Ids,
        excluded: Ids,
    ) -> list[list[int]]:
        """Return the ids of a text for each prompt, its end included where it wrote one.

        Args:
            prompts: ids of each row; a single one where it is sampled.
            decoding: the strategy and the limit.
            seed: of the sampling.
            ends: tokens that end a text.
            excluded: tokens that it must not write.
        """
        settings = sampling_settings(decoding, seed, excluded)
        return self._write(prompts, decoding.max_tokens, ends, settings)

    def _write(
        self, prompts: Sequence[Ids], max_tokens: int, ends: Ids, settings: Mapping[str, Any]
    ) -> list[list[int]]:
        body = {
            "model": self.model,
            "prompt": [list(ids) for ids in prompts],
            "max_tokens": max_tokens,
            "stop_token_ids": list(ends),
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            **self.plain,
            **settings,
        }
        choices = _choices(self.client.post("/v1/completions", body), len(prompts))
        with reading(self):
            return [_written(choice, ends) for choice in choices]

    def if_known(self, ask: Callable[[], Any]) -> Any:
        """What a server says that need not know how to; None where it does not."""
        try:
            return ask()
        except (ConfigError, ModelError):
            return None


def best_allowed(top: Mapping[int, float], allowed: Collection[int], shown: int) -> float | None:
    """Return the log-probability of a state's likeliest allowed token; None if it is not shown.

    Args:
        top: log-probabilities of the `shown` likeliest tokens, and perhaps of one more.
        allowed: tokens that count.
        shown: how many there are.
    """
    inside = [value for token, value in top.items() if token in allowed]
    # With fewer others than are shown, one of the likeliest is allowed: none is likelier.
    return max(inside) if inside and len(top) - len(inside) < shown else None


@contextmanager
def reading(api: ServerAPI) -> Iterator[None]:
    """Say of an answer that cannot be read that it is not of this API."""
    try:
        yield
    except BrimError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            f"{api.client.url}: its answer is not what {api.name} answers "
            f"({type(error).__name__}: {error}); check teacher.api and the server's version"
        ) from None


def _choices(answer: Any, number: int) -> list[dict[str, Any]]:
    """The choices of a completions API, in the order of the prompts."""
    try:
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
    except (TypeError, KeyError):
        choices = []
    if len(choices) != number:
        raise ModelError(
            f"the server answers {number} prompts with {len(choices)} choices; check teacher.api"
        )
    return choices


def _token_id(name: str) -> int:
    """The id of a token that is shown as `token_id:7`."""
    return int(name.removeprefix("token_id:"))


def _written(choice: Mapping[str, Any], ends: Ids) -> list[int]:
    """The ids that were written; an end that the server took off is put back."""
    ids = [int(i) for i in choice["token_ids"]]
    stop: Any = choice.get("stop_reason")
    return [*ids, stop] if stop in ends and ids[-1:] != [stop] else ids


def sampling_settings(decoding: Decoding, seed: int, excluded: Ids) -> dict[str, Any]:
    """The arguments of a strategy, the same in all APIs."""
    given: dict[str, Any] = {"temperature": 0}
    if decoding.strategy == "sampling":
        cut = {"top_k": decoding.top_k, "top_p": decoding.top_p}
        given = {name: value for name, value in cut.items() if value is not None}
        given |= {"temperature": decoding.temperature, "seed": seed}
    elif decoding.strategy != "greedy":
        raise ModelError(
            f"a server writes greedily or samples, and the strategy is {decoding.strategy}; "
            "choose one of the two"
        )
    if excluded:
        given["logit_bias"] = {str(i): LOWEST_BIAS for i in excluded}
    return given


def text_of(found: Any, name: str) -> str | None:
    """Return a text of a JSON object; None where there is none."""
    value = found.get(name) if isinstance(found, dict) else None
    return value if isinstance(value, str) else None


def _by_max(values: RowValues) -> RowValues:
    """Values less the best of their state."""
    taken = [a - b for a, b in zip(values.taken, values.best, strict=True)]
    after = None if values.after is None else 0.0
    return RowValues(taken, [0.0] * len(taken), values.logprobs, after)
