"""Answers in JSON: numbers of ours, and completions in vLLM's form."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import uuid4

from torch import Tensor

from brim.models import LanguageModel
from brim.serve.batching import Row
from brim.serve.requests import VALUES, CompletionRequest, ScoreRequest
from brim.serve.scoring import Numbers, Text

_TAKEN, _TOTAL = VALUES.index("taken"), VALUES.index("logsumexp")


def score_answer(request: ScoreRequest, name: str, rows: Iterable[Numbers]) -> dict[str, Any]:
    """Return the answer to a request for numbers."""
    return {"model": name, "rows": [_score_row(request, row) for row in rows]}


def _score_row(request: ScoreRequest, numbers: Numbers) -> dict[str, Any]:
    columns = dict(zip(VALUES, map(short, numbers.values.T), strict=True))
    end = -1 if request.bootstrap else None
    row: dict[str, Any] = {value: columns[value][:end] for value in request.values}
    row["after"] = None
    if request.bootstrap:
        row["after"] = {value: columns[value][-1] for value in VALUES if value != "taken"}
    return row


def short(values: Tensor) -> list[float]:
    """Return float32 numbers with the nine digits that give them back exactly."""
    return [float(f"{value:.9g}") for value in values.tolist()]


def completion_answer(
    model: LanguageModel,
    request: CompletionRequest,
    name: str,
    rows: Sequence[Row],
    texts: Sequence[Text],
    numbers: Sequence[Numbers | None],
) -> dict[str, Any]:
    """Return the answer to a request for text; numbers are those of `scored_row`."""
    written = model.encoder.texts([text.token_ids for text in texts])
    choices = []
    for i, (row, text, found) in enumerate(zip(rows, texts, numbers, strict=True)):
        choice: dict[str, Any] = {
            "index": i,
            "text": written[i],
            "finish_reason": "length" if text.truncated else "stop",
            "stop_reason": None,
            "logprobs": None,
            "prompt_logprobs": None,
        }
        if request.return_token_ids:
            choice |= {"token_ids": text.token_ids, "prompt_token_ids": list(row.prompt)}
        if found is not None:
            in_prompt = len(found.ranks) - len(text.token_ids)
            if request.logprobs is not None:
                own = found.rows(slice(in_prompt, None))
                choice["logprobs"] = _logprobs(model, request, text.token_ids, own)
            if request.prompt_logprobs is not None:
                own = found.rows(slice(in_prompt))
                choice["prompt_logprobs"] = _prompt_logprobs(model, request, row.prompt, own)
        choices.append(choice)
    read, wrote = sum(len(row.prompt) for row in rows), sum(len(t.token_ids) for t in texts)
    return {
        "id": f"cmpl-{uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": name,
        "choices": choices,
        "usage": {
            "prompt_tokens": read,
            "completion_tokens": wrote,
            "total_tokens": read + wrote,
        },
    }


def scored_row(request: CompletionRequest, row: Row, text: Text) -> Row:
    """The row whose numbers the logprobs of a text are made of, and those of its prompt if asked.

    A prompt is read as its first token and what follows it.
    """
    if request.prompt_logprobs is None:
        return Row(row.prompt, text.token_ids)
    return Row(row.prompt[:1], [*row.prompt[1:], *text.token_ids])


def _logprobs(
    model: LanguageModel, request: CompletionRequest, ids: Sequence[int], numbers: Numbers
) -> dict[str, Any]:
    names = _names(model, request, ids)
    top_names = [_names(model, request, row) for row in numbers.top_ids.tolist()]
    top = (numbers.top_logits - numbers.values[:, _TOTAL, None]).tolist()
    lengths = [0, *(len(name) for name in names)]
    taken = (numbers.values[:, _TAKEN] - numbers.values[:, _TOTAL]).tolist()
    return {
        "tokens": names,
        "token_logprobs": taken,
        "top_logprobs": [
            {name: value, **dict(zip(others[: request.logprobs], values, strict=False))}
            for name, value, others, values in zip(names, taken, top_names, top, strict=True)
        ],
        "text_offset": [sum(lengths[: i + 1]) for i in range(len(names))],
    }


def _prompt_logprobs(
    model: LanguageModel, request: CompletionRequest, ids: Sequence[int], numbers: Numbers
) -> list[dict[str, Any] | None]:
    """Of every token of the prompt but the first: it, with its rank, and the likeliest ones."""
    taken = (numbers.values[:, _TAKEN] - numbers.values[:, _TOTAL]).tolist()
    top = (numbers.top_logits - numbers.values[:, _TOTAL, None]).tolist()
    found: list[dict[str, Any] | None] = [None]
    for i, (token, rank, likeliest) in enumerate(
        zip(ids[1:], numbers.ranks.tolist(), numbers.top_ids.tolist(), strict=True)
    ):
        places = list(enumerate(likeliest[: request.prompt_logprobs], 1))
        named = {token: (taken[i], rank)}
        named |= {other: (top[i][r - 1], r) for r, other in places if other != token}
        found.append(
            {
                str(other): {
                    "logprob": value,
                    "rank": place,
                    "decoded_token": model.tokenizer.convert_ids_to_tokens(other),
                }
                for other, (value, place) in named.items()
            }
        )
    return found


def _names(model: LanguageModel, request: CompletionRequest, ids: Sequence[int]) -> list[str]:
    if request.return_tokens_as_token_ids:
        return [f"token_id:{token}" for token in ids]
    return [str(token) for token in model.tokenizer.convert_ids_to_tokens(list(ids))]
