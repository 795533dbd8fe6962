"""A plan's numbers are those of real models, real caches and real passes."""

import json
from dataclasses import replace
from itertools import product

import pytest
import torch
from makers import configure
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import BartConfig, BartForConditionalGeneration
from typer.testing import CliRunner

from brim.cli import app
from brim.errors import ModelError
from brim.examples import Example
from brim.models import (
    Decoding,
    LanguageModel,
    Lora,
    Quantization,
    add_adapters,
    build_model,
    keep_layers,
    load_model,
    set_dropout,
    train_tokenizer,
)
from brim.models.backbone import Prompts
from brim.objectives import OBJECTIVES, make_objective
from brim.objectives.method import Passes
from brim.plan import as_dict, as_text, plan
from brim.plan.flops import generate_operations, read_operations, update_operations
from brim.plan.memory import Learner, Room
from brim.plan.models import ModelShape, Size, known_models, student_shape, teacher_shapes
from brim.plan.peaks import CostCounter, pass_cost, writing_cost
from brim.plan.warnings import settings_warnings
from brim.recipes import list_recipes
from brim.training.loop_settings import OptimConfig
from brim.training.optimizer import build_optimizer
from brim.training.settings import StudentConfig

GIB = 2**30

# Published with the models: the numbers of parameters in their safetensors files. Of Qwen1.5-0.5B
# the file holds the head twice: 463,987,712 + 151,936 x 1,024 = 619,570,176.
PUBLISHED = {
    "google/flan-t5-small": 76_961_152,
    "google/flan-t5-base": 247_577_856,
    "google/flan-t5-large": 783_150_080,
    "google/flan-t5-xl": 2_849_757_184,
    "google-t5/t5-base": 222_903_552,
    "Qwen/Qwen1.5-0.5B": 619_570_176 - 151_936 * 1_024,
    "Qwen/Qwen1.5-4B": 3_950_369_280,
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "smollm2-135m-instruct": 134_515_008,
}

DESCRIPTIONS = {
    "t5": {"family": "t5", "decoder_layers": 3},
    "t5_tied": {"family": "t5", "tied": True},
    "t5_v1_1": {"family": "t5", "feed_forward": "gated-gelu"},
    "mt5": {"family": "mt5"},
    "gpt2": {"family": "gpt2", "max_positions": 64},
    "llama": {"family": "llama"},
    "qwen2": {"family": "qwen2", "kv_heads": 2, "tied": False},
}
SIZES = {"d_model": 32, "layers": 2, "heads": 4, "d_ff": 48, "dropout": 0.0}
TOKENIZER = train_tokenizer([" ".join(f"w{i}" for i in range(61))], kind="word", vocab_size=64)
ROWS, PROMPT, LENGTH = 4, 24, 12
SIZE = Size(ROWS, PROMPT, LENGTH)


def build(name: str, **changes) -> LanguageModel:
    return build_model({**DESCRIPTIONS[name], **SIZES, **changes}, TOKENIZER, seed=0)


def shape_of(model: LanguageModel) -> ModelShape:
    return ModelShape("real", model.model)


def shape_at(path, **settings) -> ModelShape:
    config = configure("cmudict/seqkd")
    student = StudentConfig(path=str(path), **settings)
    return student_shape(config.model_copy(update={"student": student}), *teacher_shapes(config))


# Prompts of this size, one of them shorter, so that there is padding.
def encode(model: LanguageModel, size: Size = SIZE):
    words = [f"w{i % 50}" for i in range(size.num_prompt_tokens - model.is_encoder_decoder)]
    texts = [" ".join(words)] * (size.rows - 1) + [" ".join(words[:-1])]
    return model.encode([Example(f"{i}", text) for i, text in enumerate(texts)], max_tokens=None)


def completions(model: LanguageModel, size: Size = SIZE):
    text = " ".join(f"w{i % 50}" for i in range(size.num_tokens - 1))
    return model.encode_completions(
        encode(model, size), [text] * size.rows, max_tokens=size.num_tokens
    )


# Writes to the limit: no token ends a text.
def never_ends(model: LanguageModel) -> LanguageModel:
    model.eos_token_ids = (-1,)
    return model


# -- parameters ------------------------------------------------------------------------------------


def test_every_shipped_model_is_published():
    assert sorted(PUBLISHED) == known_models()


@pytest.mark.parametrize("name", PUBLISHED)
def test_number_of_parameters_is_the_published_one(name):
    assert shape_at(name).num_parameters == PUBLISHED[name]


def test_flan_has_a_head_of_its_own_and_t5_has_not():
    for name, own in (("google/flan-t5-small", True), ("google-t5/t5-base", False)):
        shape = shape_at(name)
        assert (shape.head is not shape.model.get_input_embeddings().weight) is own


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_weights_of_a_saved_model(name, tmp_path):
    model = build(name)
    model.save(tmp_path)
    for dtype in ("float32", "bfloat16", "float16"):
        loaded = load_model(tmp_path, dtype=dtype)
        shape = shape_at(tmp_path, dtype=dtype)
        assert shape.num_parameters == loaded.num_parameters == model.num_parameters
        assert shape.weight_bytes == sum(p.nbytes for p in loaded.parameters())


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_model_from_scratch(name):
    description = {**DESCRIPTIONS[name], **SIZES}
    config = configure("cmudict/seqkd")
    update = {"build": description, "tokenizer": config.teacher.tokenizer.model_copy(
        update={"vocab_size": len(TOKENIZER)}
    )}  # fmt: skip
    config = config.model_copy(update={"teacher": config.teacher.model_copy(update=update)})
    assert teacher_shapes(config)[0].num_parameters == build(name).num_parameters


def test_a_student_with_a_tokenizer_of_its_own():
    config = configure("cmudict/anchored_other_tokenizer")
    student = student_shape(config, *teacher_shapes(config))
    assert len(student.head) == config.student.tokenizer.vocab_size
    assert as_text(plan(config)).count("the teacher reads text") == 1


@pytest.mark.parametrize("name", ["t5", "qwen2"])
@pytest.mark.parametrize("number", [1, 2])
def test_layers_of_the_teacher(name, number, tmp_path):
    teacher = build(name)
    teacher.save(tmp_path)
    config = configure("cmudict/seqkd", f"student={{keep_layers: {number}, build: null}}")
    student = student_shape(config, shape_at(tmp_path))
    assert student.num_parameters == keep_layers(teacher, layers=number).num_parameters


def test_more_layers_than_there_are(tmp_path):
    build("qwen2").save(tmp_path)
    config = configure("cmudict/seqkd", "student={keep_layers: 3, build: null}")
    with pytest.raises(ModelError, match=r"3 is not between 1 and the teacher's 2"):
        student_shape(config, shape_at(tmp_path))


def test_unknown_model_names_the_nearest():
    with pytest.raises(ModelError, match="did you mean google/flan-t5-xl"):
        shape_at("google/flan-t5-xxl")


def test_folder_without_a_known_model(tmp_path):
    with pytest.raises(ModelError, match="has no config.json"):
        shape_at(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "nobody"}')
    with pytest.raises(ModelError, match="no language model that transformers knows"):
        shape_at(tmp_path)


@pytest.mark.parametrize("name", ["t5", "gpt2", "qwen2"])
@pytest.mark.parametrize("targets", [None, "some"])
def test_adapters(name, targets, tmp_path):
    pytest.importorskip("peft")
    names = {"t5": ("q", "v"), "gpt2": ("c_attn",), "qwen2": ("q_proj", "v_proj")}
    lora = Lora(r=3, target_modules=names[name] if targets else None)
    model = build(name)
    model.save(tmp_path)
    shape = shape_at(tmp_path, lora=lora)
    add_adapters(model.model, lora, seed=0)
    assert shape.num_trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert shape.weight_bytes == sum(p.nbytes for p in model.parameters())
    assert shape.num_parameters + shape.num_adapters == model.num_parameters


@pytest.mark.parametrize(
    ("backend", "bits"), [("bitsandbytes", 8), ("bitsandbytes", 4), ("torchao", 8)]
)
@pytest.mark.parametrize("name", ["t5_v1_1", "qwen2"])
def test_quantized_weights(name, backend, bits, tmp_path):
    pytest.importorskip(backend)
    quantization = Quantization(backend=backend, bits=bits)
    build(name, d_model=128, d_ff=256).save(tmp_path)
    loaded = load_model(tmp_path, quantization=quantization)
    shape = replace(shape_at(tmp_path), quantization=quantization)
    assert shape.weight_bytes == held_bytes(loaded)


# Of all parameters, quantised or not, with what belongs to them.
def held_bytes(model: LanguageModel) -> int:
    total = sum(p.nbytes for p in model.parameters() if not hasattr(p, "qdata"))
    for module in model.modules():
        weight, state = getattr(module, "weight", None), getattr(module, "state", None)
        parts = [getattr(state, "SCB", None)]  # bitsandbytes in 8 bits
        if quant_state := getattr(weight, "quant_state", None):  # and in 4
            parts += [quant_state.absmax, quant_state.code]
        if hasattr(weight, "qdata"):  # torchao
            parts += [weight.qdata, weight.scale, weight.zero_point]
        total += sum(part.nbytes for part in parts if part is not None)
    return total


# -- memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("trained", ["weights", "adapters"])
def test_gradients_and_moments(trained):
    model = build("t5_v1_1")
    if trained == "adapters":
        pytest.importorskip("peft")
        add_adapters(model.model, Lora(), seed=0)
    optimizer = build_optimizer(model, OptimConfig())
    model.logprobs(completions(model)).sum().backward()
    optimizer.step()
    learner = Learner(shape_of(model), Passes(), None, SIZE)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert learner.gradients == sum(gradient.nbytes for gradient in gradients)
    states = optimizer.state.values()
    assert learner.optimizer == sum(s["exp_avg"].nbytes + s["exp_avg_sq"].nbytes for s in states)


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_cache(name):
    model = build(name)
    batch = encode(model)
    with torch.no_grad():
        state = model._backbone.start(Prompts(batch.prompt_ids, batch.prompt_mask), LENGTH)
        for _ in range(LENGTH - 1):
            state.step(batch.prompt_ids[:, 0])
    caches = [state.cache]
    if model.is_encoder_decoder:
        caches = [state.cache.self_attention_cache, state.cache.cross_attention_cache]
    layers = [layer for cache in caches for layer in cache.layers]
    real = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
    assert shape_of(model).cache_bytes(SIZE) == real


BART = BartConfig(
    vocab_size=64, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
    decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, dropout=0.0,
    max_position_embeddings=64, pad_token_id=0, eos_token_id=1, bos_token_id=2,
    decoder_start_token_id=1, forced_eos_token_id=None,
)  # fmt: skip


def bart() -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(BartForConditionalGeneration(BART), TOKENIZER)


def on_paper(model: LanguageModel) -> ModelShape:
    return ModelShape("paper", model.copy().model.to("meta"))


def live_bytes(model: LanguageModel, run) -> int:
    live = CostCounter([*model.parameters(), *model.buffers()])
    with live:
        run()
    return live.peak


@pytest.mark.parametrize(
    ("name", "gradient", "dropout", "autocast"),
    [
        *product((*DESCRIPTIONS, "bart"), (False, True), (0.0,), (None,)),
        *product(("t5", "bart", "qwen2"), (True,), (0.1,), (None,)),
        *product(("t5", "t5_v1_1", "qwen2"), (False, True), (0.0,), (torch.bfloat16,)),
    ],
)
def test_activations(name, gradient, dropout, autocast):
    model = bart() if name == "bart" else build(name)
    set_dropout(model.model, dropout)
    model.train(gradient).requires_grad_(gradient or autocast is None)
    size = Size(6, 40, 20)
    rollout = completions(model, size)

    def run():
        with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
            model.features(rollout)

    with torch.set_grad_enabled(gradient):
        real = live_bytes(model, run)
    expected = pass_cost(on_paper(model), size, gradient=gradient, autocast=autocast).peak
    assert expected == pytest.approx(real, rel=0.15 if autocast else 0.08)


# Reading the prompts is the peak of the first size, the last token that of the second.
@pytest.mark.parametrize("size", [Size(6, 40, 20), Size(6, 8, 40)])
@pytest.mark.parametrize("generations", [1, 3])
@pytest.mark.parametrize("name", [*DESCRIPTIONS, "bart"])
def test_memory_of_writing(name, generations, size):
    model = never_ends(bart() if name == "bart" else build(name))
    num_prompts = size.rows // generations
    batch = encode(model, replace(size, rows=num_prompts)).repeat(generations)
    decoding = Decoding(max_tokens=size.num_tokens, strategy="greedy")
    real = live_bytes(model, lambda: model.generate(batch, decoding))
    shape = on_paper(model)
    memory = Room(None, shape, 0, None).write(shape, size, generations=generations)
    found = memory.activations + memory.cache + memory.head
    assert found == pytest.approx(real, rel=0.08)
    assert writing_cost(shape, size, num_prompts=num_prompts).peak >= memory.cache


@pytest.mark.parametrize(
    "more",
    [
        "trainer.rollout_batch_size=512",
        "trainer.micro_batch_tokens=16384",
        "student.build.layers=2",
        "student.build.d_ff=384",
    ],
)
def test_memory_grows_with(more):
    given = ("teacher.train=null", "student.predistill=null", "objective.num_generations=1")
    less, found = (
        plan(configure("cmudict/brim", *given, *changes)).stages[-1].memory
        for changes in ((), (more,))
    )
    assert all(less[phase].total <= found[phase].total for phase in less)
    assert sum(m.total for m in less.values()) < sum(m.total for m in found.values())


@pytest.mark.parametrize("name", ["t5_v1_1", "qwen2"])
@pytest.mark.parametrize("trained", [False, True])
def test_autocast_keeps_copies_of_trained_weights_only(name, trained):
    model = build(name, d_model=64, d_ff=256).requires_grad_(trained)
    rollout = completions(model)

    def read_twice() -> None:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            model.features(rollout)
            model.features(rollout)

    shape, other = on_paper(model), on_paper(build("t5"))
    learner = Learner(shape if trained else other, Passes(), 0.0, SIZE)
    room = Room(learner, other if trained else shape, 0, torch.bfloat16)
    expected = room.read(shape, SIZE, training=True).activations
    assert expected == pytest.approx(live_bytes(model, read_twice), rel=0.15)


def test_dropout_of_the_stage_takes_the_place_of_the_models():
    shape = on_paper(build("t5", dropout=0.1))
    with_it, without = (pass_cost(shape, SIZE, gradient=True, dropout=p).peak for p in (0.25, 0.0))
    assert with_it == pass_cost(shape, SIZE, gradient=True).peak > without


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_activations_with_gradient_checkpointing(name, dropout):
    model = build(name, layers=5, dropout=dropout)
    model.train()
    model.model.activation_checkpointing_enable({"use_reentrant": False})
    size = Size(6, 40, 20)
    rollout = completions(model, size)

    def run() -> None:
        features = model.features(rollout).hidden
        features.backward(torch.ones_like(features))

    run()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    live = CostCounter([*model.parameters(), *model.buffers(), *gradients])
    with live:
        run()
    shape = on_paper(build(name, layers=5, dropout=dropout))
    expected = pass_cost(shape, size, gradient=True, checkpointing=True).peak
    assert expected == pytest.approx(live.peak, rel=0.08)
    assert expected < 0.5 * pass_cost(shape, size, gradient=True).peak


def test_gradient_checkpointing_changes_nothing_of_a_pass_without_gradient():
    shape = on_paper(build("t5"))
    assert pass_cost(shape, SIZE, checkpointing=True).peak == pass_cost(shape, SIZE).peak


@pytest.mark.parametrize("name", ["t5_v1_1", "t5_tied", "qwen2"])
def test_memory_of_an_update(name):
    # All that is made by the passes of a micro-batch, beside the gradients of an earlier one.
    model = build(name, d_ff=64)
    model.train()
    rollout = completions(model)
    model.logprobs(rollout).sum().backward()
    known = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters())]
    live = CostCounter(known)
    with live:
        model.logprobs(rollout).sum().backward()
    learner = Learner(on_paper(model), Passes(), 0.0, SIZE)
    memory = Room(learner, None, 0, None).update()
    assert memory.activations + memory.head == pytest.approx(live.peak, rel=0.05)


# -- operations ------------------------------------------------------------------------------------


# By the formulas of docs/plan.md, as they were counted by hand: reading, writing one completion and
# two of a prompt, an update.
BY_FORMULA = {
    "t5": (8_036_352, 7_934_976, 6_263_808, 24_305_664),
    "gpt2": (5_465_088, 5_138_432, 3_467_264, 16_591_872),
    "llama": (6_325_248, 5_998_592, 4_032_512, 19_172_352),
    "qwen2": (5_751_808, 5_425_152, 3_655_680, 17_452_032),
}


@pytest.mark.parametrize("name", BY_FORMULA)
def test_operations_are_those_of_the_formulas(name):
    shape = on_paper(build(name))
    found = (
        read_operations(shape, SIZE),
        generate_operations(shape, SIZE),
        generate_operations(shape, SIZE, generations=2),
        update_operations(shape, SIZE),
    )
    assert found == pytest.approx(BY_FORMULA[name], rel=0.01)


# The counter knows no operation of the CPU's fused attention.
def count(run) -> int:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_operations_of_reading(name):
    model = build(name)
    real = count(lambda: model.action_values(completions(model)))
    assert read_operations(on_paper(model), SIZE) == real


@pytest.mark.parametrize("generations", [1, 2])
@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_operations_of_writing(name, generations):
    model = never_ends(build(name))
    batch = encode(model).repeat(generations)
    real = count(lambda: model.generate(batch, Decoding(max_tokens=LENGTH)))
    size = replace(SIZE, rows=generations * ROWS)
    assert generate_operations(on_paper(model), size, generations=generations) == real


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_operations_of_an_update(name, checkpointing):
    model = build(name)
    model.train()
    if checkpointing:
        model.model.activation_checkpointing_enable({"use_reentrant": False})
    real = count(lambda: model.logprobs(completions(model)).sum().backward())
    # The counter does not know `addmm_`, which the head's gradient is added up with.
    shape = on_paper(build(name))
    real += 2 * ROWS * LENGTH * shape.head.numel()
    assert update_operations(shape, SIZE, checkpointing=checkpointing) == real
    assert (update_operations(shape, SIZE) < 0.9 * real) == checkpointing


def test_operations_with_adapters():
    pytest.importorskip("peft")
    model = build("qwen2")
    add_adapters(model.model, Lora(r=4), seed=0)
    model.train()
    real = count(lambda: model.logprobs(completions(model)).sum().backward())
    assert update_operations(on_paper(model), SIZE) == real


# -- passes ----------------------------------------------------------------------------------------


SETTINGS = [
    ("seqkd", {}),
    ("kl", {}),
    ("rkl", {}),
    ("js", {"terms": "both"}),
    ("tvd", {"student_fraction": 1.0}),
    ("llmr", {}),
    ("llmr", {"baseline": "min_variance"}),
    ("llmr", {"rollout_reuse": 3}),
    ("llmr", {"num_generations": 2, "baseline": "leave_one_out"}),
    ("brim", {"k": 4}),
    ("brim", {"q_centering": "policy"}),
    ("brim", {"immediate": "expected", "rollout_reuse": 2}),
    ("anchored", {}),
    ("anchored", {"expected_regrets": False, "immediate": "sampled", "num_generations": 2}),
    ("anchored", {"remaining_regret": "learned", "per_token": False}),
    ("ppo_llmr", {"num_minibatches": 1}),
    ("ppo_llmr", {"num_minibatches": 2, "critic": "separate"}),
    ("ppo_llmr", {"num_minibatches": 2, "critic": "anchored"}),
    ("ppo_brim", {"num_minibatches": 1, "kl_coefficient": 0.1}),
]


@pytest.mark.parametrize(("name", "settings"), SETTINGS)
def test_passes_are_those_that_are_made(name, settings):
    objective_config = OBJECTIVES[name][0](**settings)
    objective = make_objective(objective_config, Decoding(max_tokens=8))
    student, teacher = build("t5"), build("t5")
    read, written = watch(student), []
    judged = watch(teacher)
    copied: list = []
    student.copy = lambda: watched_copy(student, copied)
    generate = student.generate
    student.generate = lambda batch, decoding: (
        written.append(len(batch)) or generate(batch, decoding)
    )
    module = objective.prepare(student)
    batch = encode(student)
    batch = replace(batch, examples=tuple(replace(e, references=("w1",)) for e in batch.examples))
    rollout, _ = objective.collect(batch, student, teacher)
    before = (len(judged), len(read), len(copied))
    for _ in range(objective.settings.updates.num_epochs):
        for i in range(objective.settings.updates.num_minibatches):
            part = rollout.select(
                range(i, len(rollout), objective.settings.updates.num_minibatches)
            )
            objective.loss(module, part, teacher)

    passes = objective_config.passes()
    rows = ROWS * passes.generations
    assert len(rollout) == rows
    if name not in ("js", "tvd"):  # drawn for each row
        assert sum(written) * passes.generations == passes.written * rows * passes.generations
    assert passes.teacher_reads == before[0]
    assert passes.student_reads == before[1]
    separate = passes.critic == "separate"
    assert (passes.critic is None) == (module is student)
    assert passes.copy_reads + separate == before[2]
    assert passes.updates * passes.minibatches == len(read) - before[1]
    again = 0 if passes.kept else passes.compared
    assert again * passes.minibatches == len(judged) - before[0]
    assert objective.settings.updates.sync_every == 1
    assert passes.copies + separate == bool(copied)


# A list that grows whenever the model reads.
def watch(model: LanguageModel, calls: list | None = None) -> list:
    calls = [] if calls is None else calls
    read = model.features

    def watched(*args, **kwargs):
        if kwargs.get("kept") is None:
            calls.append(model)
        return read(*args, **kwargs)

    model.features = watched
    return calls


def watched_copy(student: LanguageModel, calls: list) -> LanguageModel:
    copy = build("t5")
    copy.load_state_dict(student.state_dict())
    watch(copy, calls)
    return copy


def test_old_policies_are_read_and_kept():
    passes = OBJECTIVES["llmr"][0](sync_every=4).passes()
    assert (passes.student_reads, passes.copies, passes.writers) == (1, 1, 1)


# -- the whole -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, _ in list_recipes()])
def test_every_recipe_can_be_planned(name, without_peaks):
    config = configure(name)
    found = plan(config)
    names = [stage.name for stage in found.stages]
    assert ("teacher" in names) == (config.teacher.train is not None)
    assert ("predistill" in names) == (config.student.predistill is not None)
    assert names[-1] == config.objective.name
    assert all(stage.num_completions for stage in found.stages)
    assert json.loads(json.dumps(as_dict(found)))["peak_bytes"] == found.peak_bytes


def test_memory_of_a_run_that_was_measured():
    # `make slow` measured 3.3 GiB in the process, some 0.3 of which it has without a model.
    assert plan(configure("wordproblems/brim_smollm2")).peak_bytes == pytest.approx(
        3.0 * GIB, rel=0.1
    )


def test_stages_are_counted(without_peaks):
    found = plan(configure("xsum/brim", "trainer.num_epochs=1", "objective.num_generations=2"))
    outputs, predistill, objective = found.stages
    assert outputs.num_completions == 202_926
    assert predistill.num_steps == 793  # 2 x 202,926 / 512
    assert objective.num_steps == 793  # 202,926 / 256
    assert objective.num_completions == 793 * 256 * 2
    assert objective.max_tokens == objective.num_completions * (1024 + 64)
    assert objective.total_operations == 793 * objective.operations.total
    t5_base = 222_903_552 * 4
    assert objective.checkpoint_bytes == 3 * t5_base
    assert objective.kept_bytes == 2 * 3 * t5_base + t5_base
    assert found.kept_bytes == 2 * objective.kept_bytes


@pytest.mark.parametrize(
    ("recipe", "overrides", "text"),
    [
        ("gsm8k/brim", [], "brim: the warm-up of 5,000 steps is longer than the stage's 79"),
        ("europarl/kl", [], "kl: the warm-up of 5,000 steps is longer than the stage's 4,562"),
        ("xsum/brim", ["objective.k=65"], "objective.k is 65"),
        ("xsum/brim", ["decoding.max_prompt_tokens=null"], "max_prompt_tokens is not set"),
        ("xsum/qwen/brim", ["decoding.max_prompt_tokens=32768"], "32,831 tokens are more"),
        ("xsum/brim", ["task.max_train_examples=null"], "training examples is not known"),
    ],
)
def test_warnings(recipe, overrides, text, without_peaks):
    warnings = "\n".join(plan(configure(recipe, *overrides)).warnings)
    assert text in warnings
    fine = ["optim.warmup_steps=0", "student.predistill=null", "teacher.train=null"]
    assert text not in "\n".join(plan(configure("xsum/brim", *fine)).warnings)


def test_rows_of_local_files_are_counted(tmp_path, without_peaks):
    rows = [{"document": f"text {i}", "summary": "s"} for i in range(40)]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"document": ""}]))
    overrides = [f"task.path={tmp_path}", "task.max_train_examples=null"]
    for _ in range(2):
        found = plan(configure("xsum/brim", *overrides))
        assert {stage.num_examples for stage in found.stages} == {40}
        assert "not known" not in "".join(found.warnings)
    path.write_text("nothing of the kind")
    other = plan(configure("xsum/brim", *overrides, "task.on_bad_row=error"))
    assert "training examples is not known" in "".join(other.warnings)


@pytest.mark.parametrize(
    ("stage", "keys"),
    [("teacher", "teacher.train."), ("predistill", "student.predistill."), ("brim", "")],
)
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_warm_ups_that_do_not_end_in_time(stage, keys, schedule):
    """Of 100 steps at least ten are to have the full rate; a rate below its half is said to be."""

    def warned(warmup: int, steps: int = 100) -> str:
        settings = {"warmup_steps": warmup, "schedule": schedule, "lr": 0.5}
        overrides = [f"{keys}optim.{key}={value}" for key, value in settings.items()]
        config = configure(
            "gsm8k/brim", *overrides, f"{keys}trainer={{max_steps: {steps}, num_epochs: null}}"
        )
        return "".join(w for w in settings_warnings(config, 6705) if w.startswith(f"{stage}: "))

    assert "reaches 0.25 of 0.5; lower " + keys + "optim.warmup_steps, to 10" in warned(200)
    assert "less than half" not in warned(200)
    assert "reaches 0.25, less than half of 0.5" in warned(201)
    assert "longer than" in warned(101)
    assert "nearly all of" in warned(100)
    assert warned(92)
    assert not any(map(warned, (0, 1, 50, 91)))
    assert not warned(1, steps=1)


def test_memory_limit(without_peaks):
    config = configure("xsum/brim")
    peak = plan(config).peak_bytes / GIB
    assert any("GiB" in w for w in plan(config, memory_limit=peak * 0.99).warnings)
    assert not any("GiB" in w for w in plan(config, memory_limit=peak * 1.01).warnings)


def test_drift_of_a_quantized_teacher_needs_the_full_one_too(without_peaks):
    quantized = "teacher.quantization={backend: bitsandbytes, bits: 4}"
    with_drift = plan(configure("xsum/brim", quantized))
    without = plan(configure("xsum/brim", quantized, "teacher.quantization.drift_examples=0"))
    assert with_drift.stages[0].name == "drift"
    assert with_drift.stages[1:] == without.stages
    few, full, student = without.models[0].weight_bytes, 4 * 2_849_757_184, 4 * 222_903_552
    assert full / 8 < few < full / 3
    assert with_drift.stages[0].memory["teacher"].weights == few + full + student
    assert without.stages[-1].memory["teacher"].weights == few + student


def test_command(without_peaks, tmp_path):
    run = CliRunner().invoke
    result = run(app, ["plan", "xsum/brim", "size=small", "--memory", "1"])
    assert result.exit_code == 0
    assert "google/flan-t5-small" in result.stdout
    assert "warning: brim: update needs" in result.stdout
    found = json.loads(run(app, ["plan", "xsum/brim", "--json"]).stdout)
    assert found["models"][0]["num_parameters"] == PUBLISHED["google/flan-t5-xl"]
    assert found["stages"][-1]["num_steps"] == 2379


def test_lines_are_drawn_on_a_terminal_only(without_peaks):
    found = plan(configure("cmudict/brim"))
    assert "─" in as_text(found, width=120)
    assert max(map(len, as_text(found, width=120).splitlines())) <= 120
    assert "─" not in as_text(found)
