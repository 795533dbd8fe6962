from collections.abc import Sequence
from typing import Any

import pytest
import torch
from rounding import assert_rounding
from tiny import bart_sizes, encoded, word_tokenizer
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    JambaConfig,
    JambaForCausalLM,
    MarianConfig,
    MarianMTModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from brim.errors import ModelError
from brim.models import Decoding, LanguageModel, build_model, keep_layers, load_model
from brim.models.layers import cut_model
from brim.types import Rollout

NUM_LAYERS = 4
BUILT = ("t5", "t5_tied", "mt5", "gpt2", "llama", "qwen2")
OTHERS = ("bart", "marian", "qwen2_sliding", "qwen2_moe", "deepseek_v3", "gpt_neo")
FAMILIES = (*BUILT, *OTHERS)
SIZES = {
    "vocab_size": 40,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}


def teacher_of(family: str) -> LanguageModel:
    """A random teacher with four layers a stack, whose every layer matters."""
    tokenizer = word_tokenizer(appends_eos=True)
    if family in BUILT:
        name, _, tied = family.partition("_")
        description = {"family": name, "d_model": 32, "layers": NUM_LAYERS, "heads": 4}
        changes = {"tied": True} if tied else {}
        model = build_model({**description, **changes}, tokenizer, seed=0)
    else:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = LanguageModel(_others(family).eval(), tokenizer)
    generator = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    return model


DENSE = {
    **SIZES,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
}
# Mixtures of experts, whose layers are not all of one kind.
ROUTED = {**DENSE, "moe_intermediate_size": 16, "num_experts_per_tok": 2}
QWEN = {"num_experts": 4, "shared_expert_intermediate_size": 16, "num_key_value_heads": 2}
DEEPSEEK = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 4,
    "head_dim": 4,
    "num_key_value_heads": 4,
    "first_k_dense_replace": 2,
}


def _others(family: str) -> Any:
    if family == "qwen2_moe":
        # Experts in layer 3 alone: 1 has none by the list, 0 and 2 by the step.
        kinds = {"mlp_only_layers": [1], "decoder_sparse_step": 2}
        return Qwen2MoeForCausalLM(Qwen2MoeConfig(**ROUTED, **QWEN, **kinds))
    if family == "deepseek_v3":  # experts from layer 2 on
        return DeepseekV3ForCausalLM(DeepseekV3Config(**ROUTED, **DEEPSEEK))
    if family == "gpt_neo":  # of which every second layer looks back over three tokens only
        sizes = {"hidden_size": 32, "num_layers": NUM_LAYERS, "num_heads": 4, "window_size": 3}
        kinds = {"attention_types": [[["global", "local"], 2]]}
        return GPTNeoForCausalLM(GPTNeoConfig(**SIZES, **sizes, **kinds))
    if family == "qwen2_sliding":
        window = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 2}
        return Qwen2ForCausalLM(Qwen2Config(**DENSE, num_key_value_heads=2, **window))
    kinds = {
        "bart": (BartConfig, BartForConditionalGeneration),
        "marian": (MarianConfig, MarianMTModel),
    }
    config_class, model_class = kinds[family]
    stacks = {"encoder_layers": NUM_LAYERS, "decoder_layers": NUM_LAYERS, "d_model": 32}
    return model_class(config_class(**bart_sizes(40, **stacks, decoder_start_token_id=0)))


def rollout_of(model: LanguageModel) -> Rollout:
    texts = ["w5 w6", "w7", "w8 w9 w10 w11 w12 w13", "", "w20 w3 w4"]
    return model.encode_completions(encoded(model), texts, max_tokens=10)


def stacks_of(model: LanguageModel) -> list[nn.ModuleList]:
    def longest(stack: nn.Module) -> nn.ModuleList:
        return max((m for m in stack.children() if isinstance(m, nn.ModuleList)), key=len)

    parts = [model.model.get_decoder()]
    if model.is_encoder_decoder:
        parts.insert(0, model.model.get_encoder())
    return [longest(part) for part in parts]


def logprobs_with_layers_skipped(
    model: LanguageModel, rollout: Rollout, kept: Sequence[int]
) -> Tensor:
    """The whole teacher, with the hidden states passed around the other layers."""

    def skip(_module: nn.Module, inputs: tuple[Any, ...], kwargs: Any, output: Any) -> Any:
        hidden = inputs[0] if inputs else kwargs["hidden_states"]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    layers = [layer for stack in stacks_of(model) for i, layer in enumerate(stack) if i not in kept]
    handles = [layer.register_forward_hook(skip, with_kwargs=True) for layer in layers]
    try:
        return model.logprobs(rollout)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kept", [[0, 1, 2, 3], [0, 3], [1, 2, 3], [2]])
def test_the_student_is_the_teacher_with_layers_skipped(family, kept):
    teacher = teacher_of(family)
    rollout = rollout_of(teacher)
    student = keep_layers(teacher, layers=kept)
    expected = logprobs_with_layers_skipped(teacher, rollout, kept)
    assert_rounding(student.logprobs(rollout), expected)
    if len(kept) == NUM_LAYERS:
        assert torch.equal(student.logprobs(rollout), teacher.logprobs(rollout))
    else:
        assert not torch.allclose(expected, teacher.logprobs(rollout), atol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kept", [[0, 3], [1, 3]])
def test_a_saved_student_reads_back_the_same(family, kept, tmp_path):
    student = keep_layers(teacher_of(family), layers=kept)
    student.save(tmp_path)
    again = load_model(tmp_path)
    rollout = rollout_of(student)
    assert torch.equal(again.logprobs(rollout), student.logprobs(rollout))
    greedy = Decoding(strategy="greedy", max_tokens=8)
    written = student.generate(rollout.batch, greedy)
    assert torch.equal(again.generate(rollout.batch, greedy).completion_ids, written.completion_ids)
    # The cache leads to the tokens that a pass over the whole text finds likeliest.
    values = student.action_values(written)
    assert_rounding(values.q_taken, values.q_max)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_teacher_stays_as_it_was_and_shares_no_memory(family):
    teacher = teacher_of(family)
    rollout = rollout_of(teacher)
    before, config = teacher.logprobs(rollout), teacher.model.config.to_dict()
    student = keep_layers(teacher, layers=[1, 3])
    for weight in student.state_dict().values():
        weight.zero_()
    assert torch.equal(teacher.logprobs(rollout), before)
    assert teacher.model.config.to_dict() == config
    assert student.tokenizer is not teacher.tokenizer


@pytest.mark.parametrize("family", BUILT)
def test_the_head_is_copied_and_as_shared_as_the_teachers(family):
    teacher = teacher_of(family)
    student = keep_layers(teacher, layers=2)
    heads = [m.model.get_output_embeddings().weight for m in (teacher, student)]
    inputs = [m.model.get_input_embeddings().weight for m in (teacher, student)]
    assert torch.equal(*heads)
    assert (heads[0] is inputs[0]) == (heads[1] is inputs[1])


@pytest.mark.parametrize(
    ("num_layers", "count", "expected"),
    [
        (4, 1, [0]),
        (4, 2, [0, 3]),
        (4, 3, [0, 2, 3]),
        (5, 3, [0, 2, 4]),
        (12, 4, [0, 4, 7, 11]),
        (12, 6, [0, 2, 4, 7, 9, 11]),
        (30, 10, [0, 3, 6, 10, 13, 16, 19, 23, 26, 29]),
        (7, 7, [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_a_number_of_layers_is_spread_evenly(num_layers, count, expected):
    description = {"family": "llama", "d_model": 4, "layers": num_layers, "heads": 2, "d_ff": 4}
    teacher = build_model(description, word_tokenizer(), seed=0)
    for number, layer in enumerate(stacks_of(teacher)[0]):
        layer.input_layernorm.weight.data.fill_(number)
    student = keep_layers(teacher, layers=count)
    kept = [int(layer.input_layernorm.weight[0]) for layer in stacks_of(student)[0]]
    assert kept == expected


def test_encoder_and_decoder_may_keep_different_layers():
    teacher = teacher_of("t5")
    student = keep_layers(teacher, layers=3, decoder_layers=[1])
    assert [len(stack) for stack in stacks_of(student)] == [3, 1]
    same = keep_layers(teacher, layers=2)
    assert [len(stack) for stack in stacks_of(same)] == [2, 2]


@pytest.mark.parametrize("frozen", [True, False])
def test_a_student_of_a_frozen_teacher_can_be_trained(frozen):
    teacher = teacher_of("llama").requires_grad_(not frozen)
    student = keep_layers(teacher, layers=2)
    student.logprobs(rollout_of(student)).sum().backward()
    assert all(weight.grad is not None for weight in student.parameters())


def test_the_type_of_the_weights_stays():
    teacher = teacher_of("llama").to(torch.bfloat16)
    assert keep_layers(teacher, layers=2).model.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("llama", {"layers": 5}, "layers: 5 is not between 1 and the teacher's 4"),
        ("llama", {"layers": 0}, "layers: 0 is not"),
        ("llama", {"layers": []}, "must be ascending numbers from 0 to 3"),
        ("llama", {"layers": [1, 0]}, "ascending"),
        ("llama", {"layers": [1, 1]}, "ascending"),
        ("llama", {"layers": [-1]}, "ascending"),
        ("llama", {"layers": [4]}, "ascending"),
        ("llama", {"layers": 1, "decoder_layers": 1}, "one stack"),
        ("t5", {"layers": 1, "decoder_layers": 9}, "decoder_layers: 9"),
    ],
)
def test_layers_that_are_not_there(family, options, message):
    with pytest.raises(ModelError, match=message):
        keep_layers(teacher_of(family), **options)


def test_a_model_of_another_build_is_refused():
    teacher = teacher_of("gpt2")
    teacher.model.transformer.blocks = teacher.model.transformer.h
    del teacher.model.transformer.h
    with pytest.raises(ModelError, match="the layers of a GPT2Model are not known"):
        keep_layers(teacher, layers=1)


def jamba() -> JambaForCausalLM:
    """Attention in every second layer, by a period that a cut model need not have."""
    periods = {"attn_layer_period": 2, "attn_layer_offset": 1}
    experts = {"num_experts": 2, "expert_layer_period": 2, "expert_layer_offset": 1}
    inner = {"use_mamba_kernels": False, "mamba_d_state": 4, "num_key_value_heads": 2}
    return JambaForCausalLM(
        JambaConfig(**DENSE, num_experts_per_tok=2, **periods, **experts, **inner)
    )


def scaled_by_number() -> GPT2LMHeadModel:
    sizes = {"n_embd": 32, "n_layer": NUM_LAYERS, "n_head": 4}
    return GPT2LMHeadModel(GPT2Config(**SIZES, **sizes, scale_attn_by_inverse_layer_idx=True))


@pytest.mark.parametrize(
    ("make", "right", "wrong", "message"),
    [
        (jamba, [0, 3], [1, 2, 3], r"would not be read as it is saved, by model\.layers\.0"),
        (scaled_by_number, [0, 1], [0, 3], "depends on its number .scale_attn_by_inverse"),
    ],
)
def test_layers_that_no_config_describes_are_refused(make, right, wrong, message):
    teacher = LanguageModel(make().eval(), word_tokenizer())
    student = keep_layers(teacher, layers=right)
    expected = logprobs_with_layers_skipped(teacher, rollout_of(teacher), right)
    assert_rounding(student.logprobs(rollout_of(teacher)), expected)
    with pytest.raises(ModelError, match=message) as caught:
        keep_layers(teacher, layers=wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["deepseek_v3", "qwen2_moe"])
def test_a_plan_cuts_as_a_run_does(family):
    student = keep_layers(teacher_of(family), layers=3).model
    with torch.device("meta"):
        planned = cut_model(_others(family), layers=3)
    shapes = [{n: w.shape for n, w in m.state_dict().items()} for m in (student, planned)]
    assert shapes[0] == shapes[1]
