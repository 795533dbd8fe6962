"""The critic: where it begins, what it moves, and that no weight waits for a gradient in vain."""

from dataclasses import replace

import pytest
import torch
from rounding import assert_rounding
from tiny import one_process, tiny_language_model, written
from torch import Tensor

from brim.errors import RunError
from brim.models import ActorCritic, Distribution, LanguageModel, Lora
from brim.models.adapters import add_adapters
from brim.training.optimizer import load_parameters, save_parameters
from brim.types import Rollout

FAMILIES = ["t5", "t5_v1_1", "bart", "gpt2", "llama", "qwen2", "phi"]
TRUNKS = ["shared", "separate", "detached"]


def make(
    family: str, trunk: str, lora: Lora | None = None, **options: float
) -> tuple[ActorCritic, Rollout]:
    student, rollout = written(family, 5, spread=0.15)
    if lora is not None:
        pytest.importorskip("peft")
        add_adapters(student.model, lora, seed=0)
    return ActorCritic(student, trunk=trunk, **options), rollout  # type: ignore[arg-type]


def let_it_speak(critic: ActorCritic) -> None:
    with torch.no_grad():
        critic.value_head.weight.copy_(torch.linspace(-1, 1, critic.value_head.weight.numel()))
        critic.value_head.bias.fill_(0.5)


def gradients(critic: ActorCritic, loss: Tensor) -> dict[str, Tensor | None]:
    critic.zero_grad(set_to_none=True)
    loss.backward()
    return {name: parameter.grad for name, parameter in critic.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("trunk", TRUNKS)
def test_it_begins_at_0_and_leaves_the_policy_alone(family, trunk):
    critic, rollout = make(family, trunk, unit=100.0)
    tokens, expected = (
        model(rollout, distribution=Distribution(0.7, top_k=3))
        for model in (critic, critic.student)
    )
    assert torch.equal(tokens.logprobs, expected.logprobs)
    assert torch.equal(tokens.entropy, expected.entropy)
    assert expected.state_values is None
    assert torch.equal(tokens.state_values, torch.zeros(rollout.mask.shape))
    assert tokens.state_values.requires_grad


@pytest.mark.parametrize("family", ["t5", "llama"])
@pytest.mark.parametrize("trunk", TRUNKS)
def test_values_are_a_linear_map_of_the_features_times_the_unit(family, trunk):
    critic, rollout = make(family, trunk, unit=10.0)
    let_it_speak(critic)
    with torch.no_grad():
        values = critic(rollout).state_values
        features = critic.student.features(rollout).hidden
    expected = 10 * (features @ critic.value_head.weight[0] + 0.5)
    assert_rounding(values[rollout.mask], expected)
    assert_rounding(critic.values(rollout).detach()[rollout.mask], expected)
    assert not values[~rollout.mask].any()
    assert values[rollout.mask].std() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shared_trunk_learns_from_the_critic(family):
    critic, rollout = make(family, "shared")
    let_it_speak(critic)
    found = gradients(critic, critic(rollout).state_values.square().sum())
    moved = {name for name, grad in found.items() if grad is not None and grad.any()}
    assert {"value_head.weight", "value_head.bias"} < moved
    assert any(name.startswith("student.") for name in moved)
    untied = not any(
        critic.student.model.get_output_embeddings().weight is p
        for p in critic.student.model.get_input_embeddings().parameters()
    )
    head = critic.student.model.get_output_embeddings().weight
    if untied:  # the value does not go through it
        assert head.grad is None or not head.grad.any()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("trunk", ["separate", "detached"])
def test_a_critic_apart_does_not_move_the_student(family: str, trunk: str) -> None:
    critic, rollout = make(family, trunk)
    let_it_speak(critic)
    found = gradients(critic, critic(rollout).state_values.square().sum())
    for name, grad in found.items():
        if name.startswith("student."):
            assert grad is None or not grad.any()
    kept = "critic." if trunk == "separate" else "value_head."
    assert any(g is not None and g.any() for n, g in found.items() if n.startswith(kept))
    # Nor the other way round.
    found = gradients(critic, critic(rollout).logprobs.sum())
    for name, grad in found.items():
        if not name.startswith("student."):
            assert grad is None or not grad.any()


@pytest.mark.parametrize(
    ("family", "lora"),
    [*((family, None) for family in FAMILIES), ("t5_v1_1", Lora(r=2)), ("gpt2", Lora(r=2))],
)
@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize("num_rows", [5, 0])
def test_every_trainable_weight_gets_a_gradient(family, lora, trunk, num_rows):
    # DDP waits for each of them, also where a process has no row of a minibatch.
    critic, rollout = make(family, trunk, lora)
    let_it_speak(critic)
    mask = rollout.mask & (torch.arange(5) < num_rows)[:, None]
    tokens = critic(replace(rollout, mask=mask))
    critic.zero_grad(set_to_none=True)
    (tokens.logprobs.sum() + tokens.state_values.square().sum()).backward()
    trainable = {n for n, p in critic.named_parameters() if p.requires_grad}
    assert {n for n, p in critic.named_parameters() if p.grad is not None} == trainable
    assert any(name.startswith("critic.") for name in trainable) == (trunk == "separate")
    if num_rows == 0:
        assert not any(p.grad.any() for p in critic.parameters() if p.grad is not None)
    if lora is not None:
        return
    if critic.critic:
        head = critic.critic.model.get_output_embeddings()
        tied = head.weight is critic.critic.model.get_input_embeddings().weight
        assert head.weight.requires_grad == tied
        assert tied == (family in ("t5", "bart", "gpt2", "llama"))
    assert all(parameter.requires_grad for parameter in critic.student.parameters())


@pytest.mark.parametrize("family", ["t5_v1_1", "gpt2", "llama", "qwen2"])
@pytest.mark.parametrize("trunk", TRUNKS)
def test_ddp_gives_the_same_gradients(family, trunk):
    critic, rollout = make(family, trunk)
    let_it_speak(critic)

    def loss(module: torch.nn.Module, part: Rollout) -> Tensor:
        tokens = module(part, distribution=Distribution(0.8))
        return tokens.logprobs.sum() + tokens.state_values.square().sum()

    plain = {
        n: None if g is None else g.clone()
        for n, g in gradients(critic, loss(critic, rollout)).items()
    }
    with one_process(critic) as wrapped:
        for _ in range(2):  # a weight without a gradient is complained of in the second pass
            critic.zero_grad(set_to_none=True)
            loss(wrapped, rollout).backward()
    for name, parameter in critic.named_parameters():
        if plain[name] is not None:
            assert_rounding(parameter.grad, plain[name])


def test_the_critic_is_a_copy_and_the_student_is_not():
    student = tiny_language_model("t5").eval()
    critic = ActorCritic(student, trunk="separate")
    assert critic.student is student
    assert isinstance(critic.critic, LanguageModel)
    for (name, one), (_, other) in zip(
        student.named_parameters(), critic.critic.named_parameters(), strict=True
    ):
        assert torch.equal(one, other), name
        assert one.data_ptr() != other.data_ptr()
    assert ActorCritic(student, trunk="shared").critic is None


@pytest.mark.parametrize("trunk", TRUNKS)
def test_under_autocast_values_are_float32(trunk):
    critic, rollout = make("llama", trunk, unit=100.0)
    let_it_speak(critic)
    exact = critic(rollout).state_values.detach()
    with torch.autocast("cpu", torch.bfloat16):
        values = critic(rollout).state_values
    assert values.dtype == torch.float32
    values.sum().backward()
    assert critic.value_head.weight.grad.dtype == torch.float32
    torch.testing.assert_close(values, exact, rtol=0.05, atol=5.0)


# On disk


def beside_student(critic: ActorCritic) -> dict[str, Tensor]:
    parameters = critic.named_parameters()
    return {name: value for name, value in parameters if not name.startswith("student.")}


@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize("family", ["t5", "qwen2"])
def test_a_critic_comes_back_bit_for_bit(family, trunk, tmp_path):
    critic, rollout = make(family, trunk)
    let_it_speak(critic)
    if critic.critic is not None:
        with torch.no_grad():
            for parameter in critic.critic.parameters():
                parameter.add_(0.01)
    save_parameters(beside_student(critic), tmp_path / "objective.safetensors")
    other, _ = make(family, trunk)
    load_parameters(beside_student(other), tmp_path / "objective.safetensors")
    for name, value in critic.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    assert torch.equal(other(rollout).state_values, critic(rollout).state_values)
    assert all(p.requires_grad for p in other.value_head.parameters())
    let_it_speak(other)  # the file is not what is trained
    with torch.no_grad():
        other.value_head.weight.zero_()
    load_parameters(beside_student(other), tmp_path / "objective.safetensors")
    assert torch.equal(other.value_head.weight, critic.value_head.weight)


def test_nothing_to_keep_makes_no_file(tmp_path):
    path = tmp_path / "objective.safetensors"
    save_parameters({}, path)
    assert not path.exists()
    load_parameters({}, path)


def test_a_file_of_something_else_is_refused_and_changes_nothing(tmp_path):
    path = tmp_path / "objective.safetensors"
    critic, _ = make("t5", "shared")
    let_it_speak(critic)
    before = {name: value.clone() for name, value in beside_student(critic).items()}
    with pytest.raises(RunError, match="settings that the run was begun with") as caught:
        load_parameters(beside_student(critic), path)
    assert str(path) in str(caught.value)
    others = [
        {"value_head.weight": torch.zeros(1, 16)},
        {"value_head.weight": torch.zeros(1, 8), "value_head.bias": torch.zeros(1)},
        {**before, "more": torch.zeros(1)},
    ]
    for tensors in others:
        save_parameters(tensors, path)
        with pytest.raises(RunError, match="does not hold"):
            load_parameters(beside_student(critic), path)
    for name, value in beside_student(critic).items():
        assert torch.equal(value, before[name])
