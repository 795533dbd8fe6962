"""The engine for vLLM, against a stand-in; `tests/e2e/test_real_vllm.py` has vLLM itself.

`FakeLLM` has the shape of vLLM 0.32 and computes by transformers, so that what the engine makes of
its answers can be compared with our own passes.
"""

import gc
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tiny import EOS, NUM_TOKENS, encoded, prompts, tiny_language_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from brim.errors import ModelError, NonFiniteError
from brim.models import Decoding, LanguageModel, Lora, VLLMEngine, add_adapters, check_vllm
from brim.models.vllm import _ENVIRONMENT, _engines


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
    prompt_logprobs: int | None = None


class FakeLLM:
    """`vllm.LLM` of 0.32, which starts from random weights; `stale` ones are never reloaded."""

    stale: str | None = None
    made: list["FakeLLM"] = []  # noqa: RUF012

    def __init__(self, *, model: str, skip_tokenizer_init: bool, **options: Any) -> None:
        assert skip_tokenizer_init
        assert options["load_format"] == "dummy"
        torch.manual_seed(options["seed"])  # as it does in its caller's process
        torch.set_num_threads = lambda number: None  # and this
        config = AutoConfig.from_pretrained(model)
        (name,) = config.architectures
        self.model = AutoModelForCausalLM.from_config(config).eval()
        assert type(self.model).__name__ == name
        for parameter in self.model.parameters():
            nn.init.uniform_(parameter, -1e-3, 1e-3)
        head = self.model.get_output_embeddings()
        self.model.compute_logits = lambda hidden: head(hidden)  # so vLLM's models end
        self.options, self.calls, self.resets = options, [], 0
        FakeLLM.made.append(self)

    def apply_model(self, function: Callable[[Any], Any]) -> list[Any]:
        return [function(self.model)]

    def collective_rpc(self, method: str, *, kwargs: dict[str, Any]) -> list[None]:
        assert method == "reload_weights"
        loaded = dict(kwargs["weights_iterator"])
        state = self.model.state_dict()
        assert loaded.keys() == state.keys()
        for key, value in loaded.items():
            if self.stale is None or self.stale not in key:
                state[key].copy_(value)
        return [None]

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
        longest = self.options.get("max_model_len", 64)
        if max(len(prompt["prompt_token_ids"]) for prompt in prompts) > longest:
            raise ValueError(f"The prompt is longer than\nthe maximum model length of {longest}.")
        rows = zip(prompts, params, strict=True)
        return [self.answer(prompt["prompt_token_ids"], row) for prompt, row in rows]

    def logits(self, ids: list[int]) -> Tensor:
        hidden = self.model.base_model(torch.tensor([ids])).last_hidden_state
        return self.model.compute_logits(hidden)[0].float()

    @torch.no_grad()
    def answer(self, prompt: list[int], params: FakeSamplingParams) -> Any:
        assert not params.detokenize
        assert params.ignore_eos
        ids = list(prompt)
        generator = torch.Generator().manual_seed(params.seed or 0)
        while len(ids) < len(prompt) + params.max_tokens:
            logits = self.logits(ids)[-1]
            if params.temperature == 0:
                token = int(logits.argmax())
            else:
                logits /= params.temperature
                if params.top_k:
                    logits[logits < logits.topk(params.top_k).values[-1]] = -torch.inf
                token = int(logits.softmax(0).multinomial(1, generator=generator))
            ids.append(token)
            if token in params.stop_token_ids:
                break
        read = None
        if params.prompt_logprobs is not None:
            rows = zip(self.logits(prompt).log_softmax(1), prompt[1:], strict=False)
            read = [None, *({t: SimpleNamespace(logprob=float(row[t]))} for row, t in rows)]
        completion = SimpleNamespace(token_ids=tuple(ids[len(prompt) :]))
        return SimpleNamespace(outputs=[completion], prompt_logprobs=read)


@pytest.fixture(autouse=True)
def fake_vllm(monkeypatch):
    module, platforms = ModuleType("vllm"), ModuleType("vllm.platforms")
    module.LLM, module.SamplingParams, module.platforms = FakeLLM, FakeSamplingParams, platforms
    platforms.current_platform = SimpleNamespace(is_unspecified=lambda: False)
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)
    for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", *_ENVIRONMENT):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(FakeLLM, "made", [])
    monkeypatch.setattr(FakeLLM, "stale", None)


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
    assert len(engine.calls) == 2  # the probe of the weights, and all prompts together
    assert engine.options["dtype"] == "float32"
    assert 0 < engine.options["gpu_memory_utilization"] < 0.5
    assert engine.calls[1][0].stop_token_ids == [EOS]


def test_each_row_is_sampled_from_its_own_seed_as_decoding_says():
    model = language_model("qwen2")
    batch = model.encode(prompts(), max_tokens=None, seeds=(7, 2**62, 3, 4, 5))
    decoding = Decoding(max_tokens=9, temperature=0.7, top_k=6, engine="vllm")
    rollout = model.generate(batch, decoding)
    _, (first, *_) = FakeLLM.made[0].calls
    assert (first.temperature, first.top_k, first.top_p, first.max_tokens) == (0.7, 6, 1.0, 9)
    assert [row.seed for row in FakeLLM.made[0].calls[1]] == [7, 2**62, 3, 4, 5]
    alone = model.generate(batch.select([1]), decoding)
    length = int(alone.lengths)
    assert torch.equal(alone.completion_ids[0], rollout.completion_ids[1, :length])
    assert not torch.equal(rollout.completion_ids, model.generate(batch, GREEDY).completion_ids)
    model.generate(batch, Decoding(max_tokens=3, top_p=0.4, engine="vllm"))
    last = FakeLLM.made[0].calls[-1][0]
    assert (last.temperature, last.top_k, last.top_p) == (1.0, 0, 0.4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("adapters", [False, True])
def test_new_weights_write_the_next_text(family, adapters):
    model = language_model(family)
    if adapters:
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


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_are_over_the_rows_that_are_written(family):
    model = language_model(family, holes_win=True)
    rollout = model.generate(encoded(model, (3,)), Decoding(max_tokens=9))
    engine = VLLMEngine(model)
    engine.load(model)
    text = [*rollout.batch.prompt_ids[0].tolist(), *rollout.completion_ids[0].tolist()]
    found = engine.logprobs(text)[-rollout.completion_ids.shape[1] :]
    torch.testing.assert_close(found, model.statistics(rollout).logprobs[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("stale", ["layers.0.mlp", "embed_tokens", "norm", "lm_head"])
def test_weights_that_stay_as_they_were_are_found(stale):
    model = language_model("llama")
    model.model.config.tie_word_embeddings = False  # of what vLLM serves
    FakeLLM.stale = stale
    with pytest.raises(ModelError, match="does not reload this architecture") as error:
        VLLMEngine(model).load(model)
    assert "\n" not in str(error.value)


def test_weights_that_are_no_numbers_are_refused():
    model = language_model("qwen2")
    with torch.no_grad():
        model.model.get_output_embeddings().weight[5] = torch.nan
    with pytest.raises(NonFiniteError, match="not finite"):
        VLLMEngine(model).load(model)


def test_what_vllm_changes_in_the_process_is_as_it_was():
    model = language_model("qwen2")
    state, threads = torch.get_rng_state(), torch.set_num_threads
    model.generate(encoded(model), Decoding(max_tokens=3, engine="vllm"))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.set_num_threads is threads


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
        platform = sys.modules["vllm.platforms"].current_platform
        patch.setattr(platform, "is_unspecified", lambda: True)
        assert "finds no device that it was built for" in message(qwen2)
    with monkeypatch.context() as patch:
        patch.setattr(torch.distributed, "is_initialized", lambda: True)
        patch.setattr(torch.distributed, "get_world_size", lambda: 2)
        assert "one process only" in message(qwen2)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "vllm", None)
        assert "pip install 'brim-distill[vllm]'" in message(qwen2)
    assert FakeLLM.made == []


def test_what_vllm_refuses_is_said_in_one_line():
    model = language_model("qwen2")
    engine = VLLMEngine(model, max_model_len=20)
    engine.load(model)
    with pytest.raises(ModelError, match="cannot write: .* length of 20") as error:
        engine.write(encoded(model, (30,)), Decoding(max_tokens=4))
    assert "\n" not in str(error.value)


def test_a_temperature_that_vllm_would_change_is_refused():
    assert Decoding(engine="vllm", temperature=0.01).temperature == 0.01
    with pytest.raises(ValidationError, match="samples at a temperature of 0.01"):
        Decoding(engine="vllm", temperature=0.005)


def test_more_tokens_than_positions_are_refused():
    model = language_model("qwen2")
    with pytest.raises(ModelError, match="exceeds the model's 64 positions"):
        model.generate(encoded(model), Decoding(max_tokens=60, engine="vllm"))
