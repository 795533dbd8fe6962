"""What each of several devices holds, computes and sends."""

import json
from dataclasses import replace

import pytest
import torch
from makers import configure
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel
from typer.testing import CliRunner

from brim.cli import app
from brim.errors import ConfigError
from brim.models.layers import layers_of
from brim.models.scratch import build_without_tokenizer
from brim.objectives.method import Passes
from brim.plan import as_text, plan
from brim.plan.flops import step_traffic
from brim.plan.memory import ONE_DEVICE, Devices, Learner, Room, Sizes, at_work, phases
from brim.plan.models import ModelShape, Size, stacks_of

SIZES = Sizes(*(Size(rows, 12, 6) for rows in (4, 2, 3, 8)))
MICRO_BATCH = Size(2, 12, 6)
BRIM = Passes(written=1.0, teacher_reads=1)
PPO = Passes(
    written=1.0, teacher_reads=1, student_reads=1, updates=3, minibatches=2, critic="separate"
)
KL = Passes(written=1.0, compared=1)
ANCHORED = Passes(written=1.0, teacher_reads=1, student_reads=1, compared=1)
ALL_PASSES = pytest.mark.parametrize(
    "passes", [BRIM, PPO, KL, ANCHORED], ids=["brim", "ppo", "kl", "anchored"]
)
FAMILIES = pytest.mark.parametrize("family", ["t5", "qwen2"])
MANY = 10**9


def build(family: str, d_model: int) -> PreTrainedModel:
    description = {"family": family, "d_model": d_model, "layers": 3, "heads": 4, "d_ff": 96}
    return build_without_tokenizer(description, vocab_size=64)


def shape_of(family: str, d_model: int) -> ModelShape:
    with torch.device("meta"):
        return ModelShape(family, build(family, d_model))


def learner_of(shape: ModelShape, passes: Passes = BRIM) -> Learner:
    return Learner(shape, passes, 0.0, MICRO_BATCH)


def rooms(family: str, passes: Passes, devices: Devices) -> Room:
    student, teacher = shape_of(family, 32), shape_of(family, 64)
    return Room(learner_of(student, passes), teacher, 0, None, devices)


def memory_of(family: str, passes: Passes, devices: Devices, rows: int = 8):
    return phases(rooms(family, passes, devices), rows, SIZES, returns=True)


# -- memory ----------------------------------------------------------------------------------------


@FAMILIES
@ALL_PASSES
def test_one_device_has_nothing_to_share_out(family, passes):
    alone = memory_of(family, passes, ONE_DEVICE)
    assert memory_of(family, passes, Devices(1, student="fsdp", teacher="fsdp")) == alone
    assert all(memory.exchange == 0 for memory in alone.values())


@FAMILIES
@ALL_PASSES
def test_sharded_memory_falls_towards_what_is_at_work(family, passes, without_peaks):
    counts = (2, 4, 8, 64, MANY)
    found = [memory_of(family, passes, Devices(n, "fsdp", "fsdp")) for n in counts]
    for phase in found[0]:
        totals = [memory[phase].total for memory in found]
        assert totals == sorted(totals, reverse=True)
        assert totals[0] > totals[-2]
    room = rooms(family, passes, ONE_DEVICE)
    student, teacher = room.learner.shape, room.teacher
    models = 1 + (passes.critic == "separate")
    last = found[-1]
    few = 3  # of each, one byte is left on each device
    assert last["rollout"].exchange == student.weight_bytes
    assert last["rollout"].weights <= few
    gradients = at_work(student, trainable=True)
    expected = models * (at_work(student) + gradients)
    expected += passes.compared * (teacher.outside_bytes() if passes.kept else at_work(teacher))
    assert last["update"].exchange == expected
    assert last["update"].weights + last["update"].gradients + last["update"].optimizer <= 2 * few
    if passes.teacher_reads:
        assert last["teacher"].exchange == at_work(teacher)


@FAMILIES
def test_what_the_teacher_has_read_is_held_until_the_update(family, without_peaks):
    width = shape_of(family, 64).head.shape[1]
    row = 4 * SIZES.scored.num_tokens * width
    few, many = (memory_of(family, ANCHORED, ONE_DEVICE, rows) for rows in (100, 1100))
    for phase in ("student", "update"):
        assert many[phase].activations - few[phase].activations == 1000 * row
    # The parts, what is made of them, and that in order.
    assert many["teacher"].activations - few["teacher"].activations == 3 * 1000 * row
    brim = memory_of(family, BRIM, ONE_DEVICE, 1100)
    assert brim["update"].total < many["update"].total - 1000 * row


@FAMILIES
def test_parts_add_up_to_the_whole(family):
    room = rooms(family, BRIM, ONE_DEVICE)
    whole = room.update()
    for count in (2, 5):
        part = replace(room, devices=Devices(count, "fsdp", "fsdp")).update()
        for name in ("weights", "gradients", "optimizer"):
            total = count * getattr(part, name)
            assert getattr(whole, name) <= total < getattr(whole, name) + 3 * count


@FAMILIES
def test_replicas_hold_what_one_device_does_and_buckets(family, without_peaks):
    alone = memory_of(family, BRIM, ONE_DEVICE)
    gradients = alone["update"].gradients
    for count in (2, 8):
        many = memory_of(family, BRIM, Devices(count))
        assert many == {p: replace(memory, exchange=gradients) for p, memory in alone.items()}


@FAMILIES
def test_an_offloaded_teacher_leaves_what_is_at_work(family, without_peaks):
    for count in (1, 4):
        kept = memory_of(family, BRIM, Devices(count))
        moved = memory_of(family, BRIM, Devices(count, teacher="offload"))
        teacher = rooms(family, BRIM, ONE_DEVICE).teacher
        for phase in kept:
            assert kept[phase].weights - moved[phase].weights == teacher.weight_bytes
        assert moved["teacher"].exchange - kept["teacher"].exchange == at_work(teacher)


@FAMILIES
@ALL_PASSES
def test_a_teacher_on_a_device_of_its_own(family, passes, without_peaks):
    beside = memory_of(family, passes, ONE_DEVICE)
    apart = memory_of(family, passes, Devices(teacher_apart=True))
    room = rooms(family, passes, ONE_DEVICE)
    for phase in set(beside) - {"teacher", "evaluation"}:
        assert beside[phase].weights - apart[phase].weights == room.teacher.weight_bytes
    if passes.teacher_reads:
        assert apart["teacher"].weights == room.teacher.weight_bytes
        assert apart["teacher"].optimizer == 0


@FAMILIES
def test_layers_and_the_rest_are_the_model(family):
    shape = shape_of(family, 32)
    layers = [layer for stack in stacks_of(shape.model).values() for layer in layers_of(stack)]
    sizes = [sum(p.nbytes for p in layer.parameters()) for layer in layers]
    assert shape.layer_bytes() == max(sizes)
    assert shape.outside_bytes() + sum(sizes) == shape.weight_bytes
    assert shape.layer_bytes(trainable=True) == max(sizes)
    shape.model.requires_grad_(False)
    assert at_work(shape, trainable=True) == 0


def test_moments_in_8_bits():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    parameters = {"large": (300, 257), "just": (64, 64), "small": (63, 65), "vector": (5000,)}
    module = nn.ParameterDict({n: nn.Parameter(torch.ones(s)) for n, s in parameters.items()})
    optimizer = bitsandbytes.optim.AdamW8bit(module.parameters(), lr=1e-3)
    sum(p.sum() for p in module.values()).backward()
    optimizer.step()
    parts = ("state1", "state2", "absmax1", "absmax2")  # and two tables that all share
    real = sum(state[k].nbytes for state in optimizer.state.values() for k in parts if k in state)
    assert ModelShape("any", module).moment_bytes_8bit == real


def test_learner_with_moments_in_8_bits():
    learner = learner_of(shape_of("t5", 128))
    few = replace(learner, moments_8bit=True)
    assert few.optimizer == learner.shape.moment_bytes_8bit
    assert learner.optimizer / 4 < few.optimizer < 1.1 * learner.optimizer / 4


# -- what is sent ----------------------------------------------------------------------------------


def sent(family: str, passes: Passes, devices: Devices, rows: int = 8):
    learner = learner_of(shape_of(family, 32), passes)
    return step_traffic(learner, shape_of(family, 64), devices, rows, SIZES)


@FAMILIES
@ALL_PASSES
def test_one_device_sends_nothing(family, passes):
    for sharding in ("none", "fsdp"):
        assert sent(family, passes, Devices(1, sharding, sharding)).total == 0


@FAMILIES
@ALL_PASSES
def test_replicas_send_their_gradients_twice_at_most(family, passes):
    learner = learner_of(shape_of(family, 32), passes)
    updates = passes.updates * passes.minibatches
    found = [sent(family, passes, Devices(count)) for count in (2, 3, 8, MANY)]
    totals = [traffic.total for traffic in found]
    assert totals == sorted(totals)
    assert totals[0] == learner.gradients * updates
    assert totals[-1] == pytest.approx(2 * learner.gradients * updates, abs=1)
    assert all(traffic.total == traffic.update for traffic in found)


@FAMILIES
def test_replicas_send_the_same_however_many_micro_batches(family):
    assert len({sent(family, BRIM, Devices(4), rows).total for rows in (1, 8, 100)}) == 1


class Collectives(TorchDispatchMode):
    # Bytes that a rank of a ring sends.
    def __init__(self, count: int) -> None:
        super().__init__()
        self.count, self.sent = count, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "_allgather_base_" in str(func):
            self.sent += args[1].nbytes * (self.count - 1)
        elif "_reduce_scatter_base_" in str(func):
            self.sent += args[0].nbytes * (self.count - 1)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def mesh():
    # One process that believes to be the first of four; what it is sent is made up.
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield distributed.init_device_mesh("cpu", (4,))
    distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")
@FAMILIES
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_a_sharded_student_sends_what_torchs_does(family, micro_batches, mesh):
    rows = micro_batches * MICRO_BATCH.rows
    expected = sent(family, BRIM, Devices(4, "fsdp"), rows)
    model = build(family, 32).train()
    for stack in stacks_of(model).values():
        for layer in layers_of(stack):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    ids = torch.ones(2, 12, dtype=torch.long)
    with Collectives(4) as counted:
        for _ in range(micro_batches):
            model(input_ids=ids, labels=ids).loss.backward()
    assert expected.update == counted.sent
    # The writer is gathered once, whole.
    assert expected.rollout == pytest.approx(3 / 4 * shape_of(family, 32).weight_bytes, abs=1)
    assert expected.total == expected.update + expected.rollout


@FAMILIES
def test_a_sharded_teacher_is_sent_for_each_pass(family):
    teacher = shape_of(family, 64).weight_bytes
    found = sent(family, BRIM, Devices(2, teacher="fsdp"), rows=5)
    assert found.teacher == teacher * 3 // 2  # two rows a pass
    beside = sent(family, KL, Devices(2, teacher="fsdp"), rows=5)
    without = sent(family, KL, Devices(2), rows=5)
    assert beside.update - without.update == pytest.approx(teacher * 3 / 2, abs=1)
    for kept in ("none", "offload"):
        assert sent(family, BRIM, Devices(2, teacher=kept)).teacher == 0


# -- the whole -------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["xsum/brim", "gsm8k/ppo_llmr", "europarl/qwen/kl"])
def test_operations_of_all_devices_are_those_of_one(recipe, without_peaks):
    config = configure(recipe)
    alone = plan(config)
    for count in (2, 8):
        for whole, part in zip(alone.stages, plan(config, devices=count).stages, strict=True):
            assert (part.num_steps, part.max_tokens) == (whole.num_steps, whole.max_tokens)
            assert part.kept_bytes == whole.kept_bytes
            if whole.operations is not None:
                assert count * part.operations.total == whole.operations.total


def test_the_busiest_device_is_planned(without_peaks):
    found = plan(configure("xsum/brim"), devices=7)  # 256 = 7 * 36 + 4
    alone = plan(configure("xsum/brim")).stages[-1].operations.total
    assert found.stages[-1].operations.total == alone // 256 * 37
    assert any("some wait for the others" in warning for warning in found.warnings)
    assert not any(
        "wait" in warning for warning in plan(configure("xsum/brim"), devices=8).warnings
    )


def test_tables_of_one_device_say_nothing_of_others(without_peaks):
    text = as_text(plan(configure("xsum/brim")))
    assert not any(word in text for word in ("exchange", "sent", "seconds", "devices"))
    text = as_text(plan(configure("xsum/brim"), devices=8))
    assert "on each of 8 devices" in text
    assert "seconds" not in text


def test_command(without_peaks):
    run = CliRunner().invoke
    options = ["plan", "xsum/brim", "--devices", "8"]
    result = run(app, options)
    assert result.exit_code == 0
    assert "sent in a step, on each of 8 devices" in result.stdout
    found = json.loads(run(app, [*options, "--json"]).stdout)
    stage = found["stages"][-1]
    assert found["devices"] == 8
    traffic = stage["traffic"]
    assert traffic["total"] == sum(traffic[phase] for phase in ("rollout", "teacher", "update"))
    assert stage["seconds"] is None


def test_more_devices_than_prompts_are_refused_as_in_training():
    config = configure("cmudict/brim", "trainer.rollout_batch_size=3")
    assert plan(config, devices=3).devices == 3
    with pytest.raises(ConfigError, match="rollout_batch_size: 3 prompts are too few for 4"):
        plan(config, devices=4)
