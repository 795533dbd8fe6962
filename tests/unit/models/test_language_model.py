from dataclasses import fields, replace

import pytest
import torch
from rounding import assert_rounding
from tiny import (
    ENCODER_DECODERS,
    EOS,
    FAMILIES,
    NUM_ROWS,
    NUM_TOKENS,
    PAD,
    encoded,
    one_process,
    same,
    tiny,
    tiny_language_model,
    word_tokenizer,
    written,
)
from torch import Tensor
from torch.nn.functional import pad
from transformers import Phi3Config, Phi3ForCausalLM

from brim.errors import ModelError
from brim.models import Decoding, Distribution, LanguageModel
from brim.models.head import EXCLUDED
from brim.types import Batch, Rollout

NO_TOKEN = list(range(NUM_TOKENS, NUM_ROWS))


def naive_logits(model: LanguageModel, rollout: Rollout, *, extra: int = 0) -> Tensor:
    """(B, T + extra, V) logits by transformers' own forward pass, row by row without padding."""
    rows = []
    for i, length in enumerate(rollout.lengths.tolist()):
        prompt = rollout.batch.prompt_ids[i][rollout.batch.prompt_mask[i]]
        completion = rollout.completion_ids[i, :length]
        if model.is_encoder_decoder:
            start = prompt.new_tensor([model.model.config.decoder_start_token_id])
            logits = model.model(
                input_ids=prompt[None], decoder_input_ids=torch.cat([start, completion])[None]
            ).logits[0]
        else:
            logits = model.model(input_ids=torch.cat([prompt, completion])[None]).logits[0]
            logits = logits[len(prompt) - 1 :]
        width = rollout.mask.shape[1] + extra
        padding = logits.new_zeros(max(0, width - length - 1), logits.shape[1])
        rows.append(torch.cat([logits, padding])[:width])
    logits = torch.stack(rows)
    logits[..., NO_TOKEN] = EXCLUDED
    return logits


def gradients_of(model: LanguageModel) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_statistics_and_gradients_equal_the_naive_ones(family, temperature):
    model, rollout = written(family, 7, spread=0.15)
    weights = torch.linspace(-1, 1, rollout.mask.numel()).view_as(rollout.mask)
    distribution = Distribution(temperature)
    statistics = model(rollout, distribution=distribution, chunk_tokens=3)
    (weights * statistics.logprobs).sum().backward()
    gradients = gradients_of(model)
    model.zero_grad(set_to_none=True)

    log_softmax = (naive_logits(model, rollout) / temperature).log_softmax(2)
    expected = log_softmax.gather(2, rollout.completion_ids[:, :, None]).squeeze(2)
    expected = expected.masked_fill(~rollout.mask, 0)
    (weights * expected).sum().backward()
    entropy = -(log_softmax.exp() * log_softmax).sum(2).masked_fill(~rollout.mask, 0)
    assert_rounding(statistics.logprobs, expected)
    assert_rounding(statistics.entropy, entropy)
    assert_rounding(gradients, gradients_of(model))
    assert (statistics.logprobs[~rollout.mask] == 0).all()
    if temperature == 1:
        assert_rounding(model.logprobs(rollout), statistics.logprobs)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("centering", ["none", "mean", "max", "logsumexp"])
def test_action_values_equal_the_naive_logits(family, centering):
    model = tiny_language_model(family, spread=0.15)
    rollout = model.generate(encoded(model), Decoding(max_tokens=4))
    ended = rollout.mask & (rollout.completion_ids == EOS)
    rollout = replace(rollout, truncated=~ended.any(1))
    values = model.action_values(rollout, centering=centering, bootstrap=True)
    assert model.training

    model.eval()
    with torch.no_grad():
        every = naive_logits(model, rollout, extra=1)
    logits = every[..., :NUM_TOKENS]
    center = {
        "none": torch.zeros(every.shape[:2]),
        "mean": logits.mean(2),
        "max": logits.amax(2),
        "logsumexp": logits.logsumexp(2),
    }[centering]
    mask, ids = rollout.mask, rollout.completion_ids[:, :, None]
    best = logits.amax(2) - center
    taken = every[:, :-1].gather(2, ids).squeeze(2) - center[:, :-1]
    logprobs = every[:, :-1].log_softmax(2).gather(2, ids).squeeze(2)
    assert_rounding(values.q_max, best[:, :-1].masked_fill(~mask, 0))
    assert_rounding(values.q_taken, taken.masked_fill(~mask, 0))
    assert_rounding(values.logprobs, logprobs.masked_fill(~mask, 0))
    after = best[torch.arange(len(best)), rollout.lengths].masked_fill(~rollout.truncated, 0)
    assert values.bootstrap is not None
    assert_rounding(values.bootstrap, after)
    assert rollout.truncated.any()
    assert model.action_values(rollout).bootstrap is None


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_is_the_same_in_any_company(family):
    model = tiny_language_model(family)
    batch = replace(encoded(model), seeds=(11, 22, 33, 44, 55))
    decoding = Decoding(max_tokens=9, temperature=0.9)
    whole = model.generate(batch, decoding)
    order = [4, 0, 3, 1, 2]
    torch.rand(5)
    shuffled = model.generate(batch.select(order), decoding.model_copy(update={"batch_tokens": 40}))
    alone = [model.generate(batch.select([i]), decoding) for i in range(5)]
    texts = model.decode(whole)
    assert model.decode(shuffled) == [texts[i] for i in order]
    assert [model.decode(one)[0] for one in alone] == texts
    assert len(set(texts)) == 5
    other = model.generate(replace(batch, seeds=(1, 2, 3, 4, 5)), decoding)
    assert model.decode(other) != texts


@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_generation_and_values_leave_no_trace(family):
    model = tiny_language_model(family).train()
    frozen = model.model.get_input_embeddings().eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    rollout = model.generate(encoded(model), Decoding(max_tokens=5))
    values = model.action_values(rollout)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert not frozen.training
    assert not values.q_max.requires_grad
    assert torch.equal(model.action_values(rollout).q_max, values.q_max)
    # What was sampled can take part in a graph.
    assert not rollout.completion_ids.is_inference()
    assert not model.logprobs(rollout).isnan().any()


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_nothing(family):
    model, rollout = written(family)
    side = (0, 3) if model.is_encoder_decoder else (3, 0)
    batch = replace(
        rollout.batch,
        prompt_ids=pad(rollout.batch.prompt_ids, side, value=PAD),
        prompt_mask=pad(rollout.batch.prompt_mask, side),
    )
    wide = replace(
        rollout,
        batch=batch,
        completion_ids=pad(rollout.completion_ids, (0, 3), value=PAD),
        mask=pad(rollout.mask, (0, 3)),
    )
    plain, padded = model(rollout), model(wide)
    steps = rollout.mask.shape[1]
    assert padded.logprobs.shape == wide.mask.shape
    assert_rounding(padded.logprobs[:, :steps], plain.logprobs)
    assert (padded.logprobs[:, steps:] == 0).all()
    single = torch.cat([model.logprobs(rollout.select([i])) for i in range(len(rollout))])
    assert_rounding(single, plain.logprobs)


@pytest.mark.parametrize("family", ["t5_v1_1", "qwen2"])
def test_rows_without_token_are_never_chosen(family):
    source = tiny(family)
    tokenizer = word_tokenizer(appends_eos=family in ENCODER_DECODERS)
    # By far the largest logits are those of a row behind the tokens and of one between them.
    hole = tokenizer.get_vocab()["w20"]
    words = {word: i for word, i in tokenizer.get_vocab().items() if i != hole}
    tokenizer.get_vocab = lambda: words
    model = LanguageModel(source, tokenizer)
    with torch.no_grad():
        model.model.get_output_embeddings().weight[[hole, NUM_ROWS - 1]] *= 100
    batch = encoded(model, (2, 3, 4, 5) * 8)
    for strategy in ("greedy", "sampling"):
        rollout = model.generate(batch, Decoding(max_tokens=10, strategy=strategy))
        assert not torch.isin(rollout.completion_ids, torch.tensor([hole, *NO_TOKEN])).any()
    values = model.action_values(rollout, centering="mean")
    assert values.q_max.abs().max() < 1e3
    assert (values.logprobs[rollout.mask] > -50).all()
    model.logprobs(rollout).sum().backward()
    gradient = model.model.get_output_embeddings().weight.grad
    assert (gradient[[hole, *NO_TOKEN]] == 0).all()
    assert (gradient != 0).any()


# Prompts that several completions continue


def apart(batch: Batch) -> Batch:
    """The same rows, and nothing that says which prompts are the same."""
    return replace(batch, examples=tuple(replace(example) for example in batch.examples))


SHARED = ["t5", "bart", "qwen2", "gpt2"]


@pytest.mark.parametrize("family", SHARED)
def test_copies_of_a_prompt_say_what_prompts_of_their_own_say(family):
    model = tiny_language_model(family, spread=0.15).eval()
    batch = encoded(model).repeat(4)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0)).tolist()
    for rows in (range(20), order, [7, 0, 6, 19, 5]):
        shared = model.generate(batch.select(rows), Decoding(max_tokens=7))
        own = replace(shared, batch=apart(shared.batch))
        alone = model.generate(own.batch, Decoding(max_tokens=7))
        assert same(alone, shared)
        ours = model.action_values(shared, bootstrap=True)
        theirs = model.action_values(own, bootstrap=True)
        for name in ("q_taken", "q_max", "logprobs", "bootstrap"):
            assert_rounding(getattr(ours, name), getattr(theirs, name))
        weights = torch.linspace(-1, 1, shared.mask.numel()).view_as(shared.mask)
        gradients = []
        for rollout in (shared, own):
            model.zero_grad(set_to_none=True)
            logprobs = model.logprobs(rollout)
            (weights * logprobs).sum().backward()
            gradients.append({name: p.grad for name, p in model.named_parameters()})
            assert_rounding(logprobs, model.logprobs(own))
        for name, gradient in gradients[0].items():
            assert_rounding(gradient, gradients[1][name])


@pytest.mark.parametrize("family", SHARED)
def test_a_prompt_is_read_once_and_without_needless_padding(family):
    model = tiny_language_model(family)
    reader = model.model.get_encoder() if model.is_encoder_decoder else model.model.get_decoder()
    shapes: list[tuple[int, ...]] = []
    batch = encoded(model, (3, 1, 30, 2, 4))
    rows = [row for row in range(20) if row // 4 != 2]  # without the copies of the longest prompt
    some = batch.repeat(4).select(rows)
    longest = int(some.prompt_mask.sum(dim=1).max())
    assert longest < batch.prompt_ids.shape[1]
    handle = reader.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    rollout = model.generate(some, Decoding(max_tokens=6))
    assert shapes[0] == (4, longest)
    if model.is_encoder_decoder:
        shapes.clear()
        model.logprobs(rollout).sum().backward()
        model.action_values(rollout.select([0, 1, 5]))
        assert shapes == [(4, longest), (2, 4)]
    handle.remove()


# Readings


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_reading_moves_with_its_head(family):
    model, rollout = written(family, 4)
    features = model.features(rollout, after=True)
    assert features.to("cpu") is features
    moved = features.to("meta")
    for field in fields(features):
        value = getattr(features, field.name)
        if isinstance(value, Tensor):
            assert getattr(moved, field.name).is_meta
            assert getattr(moved, field.name).shape == value.shape
    assert moved.head.weight.is_meta
    assert moved.head.bias is None or moved.head.bias.is_meta
    assert (moved.head.bias is None) == (features.head.bias is None)
    assert moved.head.scale == features.head.scale


# Limits and texts


def test_prompts_and_completions_too_long_for_the_model():
    model = tiny_language_model("gpt2")
    batch = encoded(model, (30, 2))
    with pytest.raises(ModelError, match="65 tokens exceeds the model's 64 positions"):
        model.generate(batch, Decoding(max_tokens=36))
    assert len(model.generate(batch, Decoding(max_tokens=35))) == 2
    rollout = model.encode_completions(batch, ["w3 " * 50, "w4"], max_tokens=50)
    with pytest.raises(ModelError, match="positions"):
        model(rollout)


def test_longrope_ends_where_it_would_read_what_is_written_in_another_way():
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    sizes = {"vocab_size": NUM_ROWS, "hidden_size": 16, "intermediate_size": 24}
    config = Phi3Config(
        **sizes, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=64,
        original_max_position_embeddings=16, pad_token_id=PAD, bos_token_id=EOS, eos_token_id=EOS,
        rope_parameters=rope,
    )  # fmt: skip
    model = LanguageModel(Phi3ForCausalLM(config), word_tokenizer()).eval()
    assert model.num_positions == 16
    batch = encoded(model, (10, 2))
    model.generate(batch, Decoding(max_tokens=7))
    with pytest.raises(ModelError, match="17 tokens exceeds the model's 16 .* longrope"):
        model.generate(batch, Decoding(max_tokens=8))
    rollout = model.encode_completions(batch, ["w3 " * 20, "w4"], max_tokens=20)
    with pytest.raises(ModelError, match="16 positions"):
        model.action_values(rollout)
    config.rope_parameters = {"first": config.rope_parameters, "rest": {"rope_type": "default"}}
    assert model.num_positions == 16
    del config.rope_parameters["first"]
    assert model.num_positions == 64


@pytest.mark.parametrize("family", FAMILIES)
def test_completions_of_texts(family):
    model = tiny_language_model(family)
    batch = encoded(model, (1, 2, 3, 4))
    rollout = model.encode_completions(batch, ["w5 w6", "", "w7 w8 w9", "w3 </s>"], max_tokens=3)
    ids = [[5, 6, EOS], [EOS, PAD, PAD], [7, 8, 9], [3, EOS, PAD]]
    assert rollout.completion_ids.tolist() == ids
    assert rollout.lengths.tolist() == [3, 1, 3, 2]
    assert rollout.truncated.tolist() == [False, False, True, False]
    assert model.decode(rollout) == ["w5 w6", "", "w7 w8 w9", "w3"]
    assert rollout.batch is batch


def test_without_a_pad_token_the_end_token_fills_up():
    model = LanguageModel(tiny("gpt2"), word_tokenizer(pad=False))
    batch = encoded(model, (1, 4))
    assert batch.prompt_ids[0].tolist() == [EOS, EOS, EOS, 3]
    rollout = model.encode_completions(batch, ["w5", "w6 w7"], max_tokens=9)
    assert rollout.completion_ids.tolist() == [[5, EOS, EOS], [6, 7, EOS]]
    assert rollout.num_tokens == 5
    written = model.generate(batch, Decoding(max_tokens=20))
    assert (written.completion_ids[~written.mask] == EOS).all()


def test_a_generated_pad_token_is_an_action():
    model = tiny_language_model("phi")
    with torch.no_grad():
        model.model.lm_head.bias[PAD] = 1e4
    rollout = model.generate(encoded(model), Decoding(max_tokens=3))
    assert (rollout.completion_ids == PAD).all()
    assert rollout.mask.all()
    assert rollout.truncated.all()
    torch.testing.assert_close(model.logprobs(rollout), torch.zeros(5, 3))


@pytest.mark.parametrize("family", ["t5_v1_1", "llama"])
def test_ddp_gives_the_same_gradients(family):
    model, rollout = written(family, 5)
    cut = Distribution(0.7, top_k=9, top_p=0.9)
    model(rollout, distribution=cut).logprobs.sum().backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    with one_process(model) as wrapped:
        for micro in (rollout.select([i]) for i in range(len(rollout))):
            with wrapped.no_sync():
                wrapped(micro, distribution=cut).logprobs.sum().backward()
        for name, parameter in model.named_parameters():
            assert_rounding(parameter.grad, plain[name])
        model.zero_grad(set_to_none=True)
        wrapped(rollout, distribution=cut).logprobs.sum().backward()
    for name, parameter in model.named_parameters():
        assert_rounding(parameter.grad, plain[name])


@pytest.mark.parametrize("family", ["t5", "qwen2"])
def test_bfloat16_by_autocast_and_by_weight(family):
    model, rollout = written(family, 5, spread=0.1)
    exact = model.logprobs(rollout).detach()
    with torch.autocast("cpu", torch.bfloat16):
        statistics = model(rollout)
        assert model.generate(rollout.batch, Decoding(max_tokens=3)).num_tokens > 0
    statistics.logprobs.sum().backward()
    assert statistics.logprobs.dtype == torch.float32
    torch.testing.assert_close(statistics.logprobs, exact, rtol=0, atol=0.1)
    low = LanguageModel(tiny(family, spread=0.1).to(torch.bfloat16), model.tokenizer).eval()
    values = low.action_values(rollout)
    assert values.q_max.dtype == torch.float32
    torch.testing.assert_close(values.logprobs, exact, rtol=0, atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["t5", "qwen2"])
def test_compiled_layers_write_and_learn_alike(family):
    plain, compiled = tiny_language_model(family).eval(), tiny_language_model(family).eval()
    compiled.compile_layers()
    decoding = Decoding(max_tokens=9, temperature=0.9)
    rollout = plain.generate(encoded(plain), decoding)
    assert compiled.decode(compiled.generate(encoded(compiled), decoding)) == plain.decode(rollout)
    for model in (plain, compiled):
        model.logprobs(rollout).sum().backward()
    others = dict(compiled.named_parameters())
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(others[name].grad, parameter.grad, rtol=1e-3, atol=1e-3)
    assert set(compiled.state_dict()) == set(plain.state_dict())
    assert compiled.decode(compiled.copy().generate(encoded(compiled), decoding))
