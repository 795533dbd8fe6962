"""The engine for vLLM, against a stand-in: vLLM itself was never run here.

`FakeLLM` has the shape that vLLM documents and computes by the model in the folder that it is
given, so that what the engine makes of its answers can be compared with our own passes.
"""

import gc
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import EOS, NUM_ROWS, NUM_TOKENS, encoded, prompts, tiny_language_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from brim.errors import ModelError
from brim.models import Decoding, LanguageModel, Lora, VLLMEngine, add_adapters, check_vllm
from brim.models.vllm import _engines


@dataclass
class FakeSamplingParams:
    """Those of vLLM's that are used here, with its defaults."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    max_tokens: int = 16
    stop_token_ids: list[int] = field(default_factory=list)
    ignore_eos: bool = False
    detokenize: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: dict[int, float] | None = None


class FakeLLM:
    """`vllm.LLM`; with `prompts_follow_mode = False` one before pull request 47680."""

    prompts_follow_mode = True
    made: list["FakeLLM"] = []  # noqa: RUF012

    def __init__(self, *, model: str, skip_tokenizer_init: bool, **options: Any) -> None:
        assert skip_tokenizer_init
        torch.manual_seed(options["seed"])  # as it does in its caller's process
        self.model = AutoModelForCausalLM.from_pretrained(model).eval()
        self.options, self.calls, self.resets = options, [], 0
        FakeLLM.made.append(self)

    def apply_model(self, function: Callable[[Any], Any]) -> list[Any]:
        def load_weights(weights: Iterable[tuple[str, Tensor]]) -> set[str]:
            parameters, loaded = dict(self.model.named_parameters()), set()
            for name, value in weights:
                parameters[name].data.copy_(value)
                loaded.add(name)
            assert loaded == set(parameters)
            return loaded

        return [function(SimpleNamespace(load_weights=load_weights))]

    def reset_prefix_cache(self) -> bool:
        self.resets += 1
        return True

    def generate(
        self,
        prompts: Sequence[dict[str, list[int]]],
        params: Sequence[FakeSamplingParams],
        *,
        use_tqdm: bool,
    ) -> list[Any]:
        torch.rand(3)
        self.calls.append(list(params))
        rows = zip(prompts, params, strict=True)
        return [self.answer(prompt["prompt_token_ids"], row) for prompt, row in rows]

    @torch.no_grad()
    def answer(self, prompt: list[int], params: FakeSamplingParams) -> Any:
        assert not params.detokenize
        assert params.ignore_eos
        ids, told = list(prompt), []
        generator = torch.Generator().manual_seed(params.seed or 0)
        while len(ids) < len(prompt) + params.max_tokens:
            logits = self.model(torch.tensor([ids])).logits[0, -1].float()
            raw = logits.clone()
            for token, bias in (params.logit_bias or {}).items():
                logits[token] += bias
            if params.temperature == 0:
                token = int(logits.argmax())
            else:
                logits /= params.temperature
                if params.top_k:
                    logits[logits < logits.topk(params.top_k).values[-1]] = -torch.inf
                token = int(logits.softmax(0).multinomial(1, generator=generator))
            ids.append(token)
            told.append(self.tell(raw, token, self.options["logprobs_mode"]))
            if token in params.stop_token_ids:
                break
        mode = self.options["logprobs_mode"] if self.prompts_follow_mode else "raw_logprobs"
        rows = self.model(torch.tensor([prompt])).logits[0].float()
        read = [self.tell(row, token, mode) for row, token in zip(rows, prompt[1:], strict=False)]
        completion = SimpleNamespace(
            token_ids=tuple(ids[len(prompt) :]), logprobs=told if params.logprobs else None
        )
        return SimpleNamespace(
            outputs=[completion], prompt_logprobs=[None, *read] if params.prompt_logprobs else None
        )

    @staticmethod
    def tell(logits: Tensor, token: int, mode: str) -> dict[int, Any]:
        """The written token and the best one."""
        values = logits if mode == "raw_logits" else logits.log_softmax(0)
        return {t: SimpleNamespace(logprob=float(values[t])) for t in {token, int(values.argmax())}}


@pytest.fixture(autouse=True)
def fake_vllm(monkeypatch):
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = FakeLLM, FakeSamplingParams
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.setattr(FakeLLM, "made", [])
    monkeypatch.setattr(FakeLLM, "prompts_follow_mode", True)


def language_model(family: str, *, holes_win: bool = False) -> LanguageModel:
    """Rows without a token are never the best one, or in many states."""
    model = tiny_language_model(family)
    with torch.no_grad():
        model.model.get_output_embeddings().weight[NUM_TOKENS:] *= 2.0 if holes_win else 1e-3
    return model.eval()


GREEDY = Decoding(max_tokens=12, strategy="greedy")
FAMILIES = ("qwen2", "gpt2", "llama")


@pytest.mark.parametrize("holes_win", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_is_that_of_the_loop(family, holes_win):
    model = language_model(family, holes_win=holes_win)
    batch = encoded(model, (3, 1, 6, 2, 4))
    expected = model.generate(batch, GREEDY)
    found = model.generate(
        batch,
        Decoding(max_tokens=12, strategy="greedy", engine="vllm", temperature=3.0, batch_tokens=20),
    )
    for name in ("completion_ids", "mask", "truncated"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    (engine,) = FakeLLM.made
    assert len(engine.calls) == 1
    assert engine.options["logprobs_mode"] == "raw_logprobs"
    assert engine.options["dtype"] == "float32"
    assert 0 < engine.options["gpu_memory_utilization"] < 0.5
    assert engine.calls[0][0].logit_bias == dict.fromkeys(range(NUM_TOKENS, NUM_ROWS), -100.0)
    assert engine.calls[0][0].stop_token_ids == [EOS]


def test_each_row_is_sampled_from_its_own_seed_as_decoding_says():
    model = language_model("qwen2")
    batch = model.encode(prompts(), max_tokens=None, seeds=(7, 2**62, 3, 4, 5))
    decoding = Decoding(max_tokens=9, temperature=0.7, top_k=6, engine="vllm")
    state = torch.get_rng_state()
    rollout = model.generate(batch, decoding)
    assert torch.equal(torch.get_rng_state(), state)
    ((first, *_),) = FakeLLM.made[0].calls
    assert (first.temperature, first.top_k, first.top_p, first.max_tokens) == (0.7, 6, 1.0, 9)
    assert [row.seed for row in FakeLLM.made[0].calls[0]] == [7, 2**62, 3, 4, 5]
    alone = model.generate(batch.select([1]), decoding)
    length = int(alone.lengths)
    assert torch.equal(alone.completion_ids[0], rollout.completion_ids[1, :length])
    assert not torch.equal(rollout.completion_ids, model.generate(batch, GREEDY).completion_ids)
    model.generate(batch, Decoding(max_tokens=3, top_p=0.4, engine="vllm"))
    last = FakeLLM.made[0].calls[-1][0]
    assert (last.temperature, last.top_k, last.top_p) == (1.0, 0, 0.4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("adapters", [False, True])
def test_new_weights_write_the_next_text(family, adapters, monkeypatch):
    model = language_model(family)
    if adapters:
        with monkeypatch.context() as patch:  # what peft imports looks for the GPU
            patch.setattr(torch.cuda, "is_available", lambda: False)
            add_adapters(model.model, Lora(), seed=0)
    batch = encoded(model)
    decoding = Decoding(max_tokens=12, strategy="greedy", engine="vllm")
    before = model.generate(batch, decoding)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.dim() > 1:
                # Past the version counters, as the kernels of some optimizers write.
                parameter.data += 0.3 * torch.randn(
                    parameter.shape, generator=torch.Generator().manual_seed(1)
                )
        model.model.get_output_embeddings().weight[NUM_TOKENS:] *= 1e-3
    expected, found = model.generate(batch, GREEDY), model.generate(batch, decoding)
    assert torch.equal(found.completion_ids, expected.completion_ids)
    assert found.completion_ids.tolist() != before.completion_ids.tolist()
    (engine,) = FakeLLM.made  # one engine writes for a model's whole life
    assert engine.resets == 2


def test_a_copy_has_an_engine_of_its_own_and_a_lost_model_none():
    model = language_model("qwen2")
    batch, decoding = encoded(model), Decoding(max_tokens=2, engine="vllm")
    model.generate(batch, decoding)
    copy = model.copy()
    copy.generate(batch, decoding)
    assert len(FakeLLM.made) == len([m for m in _engines if m in (model, copy)]) == 2
    number = len(_engines)
    del copy
    gc.collect()
    assert len(_engines) == number - 1


@pytest.mark.parametrize("bootstrap", [False, True])
@pytest.mark.parametrize(
    ("mode", "centering"),
    [("raw_logits", "none"), ("raw_logprobs", "logsumexp"), ("raw_logprobs", "max")],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_q_values_are_those_of_our_own_pass(family, mode, centering, bootstrap):
    model = language_model(family)
    model.model.get_output_embeddings().weight.data[NUM_TOKENS:] = 0
    rollout = model.generate(encoded(model), Decoding(max_tokens=7))
    assert rollout.truncated.any()
    expected = model.action_values(rollout, centering=centering, bootstrap=bootstrap)
    # vLLM's logsumexp has the rows without a token, whose logits are 0 here.
    logits = model.action_values(rollout).q_taken
    without = (logits - model.action_values(rollout, centering="logsumexp").q_taken).exp()
    surplus = torch.where(rollout.mask, ((without + NUM_ROWS - NUM_TOKENS) / without).log(), 0.0)
    engine = VLLMEngine(model, logprobs_mode=mode)
    found = engine.action_values(rollout, centering=centering, bootstrap=bootstrap)
    shift = surplus if centering == "logsumexp" else 0.0
    torch.testing.assert_close(found.q_taken, expected.q_taken - shift, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.q_max, expected.q_max - shift, rtol=0, atol=1e-4)
    if mode == "raw_logits":
        assert found.logprobs[rollout.mask].isnan().all()
    else:
        torch.testing.assert_close(found.logprobs, expected.logprobs - surplus, rtol=0, atol=1e-4)
    assert (found.bootstrap is None) == (not bootstrap)
    if bootstrap:
        assert found.bootstrap.shape == (len(rollout),)
        assert (found.bootstrap[~rollout.truncated] == 0).all()
        if centering != "logsumexp":
            torch.testing.assert_close(found.bootstrap, expected.bootstrap, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("mode", "centering"),
    [("raw_logits", "mean"), ("raw_logprobs", "mean"), ("raw_logprobs", "none")],
)
def test_a_centring_that_cannot_be_had_is_refused(mode, centering):
    model = language_model("qwen2")
    engine = VLLMEngine(model, logprobs_mode=mode)
    with pytest.raises(ModelError, match=f"q_centering {centering}: not given") as error:
        engine.action_values(model.generate(encoded(model), GREEDY), centering=centering)
    assert "\n" not in str(error.value)


def test_a_vllm_that_gives_logprobs_for_logits_is_refused():
    model = language_model("qwen2")
    rollout = model.generate(encoded(model), GREEDY)
    FakeLLM.prompts_follow_mode = False
    with pytest.raises(ModelError, match="issue 35832") as error:
        VLLMEngine(model, logprobs_mode="raw_logits").action_values(rollout, centering="none")
    assert "\n" not in str(error.value)
    values = VLLMEngine(model).action_values(rollout, centering="max")
    expected = model.action_values(rollout, centering="max")
    torch.testing.assert_close(values.q_taken, expected.q_taken, rtol=0, atol=1e-4)


def test_a_best_row_without_a_token_is_refused():
    model = language_model("qwen2", holes_win=True)
    rollout = model.generate(encoded(model), GREEDY)
    with pytest.raises(ModelError, match="row 4. of the head, which has no token"):
        VLLMEngine(model).action_values(rollout, centering="max")


def test_options_reach_vllm():
    VLLMEngine(language_model("qwen2"), gpu_memory_utilization=0.8, max_model_len=64)
    assert FakeLLM.made[0].options["gpu_memory_utilization"] == 0.8
    assert FakeLLM.made[0].options["max_model_len"] == 64


def test_what_cannot_work_is_said_in_one_line(monkeypatch):
    decoding = Decoding(max_tokens=4, engine="vllm")
    t5, qwen2 = tiny_language_model("t5"), language_model("qwen2")

    def message(model: LanguageModel) -> str:
        with pytest.raises(ModelError) as checked:
            check_vllm(model)
        with pytest.raises(ModelError) as written:
            model.generate(encoded(model), decoding)
        assert str(checked.value) == str(written.value)
        assert "\n" not in str(written.value)
        return str(written.value)

    assert "this is an encoder-decoder" in message(t5)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        assert "needs a CUDA GPU" in message(qwen2)
    with monkeypatch.context() as patch:
        patch.setattr(torch.distributed, "is_initialized", lambda: True)
        patch.setattr(torch.distributed, "get_world_size", lambda: 2)
        assert "one process only" in message(qwen2)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "vllm", None)
        assert "pip install 'brim-distill[vllm]'" in message(qwen2)
    assert FakeLLM.made == []


def test_more_tokens_than_positions_are_refused():
    model = language_model("qwen2")
    with pytest.raises(ModelError, match="exceeds the model's 64 positions"):
        model.generate(encoded(model), Decoding(max_tokens=60, engine="vllm"))
