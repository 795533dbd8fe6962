import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from tiny import (
    DISTRACTIONS,
    EOS,
    FAMILIES,
    encoded,
    same,
    tiny,
    tiny_language_model,
    word_tokenizer,
)
from torch import Tensor
from transformers import DynamicCache

from brim.errors import NonFiniteError
from brim.examples import Example
from brim.models import LanguageModel, language_model
from brim.models.backbone import DecodingState
from brim.models.decoding import (
    LOOK_EVERY,
    Decoding,
    draw_tokens,
    row_uniforms,
    write_completions,
)
from brim.models.head import Distribution, OutputHead, keep_likeliest

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.5, -1.0, -3.0, -torch.inf])


def distribution(
    logits: list[float], temperature: float, top_k: int | None, top_p: float | None
) -> list[float]:
    """The exact probabilities, worked out token by token."""
    weights = [math.exp(value / temperature) for value in logits]
    if top_k is not None:
        kth = sorted(weights, reverse=True)[min(top_k, len(weights)) - 1]
        weights = [w if w >= kth else 0.0 for w in weights]
    probabilities = [w / sum(weights) for w in weights]
    if top_p is not None:
        mass = 0.0
        for token in sorted(range(len(weights)), key=lambda i: -probabilities[i]):
            if mass >= top_p:
                weights[token] = 0.0
            mass += probabilities[token]
    return [w / sum(weights) for w in weights]


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (1.0, None, None),
        (0.5, None, None),
        (2.0, None, None),
        (1.0, 2, None),
        (1.0, 3, None),  # the third and fourth tokens tie: both stay
        (1.0, 100, None),
        (1.0, None, 0.6),
        (1.0, None, 0.05),
        (1.0, None, 1.0),
        (1.5, 5, 0.9),
    ],
)
def test_sampling_follows_the_exact_distribution(temperature, top_k, top_p):
    draws = 20_000
    decoding = Decoding(max_tokens=1, temperature=temperature, top_k=top_k, top_p=top_p)
    head = OutputHead(LOGITS[:, None], None, len(LOGITS)).under(decoding.distribution)
    uniforms = row_uniforms(range(draws), 1)[:, 0]
    tokens = draw_tokens(head.logits(torch.ones(draws, 1)), uniforms)
    counts = torch.bincount(tokens, minlength=len(LOGITS)).double()
    expected = torch.tensor(distribution(LOGITS.tolist(), temperature, top_k, top_p)) * draws
    possible = expected > 0
    assert counts[~possible].sum() == 0
    if possible.sum() > 1:
        observed, exact = counts[possible].tolist(), expected[possible].tolist()
        assert stats.chisquare(observed, exact, sum_check=False).pvalue > 1e-3


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-24])
@pytest.mark.parametrize("size", [6, 1000, 50_000])
def test_a_token_of_probability_zero_is_never_drawn(uniform, size):
    logits = torch.randn(4, size, generator=torch.Generator().manual_seed(0))
    logits[:, 0] = logits[:, -1] = logits[0, size // 2 :] = logits[1, 2:4] = -torch.inf
    chosen = draw_tokens(logits, torch.full((4,), uniform))
    assert logits.gather(1, chosen[:, None]).isfinite().all()


def test_the_ends_of_the_unit_interval_give_the_first_and_the_last_possible_token():
    logits = torch.zeros(2, 5)
    logits[:, [0, 4]] = -torch.inf
    uniforms = torch.tensor([0.0, 1 - 2**-24])
    assert draw_tokens(logits, uniforms).tolist() == [1, 3]


def test_logits_that_are_not_finite_stay_in_the_vocabulary():
    logits = torch.full((3, 5), torch.nan)
    for options in ({}, {"top_k": 2}, {"top_p": 0.5}):
        cut = keep_likeliest(logits.clone(), options.get("top_k"), options.get("top_p"))
        tokens = draw_tokens(cut, torch.rand(3, generator=torch.Generator()))
        assert ((tokens >= 0) & (tokens < 5)).all()


def test_a_row_depends_on_its_seed_alone():
    seeds = [5, 2**63 - 1, 0, 17]
    state = torch.get_rng_state()
    uniforms = row_uniforms(seeds, 40)
    assert torch.equal(torch.get_rng_state(), state)
    assert ((uniforms >= 0) & (uniforms < 1)).all()
    torch.rand(3)
    assert torch.equal(row_uniforms(seeds[::-1], 40), uniforms.flip(0))
    assert torch.equal(row_uniforms(seeds[1:2], 7), uniforms[1:2, :7])
    assert len({tuple(row.tolist()) for row in uniforms}) == len(seeds)


def test_neighbouring_seeds_give_independent_streams():
    uniforms = row_uniforms(range(4000), 8)
    assert stats.kstest(uniforms[:, 0].numpy(), "uniform").pvalue > 1e-3
    neighbours = torch.corrcoef(torch.stack([uniforms[:-1, 0], uniforms[1:, 0]]))[0, 1]
    steps = torch.corrcoef(uniforms.t())
    assert abs(neighbours) < 4 / math.sqrt(4000)
    assert (steps - torch.eye(8)).abs().max() < 4.5 / math.sqrt(4000)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": 0},
        {"strategy": "beam"},
        {"temperature": 0.0},
        {"temperature": math.nan},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"batch_tokens": 0},
        {"engine": "beam"},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Decoding(**({"max_tokens": 4} | wrong))


def test_greedy_takes_the_maximum_whatever_the_temperature():
    model = tiny_language_model("t5")
    batch = encoded(model)
    cold, hot = (
        Decoding(max_tokens=6, strategy="greedy", temperature=value) for value in (1.0, 3.0)
    )
    ids = [model.generate(batch, decoding).completion_ids for decoding in (cold, hot)]
    assert torch.equal(*ids)
    # A gradient along it is at the temperature, and of all tokens.
    assert hot.distribution == Distribution(3.0)


# The loop


class Script(DecodingState):
    """A batch whose rows were told what to write; a token that is not the row's own is noticed."""

    def __init__(self, script: Tensor, num_words: int) -> None:
        super().__init__(DynamicCache())
        self.script, self.num_words = script, num_words
        self.rows, self.written = torch.arange(len(script)), 0
        self.widths = [len(script)]
        self.hidden = self.features()

    def features(self) -> Tensor:
        words = self.script[self.rows, self.written]
        return torch.nn.functional.one_hot(words, self.num_words).float()

    def advance(self, inputs: Tensor) -> Tensor:
        assert inputs[:, 0].tolist() == self.script[self.rows, self.written].tolist()
        self.widths.append(len(inputs))
        self.written += 1
        return self.features()[:, None]

    def keep(self, count: int, holes: Tensor, movers: Tensor) -> None:
        assert (holes < count).all()
        assert (movers >= count).all()
        self.rows[holes] = self.rows[movers]
        self.rows = self.rows[:count]


def length_of(words: list[int], ends: set[int]) -> int:
    return next((i + 1 for i, word in enumerate(words) if word in ends), len(words))


@given(
    script=st.integers(1, 12).flatmap(
        lambda limit: st.lists(
            st.lists(st.integers(0, 5), min_size=limit, max_size=limit), min_size=1, max_size=12
        )
    ),
    ends=st.sets(st.integers(0, 5), max_size=3),
    look_every=st.sampled_from([None, 1, 2, 3, 5, 8, 100]),
)
def test_each_row_writes_its_own_text_until_its_own_end(script, ends, look_every):
    limit = len(script[0])
    state = Script(torch.tensor(script), 6)
    ids, lengths, truncated = write_completions(
        state,
        OutputHead(torch.eye(6), None, 6),
        torch.zeros(len(script), limit),
        Decoding(max_tokens=limit, strategy="greedy"),
        torch.tensor(sorted(ends), dtype=torch.long),
        look_every=look_every,
    )
    expected = [length_of(words, ends) for words in script]
    assert lengths.tolist() == expected
    assert truncated.tolist() == [not ends & set(words) for words in script]
    for row, words, length in zip(ids.tolist(), script, expected, strict=True):
        assert row[:length] == words[:length]
    # A row is in the batch until the look that follows its end.
    every = look_every or 1
    stay = [min(limit, -(-length // every) * every) for length in expected]
    assert state.widths == [sum(n > step for n in stay) for step in range(max(stay))]
    assert ids.shape == (len(script), max(stay))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("look_every", [3, LOOK_EVERY])
def test_looking_rarely_writes_the_same(family, look_every, monkeypatch):
    model = tiny_language_model(family)
    batch = encoded(model, (3, 1, 6, 2, 4) * 3).repeat(2)
    model.eos_token_ids = (EOS, 5, 17, 33)
    rollout = model.generate(batch, Decoding(max_tokens=20))
    rarely = partial(write_completions, look_every=look_every)
    monkeypatch.setattr(language_model, "write_completions", rarely)
    other = model.generate(batch, Decoding(max_tokens=20))
    assert len(set(rollout.lengths.tolist())) > 1
    assert same(other, rollout)


@pytest.mark.parametrize("engine", ["loop", "generate"])
@pytest.mark.parametrize("family", ["t5", "qwen2"])
@pytest.mark.parametrize(("top_k", "top_p"), [(None, None), (5, None), (None, 0.8), (6, 0.9)])
def test_texts_of_two_tokens_follow_the_exact_distribution(family, engine, top_k, top_p):
    num_words, draws = 9, 5000
    source = tiny(family, num_rows=num_words, spread=0.2)
    source.generation_config.update(**DISTRACTIONS)
    model = LanguageModel(source, word_tokenizer(num_words, appends_eos=family == "t5")).eval()
    model.eos_token_ids = (EOS,)
    example = Example("0", "w3 w4 w5")
    shape = {"temperature": 0.7, "top_k": top_k, "top_p": top_p}
    decoding = Decoding(max_tokens=2, **shape, engine=engine, batch_tokens=10**6)
    batch = model.encode([example] * draws, max_tokens=None, seeds=range(draws))
    rollout = model.generate(batch, decoding)
    assert (rollout.lengths == 1 + (rollout.completion_ids[:, 0] != EOS)).all()
    first, second = rollout.completion_ids.t()
    second = second.masked_fill(first == EOS, 0)  # one text, whatever fills it up
    counts = torch.bincount(first * num_words + second, minlength=num_words**2).double()

    # Every text of one token, read at once by transformers.
    words = torch.arange(num_words)[:, None]
    prompt = batch.prompt_ids[:1].expand(num_words, -1)
    with torch.no_grad():
        if family == "t5":
            opened = torch.cat([torch.zeros_like(words), words], dim=1)
            logits = source(input_ids=prompt, decoder_input_ids=opened).logits
        else:
            logits = source(input_ids=torch.cat([prompt, words], dim=1)).logits[:, -2:]
    says = [
        torch.tensor(distribution(row, **shape), dtype=torch.float64)
        for row in (*logits[:1, 0].tolist(), *logits[:, 1].tolist())
    ]
    joint = says[0][:, None] * torch.stack(says[1:])
    joint[EOS] = torch.zeros(num_words, dtype=torch.float64)
    joint[EOS, 0] = says[0][EOS]
    expected = joint.flatten() * draws
    assert counts[expected == 0].sum() == 0
    common = expected > 5
    assert common.sum() > 5
    observed = [*counts[common].tolist(), counts[~common].sum().item()]
    exact = [*expected[common].tolist(), expected[~common].sum().item()]
    if exact[-1] < 1:
        observed, exact = observed[:-1], exact[:-1]
    assert stats.chisquare(observed, exact, sum_check=False).pvalue > 1e-3


@pytest.mark.parametrize("strategy", ["greedy", "sampling"])
@pytest.mark.parametrize("number", [math.nan, 1e38])
@pytest.mark.parametrize("row", [0, 5])
def test_no_text_is_written_by_logits_that_are_not_finite(strategy, number, row):
    model = tiny_language_model("qwen2")
    batch = encoded(model, (3, 1, 6))
    with torch.no_grad():
        model.model.get_output_embeddings().weight[row] = number
    for engine in ("loop", "generate"):
        with pytest.raises(NonFiniteError, match="logits are not finite.*float32"):
            model.generate(batch, Decoding(max_tokens=4, strategy=strategy, engine=engine))
