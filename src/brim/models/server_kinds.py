"""The servers that a teacher may be behind: vLLM, SGLang, `brim serve`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from brim.errors import ConfigError
from brim.models.http import HTTPClient
from brim.models.server_api import (
    Allowed,
    Ids,
    RowValues,
    ServerAPI,
    reading,
    text_of,
)
from brim.models.settings import Centering


class BrimAPI(ServerAPI):
    """`brim serve`: raw logits, so that every centering but by the policy can be had."""

    name = "brim"
    centerings = ("none", "mean", "max", "logsumexp")
    takes_any_id = True
    plain: ClassVar[Mapping[str, Any]] = {}

    def counted(self, num_forced: int) -> int:
        """Return those of the server's own generation settings, as far as it says them."""
        value = self.card.get("forced_tokens")
        return value if isinstance(value, int) else num_forced

    def _score(
        self,
        rows: Sequence[tuple[Ids, Ids]],
        centering: Centering,
        bootstrap: bool,
        allowed: Allowed,
        shown: int = 1,
    ) -> list[RowValues]:
        wanted = dict.fromkeys(("taken", "best", "logsumexp"))
        wanted |= {"mean": None} if centering == "mean" else {}
        body = {
            "model": self.model,
            "prompts": [list(prompt) for prompt, _ in rows],
            "completions": [list(completion) for _, completion in rows],
            "values": list(wanted),
            "bootstrap": bootstrap,
            "excluded": list(allowed.excluded),
        }
        answer = self.client.post("/v1/score", body)
        with reading(self):
            pairs = zip(rows, answer["rows"], strict=True)
            return [_center(row, len(ids), centering, bootstrap) for (_, ids), row in pairs]


class SGLangAPI(ServerAPI):
    """SGLang's `/generate`. Written to its documentation, and never run."""

    name = "sglang"

    def version(self) -> str | None:
        """Return the server's version, None where it does not say."""
        found = self.if_known(lambda: self.client.get("/get_server_info"))
        return text_of(found, "version")

    def _states(
        self, rows: Sequence[tuple[Ids, Ids]], shown: int, *, after: bool
    ) -> list[tuple[list[float], list[dict[int, float]]]]:
        body = {
            "input_ids": [[*prompt, *completion] for prompt, completion in rows],
            "sampling_params": {"max_new_tokens": 1, "temperature": 0, "ignore_eos": True},
            "return_logprob": True,
            "logprob_start_len": [max(len(prompt) - 1, 0) for prompt, _ in rows],
            "top_logprobs_num": shown,
        }
        found = []
        with reading(self):
            answers = self.client.post("/generate", body)
            for (_, ids), answer in zip(rows, answers, strict=True):
                meta = answer["meta_info"]
                # Counted from the end: where the list begins is a matter of its version.
                own = meta["input_token_logprobs"][-len(ids) :]
                if [int(entry[1]) for entry in own] != list(ids):
                    raise ValueError("other tokens than were sent")
                states = meta["input_top_logprobs"][-len(ids) :]
                states += [meta["output_top_logprobs"][0]] if after else []
                tops = [{int(e[1]): float(e[0]) for e in state} for state in states]
                taken = [float(entry[0]) for entry in own]
                for token, value, top in zip(ids, taken, tops, strict=False):
                    top.setdefault(token, value)
                found.append((taken, tops))
        return found

    def _write(
        self, prompts: Sequence[Ids], max_tokens: int, ends: Ids, settings: Mapping[str, Any]
    ) -> list[list[int]]:
        sampling = dict(settings)
        if "seed" in sampling:
            sampling["sampling_seed"] = sampling.pop("seed")
        body = {
            "input_ids": [list(ids) for ids in prompts],
            "sampling_params": {
                "max_new_tokens": max_tokens,
                "stop_token_ids": list(ends),
                "ignore_eos": True,
                **sampling,
            },
            "return_logprob": True,
        }
        answers = self.client.post("/generate", body)
        with reading(self):
            entries = [answer["meta_info"]["output_token_logprobs"] for answer in answers]
            return [[int(entry[1]) for entry in row] for row in entries]


APIS: Mapping[str, type[ServerAPI]] = {api.name: api for api in (ServerAPI, SGLangAPI, BrimAPI)}


def find_api(client: HTTPClient, model: str, api: str) -> ServerAPI:
    """Return a server's API, once it has the model.

    Args:
        client: connections to it.
        model: as it calls it.
        api: a name of `APIS`, or `auto` to ask it.

    Raises:
        ConfigError: it has no such model, or none of these APIs.
        AwayError: it gives no answer.
    """
    answer = client.get("/v1/models")
    try:
        cards = {str(card["id"]): card for card in answer["data"]}
    except (TypeError, KeyError):
        raise ConfigError(
            f"teacher.server: what {client.url}/v1/models answers is no list of models; check the "
            "URL"
        ) from None
    if model not in cards:
        raise ConfigError(
            f"teacher.model: {client.url} has no model {model!r}; it has "
            f"{', '.join(map(repr, cards)) or 'none'}"
        )
    owner = str(cards[model].get("owned_by"))
    if (owner if api == "auto" else api) not in APIS:
        raise ConfigError(
            f"teacher.api: the server says that its models are owned by {owner!r}, which is none "
            f"of {', '.join(APIS)}; name the one whose API it has"
        )
    return APIS[owner if api == "auto" else api](client, cards[model])


def _center(
    row: Mapping[str, Any], length: int, centering: Centering, bootstrap: bool
) -> RowValues:
    """What `brim serve` says of a completion, less the statistic of each state."""
    taken, best, logsumexp = (
        [float(value) for value in row[name]] for name in ("taken", "best", "logsumexp")
    )
    if not len(taken) == len(best) == len(logsumexp) == length:
        raise ValueError(f"{len(taken)} values for {length} tokens")
    name = {"none": None, "max": "best"}.get(centering, centering)
    center = [0.0] * length if name is None else [float(value) for value in row[name]]

    def less(values: Sequence[float], others: Sequence[float]) -> list[float]:
        return [a - b for a, b in zip(values, others, strict=True)]

    after = None
    if bootstrap:
        behind = row["after"]
        after = float(behind["best"]) - (0.0 if name is None else float(behind[name]))
    return RowValues(less(taken, center), less(best, center), less(taken, logsumexp), after)
