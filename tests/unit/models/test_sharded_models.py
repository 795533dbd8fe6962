import copy

import pytest
import torch
import torch.distributed as dist
from rounding import assert_rounding
from tiny import encoded, tiny_language_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from brim.errors import ConfigError, ModelError
from brim.models import Decoding, Lora, add_adapters
from brim.training.optimizer import fill
from brim.training.sharding import (
    ShardedTeacher,
    gather,
    is_sharded,
    part_of,
    shard_student,
    with_whole_weights,
)

CPU = torch.device("cpu")
DECODING = Decoding(max_tokens=6)


@pytest.fixture
def processes():
    """`processes(n, rank)` makes this the process of that rank; the others are not there."""

    def become(count, rank=0):
        if dist.is_initialized():
            dist.destroy_process_group()
        # A fake group: gloo's threads could abort the interpreter's exit.
        dist.init_process_group("fake", rank=rank, world_size=count)

    yield become
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.parametrize("shape", [(5, 3), (1, 4), (8,)])
def test_the_parts_of_all_processes_are_the_whole(processes, shape):
    whole = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    parts = []
    for rank in range(3):
        processes(3, rank)
        mesh = init_device_mesh("cpu", (3,))
        target = distribute_tensor(torch.zeros(shape), mesh, [Shard(0)], src_data_rank=None)
        fill({"weight": target}, {"weight": whole})
        parts.append(target.to_local())
    assert torch.equal(torch.cat(parts), whole)
    assert max(len(part) for part in parts) == -(-shape[0] // 3)


def test_what_is_whole_or_a_number_is_left_alone(processes):
    processes(2)
    value = torch.randn(4, 2)
    assert part_of(value, torch.zeros(4, 2)) is value
    mesh = init_device_mesh("cpu", (2,))
    shared = distribute_tensor(torch.zeros(4, 2), mesh, [Shard(0)], src_data_rank=None)
    steps = torch.tensor(3.0)  # of an optimizer
    assert part_of(steps, shared) is steps


def test_what_is_gathered_goes_to_the_first_process_and_shared_tensors_stay_one(processes):
    weight = torch.randn(3, 2)
    tensors = {"head": weight, "embedding": weight, "norm": torch.ones(2)}
    processes(2, 0)
    found = gather(tensors)
    assert found.keys() == tensors.keys()
    assert found["head"] is found["embedding"]
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    processes(2, 1)
    assert gather(tensors) == {}


@pytest.mark.parametrize("family", ["t5_v1_1", "t5", "bart", "qwen2", "gpt2"])
@pytest.mark.parametrize("offload", [False, True])
def test_a_teacher_in_parts_says_what_it_said(processes, family, offload):
    processes(1)
    teacher = tiny_language_model(family).requires_grad_(False).eval()
    teacher.batch_tokens = 25
    batch = encoded(teacher)
    written = teacher.generate(batch, DECODING)
    values = teacher.map(written, teacher.action_values)
    statistics = teacher.statistics(written)
    teacher = ShardedTeacher(teacher, CPU, offload=offload)
    assert is_sharded(teacher)
    for _ in range(2):
        again = teacher.generate(batch, DECODING)
        assert torch.equal(again.completion_ids, written.completion_ids)
        found = teacher.map(written, teacher.action_values)
        assert torch.equal(found.q_taken, values.q_taken)
        assert torch.equal(found.q_max, values.q_max)
        assert torch.equal(teacher.statistics(written).logprobs, statistics.logprobs)
        teacher.map(written, teacher.action_values)
        # Between its passes it is in parts again.
        assert all(isinstance(weight, DTensor) for weight in teacher.parameters())


@pytest.mark.parametrize("family", ["t5_v1_1", "qwen2"])
def test_a_student_in_parts_has_the_same_gradient(processes, family):
    processes(1)
    student = tiny_language_model(family).eval()
    whole = copy.deepcopy(student)
    rollout = whole.generate(encoded(whole), DECODING)
    whole.logprobs(rollout).sum().backward()
    shard_student(student, CPU)
    for _ in range(2):  # what was gathered to write must not stay behind
        again = with_whole_weights(student, lambda: student.generate(encoded(student), DECODING))
        assert torch.equal(again.completion_ids, rollout.completion_ids)
        assert all(isinstance(weight, DTensor) for weight in student.parameters())
    student.logprobs(rollout).sum().backward()
    for ours, theirs in zip(student.parameters(), whole.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if ours.grad is not None:
            assert_rounding(ours.grad.to_local(), theirs.grad)


@pytest.mark.parametrize("family", ["t5_v1_1", "qwen2"])
def test_a_model_in_parts_is_saved_with_its_own_head(processes, family, tmp_path, monkeypatch):
    processes(1)
    model = tiny_language_model(family)
    before = model.copy().model.state_dict()
    shard_student(model, CPU)
    weights = gather(model.model.state_dict(keep_vars=True))
    model.save(tmp_path / "good", state_dict=weights)
    reader = type(model.model)
    stored = reader.from_pretrained(tmp_path / "good").state_dict()
    assert all(torch.equal(stored[name], before[name]) for name in before)
    # A head that is not the one of the file is still met.
    original = type(model.model).save_pretrained

    def tie(self, directory, state_dict):
        embedding = next(value for name, value in state_dict.items() if "embed" in name)
        original(self, directory, state_dict=state_dict | {"lm_head.weight": 0 * embedding})

    monkeypatch.setattr(type(model.model), "save_pretrained", tie)
    with pytest.raises(ModelError, match="output head in memory is not the one in the file"):
        model.save(tmp_path / "bad", state_dict=weights)


def test_what_is_whole_needs_no_gathering():
    student = tiny_language_model("t5")
    assert not is_sharded(student)
    assert with_whole_weights(student, lambda: torch.is_grad_enabled())


def test_adapters_and_an_old_torch_are_refused(monkeypatch, processes):
    processes(1)
    student = tiny_language_model("qwen2")
    with monkeypatch.context() as patch:
        patch.delattr(FSDPModule, "reset_iter_state")
        with pytest.raises(ConfigError, match="newer torch"):
            shard_student(student, CPU)
    add_adapters(student.model, Lora(), seed=0)
    with pytest.raises(ModelError, match="adapters"):
        shard_student(student, CPU)
