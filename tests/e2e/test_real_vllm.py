"""Rollouts by vLLM itself, where it is installed: `pytest -m slow tests/e2e/test_real_vllm.py`.

Its CPU build is enough, in an environment of its own.
"""

import importlib.util
from functools import partial
from itertools import product

import pytest
import torch
from pairs import stopping
from scipy.stats import chisquare
from test_train import assert_same_run
from tiny import NUM_ROWS, NUM_TOKENS, prompts, word_tokenizer

from brim.errors import ModelError
from brim.models import Decoding, LanguageModel, Lora, VLLMEngine, add_adapters, build_model, vllm
from brim.models.vllm import _engines
from brim.runs.train import train
from brim.training.trainer import Interrupted
from brim.types import Rollout

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not importlib.util.find_spec("vllm"), reason="vLLM is not installed"),
]

FAMILIES = ("qwen2", "llama", "gpt2")
LENGTHS = tuple(1 + i % 9 for i in range(50))


def random_model(family: str) -> LanguageModel:
    """Heads as wide as vLLM's kernels for CPUs want them, and rows of the head without a token."""
    shape = {"family": family, "d_model": 64, "layers": 2, "heads": 2, "dropout": 0.0}
    model = build_model(shape, word_tokenizer(), seed=3)
    model.resize(NUM_ROWS)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.15 * torch.randn(parameter.shape, generator=generator)
        model.model.get_output_embeddings().weight[NUM_TOKENS:] *= 3.0  # they would often win
    return model.eval()


def engine_of(model: LanguageModel) -> VLLMEngine:
    """The model's engine, started without compilation."""
    return _engines.setdefault(model, VLLMEngine(model, enforce_eager=True))


def assert_written_by(model: LanguageModel, rollout: Rollout, expected: Rollout) -> None:
    """The same tokens, up to the first state whose two best ones are apart by rounding only."""
    regrets = model.action_values(rollout)
    regrets = regrets.q_max - regrets.q_taken
    assert regrets[rollout.mask].max() < 1e-3
    same = 0
    for row, length in enumerate(expected.lengths.tolist()):
        both = (texts.completion_ids[row, :length].tolist() for texts in (rollout, expected))
        same += rollout.lengths[row] == length and len({*map(tuple, both)}) == 1
    assert same >= len(rollout) - 2


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_is_that_of_the_loop(family):
    model = random_model(family)
    batch = model.encode(prompts(LENGTHS), max_tokens=None)
    greedy = Decoding(max_tokens=20, strategy="greedy")
    engine_of(model)
    found = model.generate(batch, greedy.model_copy(update={"engine": "vllm"}))
    assert found.completion_ids.max() < NUM_TOKENS
    with torch.no_grad():
        best = model.model(found.completion_ids).logits.argmax(dim=2)
    assert (best >= NUM_TOKENS).float().mean() > 0.2
    assert_written_by(model, found, model.generate(batch, greedy))


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 0.6, "top_k": 5}, {"temperature": 1.3, "top_p": 0.7}]
)
def test_sampled_text_has_the_distribution_of_the_loop(settings):
    model, number = random_model("qwen2"), 6000
    decoding = Decoding(max_tokens=2, engine="vllm", **settings)
    batch = model.encode(prompts((4,)), max_tokens=None).repeat(number)
    engine_of(model)
    found = model.generate(batch, decoding)
    counts: dict[tuple[int, ...], int] = {}
    for row, length in zip(found.completion_ids.tolist(), found.lengths.tolist(), strict=True):
        text = tuple(row[:length])
        counts[text] = counts.get(text, 0) + 1
    # Every text of up to two tokens, with the probability that the loop writes it by.
    end = model.eos_token_ids[0]
    texts = [(end,), *((a, b) for a, b in product(range(NUM_TOKENS), repeat=2) if a != end)]
    ids = torch.tensor([[*text, 0][:2] for text in texts])
    mask = torch.tensor([[True, len(text) == 2] for text in texts])
    whole = Rollout(batch.select([0] * len(texts)), ids, mask, torch.zeros(len(texts), dtype=bool))
    # A loss gives what top_k and top_p cut off a probability; the loop never writes it.
    statistics = model.statistics(whole, distribution=decoding.distribution)
    chances = statistics.logprobs.sum(dim=1).exp().double()
    kept = _kept(model, whole, decoding)
    chances = torch.where(kept, chances, 0.0)
    assert float(chances.sum()) == pytest.approx(1, abs=1e-4)
    assert all(chances[texts.index(text)] > 0 for text in counts)
    large = chances * number >= 5
    observed = torch.tensor([counts.get(text, 0) for text in texts]).double()
    bins = [*observed[large].tolist(), float(observed[~large].sum())]
    expected = [*(chances[large] * number).tolist(), float(chances[~large].sum()) * number]
    if expected[-1] < 5:
        bins[-2:], expected[-2:] = [sum(bins[-2:])], [sum(expected[-2:])]
    expected = [value * number / sum(expected) for value in expected]
    assert len(bins) > 10
    assert chisquare(bins, expected).pvalue > 1e-4


def _kept(model: LanguageModel, rollout: Rollout, decoding: Decoding) -> torch.Tensor:
    """Which texts the loop can write: no token is outside of what top_k and top_p keep."""
    features = model.features(rollout)
    head = features.head.under(decoding.distribution)
    with torch.no_grad():
        logits = head.logits(features.hidden)
    chosen = logits.softmax(dim=1).gather(1, features.token_ids[:, None]).squeeze(1) > 0
    kept = torch.ones(rollout.mask.shape, dtype=torch.bool).masked_scatter(rollout.mask, chosen)
    return kept.all(dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_after_each_reload_are_the_students_own(family, adapters, dtype):
    model = random_model(family).to(dtype)
    if adapters:
        add_adapters(model.model, Lora(r=4), seed=0)
    batch = model.encode(prompts((5,)), max_tokens=None)
    engine = VLLMEngine(model, enforce_eager=True)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        engine.load(model)
        rollout = model.generate(batch, Decoding(max_tokens=12))
        text = [*batch.prompt_ids[0].tolist(), *rollout.completion_ids[0].tolist()]
        found = engine.logprobs(text)[-rollout.completion_ids.shape[1] :]
        own = model.statistics(rollout).logprobs[0]
        close = 1e-3 if dtype == torch.float32 else 0.5
        torch.testing.assert_close(found, own, rtol=0, atol=close)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    change = torch.randn(parameter.shape, generator=generator)
                    parameter += 0.2 * change.to(parameter.dtype)


def test_weights_that_stay_as_they_were_are_found(monkeypatch):
    model = random_model("llama")
    engine = VLLMEngine(model, enforce_eager=True)
    engine.load(model)
    complete = model.model.state_dict

    def incomplete() -> dict[str, torch.Tensor]:
        return {name: value for name, value in complete().items() if "layers.1.mlp" not in name}

    monkeypatch.setattr(model.model, "state_dict", incomplete)
    engine.load(model)  # they are the same still
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1.1
    with pytest.raises(ModelError, match="does not reload this architecture") as error:
        engine.load(model)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("family", "lora", "compiled"),
    [
        ("llama", False, True),
        ("llama", True, False),
        ("qwen2", False, False),
        ("gpt2", True, False),
    ],
)
def test_ten_steps_and_resume(make_config, tmp_path, monkeypatch, family, lora, compiled):
    if not compiled:  # which takes a minute of each start
        monkeypatch.setattr(vllm, "VLLMEngine", partial(VLLMEngine, enforce_eager=True))
    adapters = ("student.lora={r: 4}", "optim.lr=1e-2") if lora else ()
    model = f"{{family: {family}, d_model: 64, d_ff: 64, layers: 2, heads: 2}}"
    config = make_config(model, "decoding.engine=vllm", "trainer.max_steps=10", *adapters)
    results = train(config, tmp_path / "whole")
    assert results["steps"] == 10
    with stopping(5), pytest.raises(Interrupted):
        train(config, tmp_path / "run", stages_dir=tmp_path / "whole/stages")
    train(config, tmp_path / "run", stages_dir=tmp_path / "whole/stages", resume="must")
    assert_same_run(tmp_path / "whole", tmp_path / "run")
