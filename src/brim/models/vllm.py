"""Rollouts and Q-values by vLLM, for decoder-only models on a CUDA GPU.

Written to vLLM's documentation (0.11 and later) and never run: its authors had no GPU. The tests
put a module of the documented shape in its place.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from brim.errors import ModelError
from brim.models.adapters import has_adapters, merged_state_dict
from brim.models.decoding import GeneratingModel, Written
from brim.models.encoding import pad
from brim.models.settings import Centering, Decoding
from brim.types import ActionValues, Batch, Rollout

# vLLM takes its share of the GPU's memory at once and keeps it; the rest is for training.
MEMORY_SHARE = 0.3

# vLLM has no bias below this; a row without a token is sampled with exp(-100) of its probability.
LOWEST_BIAS = -100.0

# vLLM gives two logits a state, the written token's and the largest: as they are, or less the
# logsumexp.
_CENTERINGS: dict[str, tuple[Centering, ...]] = {
    "raw_logits": ("none",),
    "raw_logprobs": ("logsumexp", "max"),
}

_engines: WeakKeyDictionary[GeneratingModel, VLLMEngine] = WeakKeyDictionary()


def generate_with_vllm(model: GeneratingModel, batch: Batch, decoding: Decoding) -> Written:
    """`VLLMEngine.write` of an engine that is started at the model's first call and kept.

    Raises:
        ModelError: as `check_vllm`.
    """
    if model not in _engines:
        _engines[model] = VLLMEngine(model)
    _engines[model].load(model)
    return _engines[model].write(batch, decoding)


def check_vllm(model: GeneratingModel) -> None:
    """Check that vLLM can write for the model here.

    Raises:
        ModelError: the model is an encoder-decoder, there is no CUDA GPU, several processes run,
            or vLLM is not installed.
    """
    if model.is_encoder_decoder:
        raise ModelError(
            "engine vllm: it writes for decoder-only models, and this is an encoder-decoder; "
            "choose loop"
        )
    if not torch.cuda.is_available():
        raise ModelError("engine vllm: needs a CUDA GPU, and there is none; choose loop")
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        raise ModelError("engine vllm: knows one process only; choose loop, or run one")
    _import_vllm()


class VLLMEngine:
    """A decoder-only model inside vLLM, in this process, beside the one that is trained.

    Args:
        model: what vLLM begins with; it is written to a temporary folder and read from there.
        logprobs_mode: what `action_values` is made of.
        **options: of `vllm.LLM`, such as `gpu_memory_utilization` or `max_model_len`.

    Raises:
        ModelError: as `check_vllm`.
    """

    def __init__(
        self,
        model: GeneratingModel,
        *,
        logprobs_mode: Literal["raw_logprobs", "raw_logits"] = "raw_logprobs",
        **options: Any,
    ) -> None:
        check_vllm(model)
        self._vllm = _import_vllm()
        self.logprobs_mode = logprobs_mode
        self.eos_token_ids, self.pad_token_id = model.eos_token_ids, model.pad_token_id
        self._excluded = frozenset(model.excluded_rows)
        self._prompts_follow_mode = False
        settings = {
            "dtype": str(model.model.dtype).removeprefix("torch."),
            "gpu_memory_utilization": MEMORY_SHARE,
            "seed": 0,
        }
        with tempfile.TemporaryDirectory() as folder, _generators_kept():
            model.save(folder)
            self._llm = self._vllm.LLM(
                model=folder,
                skip_tokenizer_init=True,
                logprobs_mode=logprobs_mode,
                **{**settings, **options},
            )

    def load(self, model: GeneratingModel) -> None:
        """Give vLLM the model's weights, adapters merged; to be called after every update."""
        inner = model.model
        state = merged_state_dict(inner) if has_adapters(inner) else inner.state_dict()
        # A tied head is in there twice, and vLLM knows it by the embedding's name.
        weights: dict[int, tuple[str, Tensor]] = {}
        for name, value in state.items():
            weights.setdefault(value.data_ptr(), (name, value))

        def load(served: Any) -> None:
            served.load_weights(weights.values())

        self._llm.apply_model(load)
        self._llm.reset_prefix_cache()  # which has the keys and values of the old weights

    def write(self, batch: Batch, decoding: Decoding) -> Written:
        """Write a completion of each prompt; a row draws from a stream seeded by its own seed.

        `decoding.batch_tokens` has no effect: vLLM schedules.
        """
        sampling = {"temperature": 0.0}
        if decoding.strategy == "sampling":
            top_p = 1.0 if decoding.top_p is None else decoding.top_p
            sampling = {"temperature": decoding.temperature, "top_p": top_p}
            sampling |= {"top_k": decoding.top_k or 0}
        bias = dict.fromkeys(sorted(self._excluded), LOWEST_BIAS)
        outputs = self._generate(
            _rows(batch.prompt_ids, batch.prompt_mask),
            [
                {
                    "seed": seed,
                    "max_tokens": decoding.max_tokens,
                    "stop_token_ids": list(self.eos_token_ids),
                    "logit_bias": bias or None,
                    **sampling,
                }
                for seed in batch.seeds
            ],
        )
        written = [list(output.outputs[0].token_ids) for output in outputs]
        ids, mask = pad(written, self.pad_token_id, "right")
        truncated = torch.tensor([row[-1] not in self.eos_token_ids for row in written])
        device = batch.prompt_ids.device
        return ids.to(device), mask.sum(dim=1).to(device), truncated.to(device)

    def action_values(
        self, rollout: Rollout, *, centering: Centering, bootstrap: bool = False
    ) -> ActionValues:
        """The logits as Q-values of the rollout's tokens, as `LanguageModel.action_values`.

        With `raw_logprobs` `centering` is `logsumexp` or `max`; with `raw_logits` it is `none` and
        `logprobs` is NaN. vLLM's largest logit and logsumexp are over all rows of the head, also
        those without a token.

        Raises:
            ModelError: this mode cannot give the centering, a row without a token is the best one,
                or this vLLM gives log-probabilities of prompts whatever its mode.
        """
        if centering not in _CENTERINGS[self.logprobs_mode]:
            raise ModelError(
                f"q_centering {centering}: not given by vLLM's {self.logprobs_mode}, which "
                f"gives {' and '.join(_CENTERINGS[self.logprobs_mode])}; choose one of these, "
                "another logprobs_mode, or score with the model itself"
            )
        self._check_mode()
        batch, mask = rollout.batch, rollout.mask
        prompts = _rows(batch.prompt_ids, batch.prompt_mask)
        completions = _rows(rollout.completion_ids, mask)
        read = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 1, "logprobs": 1}
        texts = [p + c for p, c in zip(prompts, completions, strict=True)]
        outputs = self._generate(texts, [read] * len(texts))
        taken, best, after = [], [], []
        for prompt, completion, output in zip(prompts, completions, outputs, strict=True):
            states = output.prompt_logprobs[len(prompt) :]
            taken += [s[token].logprob for s, token in zip(states, completion, strict=True)]
            best += [self._best(state) for state in states]
            after.append(self._best(output.outputs[0].logprobs[0]))

        def scatter(numbers: list[float]) -> Tensor:
            values = torch.tensor(numbers, device=mask.device)
            return torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, values)

        values = ActionValues(scatter(taken), scatter(best), scatter(taken))
        following = torch.tensor(after, device=mask.device)
        if centering == "max":
            values = ActionValues(values.q_taken - values.q_max, values.q_max * 0, values.q_taken)
            following = following * 0
        if centering == "none":
            unknown = values.q_taken.masked_fill(mask, torch.nan)
            values = ActionValues(values.q_taken, values.q_max, unknown)
        if not bootstrap:
            return values
        following = following.masked_fill(~rollout.truncated, 0.0)
        return ActionValues(values.q_taken, values.q_max, values.logprobs, following)

    def _best(self, state: dict[int, Any]) -> float:
        token, entry = max(state.items(), key=lambda item: item[1].logprob)
        if token in self._excluded:
            raise ModelError(
                f"vLLM: row {token} of the head, which has no token, is the best of a state, and "
                "vLLM gives no other; score with the model itself"
            )
        return float(entry.logprob)

    def _check_mode(self) -> None:
        """Check that prompts give logits too, as since vLLM's pull request 47680 (issue 35832)."""
        if self.logprobs_mode == "raw_logprobs" or self._prompts_follow_mode:
            return
        start = self.eos_token_ids[0]
        options = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 1, "logprobs": 1}
        short, long = self._generate([[start], [start, start]], [options] * 2)
        written = self._best(short.outputs[0].logprobs[0])
        read = self._best(long.prompt_logprobs[1])
        if abs(written - read) > 0.02 * max(1.0, abs(written)):
            raise ModelError(
                "vLLM: gives log-probabilities of prompts where raw_logits were asked for (its "
                "issue 35832); install a newer one, or choose raw_logprobs and q_centering "
                "logsumexp"
            )
        self._prompts_follow_mode = True

    def _generate(self, prompts: list[list[int]], options: list[dict[str, Any]]) -> list[Any]:
        """The answers, in order; only `options` say which tokens end a text."""
        params = [
            self._vllm.SamplingParams(detokenize=False, ignore_eos=True, **row) for row in options
        ]
        texts = [{"prompt_token_ids": ids} for ids in prompts]
        with _generators_kept():
            answers: list[Any] = self._llm.generate(texts, params, use_tqdm=False)
        return answers


def _rows(ids: Tensor, mask: Tensor) -> list[list[int]]:
    """The ids of each row where its mask is True."""
    return [row[counts].tolist() for row, counts in zip(ids.cpu(), mask.cpu(), strict=True)]


@contextmanager
def _generators_kept() -> Iterator[None]:
    """Python's, NumPy's and torch's global generators as they were; in process vLLM seeds them."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _import_vllm() -> Any:
    # In this process weights are handed over as they are, and the schedule does not depend on time.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    try:
        import vllm
    except ImportError as error:
        raise ModelError(
            "engine vllm: needs the package vllm: pip install 'brim-distill[vllm]'"
        ) from error
    return vllm
