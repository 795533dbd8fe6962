"""Batches and rollouts are repeated, chosen from, grouped and moved row by row."""

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from brim.examples import Example
from brim.seeding import derive_seed
from brim.types import ActionValues, Batch, Rollout, TokenStatistics


def make_batch(rows: int = 3) -> Batch:
    return Batch(
        examples=tuple(Example(f"e{i}", f"prompt {i}") for i in range(rows)),
        prompt_ids=torch.arange(2 * rows).view(rows, 2),
        prompt_mask=torch.tensor([[True, i % 2 == 0] for i in range(rows)]),
        seeds=tuple(10 + i for i in range(rows)),
        num_truncated_prompts=2,
    )


def make_rollout(rows: int = 5) -> Rollout:
    """With every field there is, each of another content in each row."""

    def numbers(offset: float) -> torch.Tensor:
        return offset + torch.arange(3.0 * rows).view(rows, 3)

    return Rollout(
        batch=make_batch(rows),
        completion_ids=torch.arange(3 * rows).view(rows, 3),
        mask=torch.arange(3) < torch.tensor([1 + i % 3 for i in range(rows)])[:, None],
        truncated=torch.tensor([i % 2 == 1 for i in range(rows)]),
        values=ActionValues(
            numbers(0.1), numbers(0.2), numbers(0.3), bootstrap=torch.arange(rows) * 1.5
        ),
        returns=numbers(0.4),
        advantages=numbers(0.5),
        logprobs=numbers(0.6),
        state_values=numbers(0.7),
        value_targets=numbers(0.8),
        end_values=numbers(0.9),
        task_scores=torch.arange(rows) * 2.5,
        by_student=torch.tensor([i % 3 == 0 for i in range(rows)]),
    )


def tensors(value) -> dict[str, torch.Tensor]:
    found = {}
    for field in fields(value):
        item = getattr(value, field.name)
        if isinstance(item, torch.Tensor):
            found[field.name] = item
        elif isinstance(item, ActionValues | Batch):
            found |= {f"{field.name}.{name}": tensor for name, tensor in tensors(item).items()}
    return found


# Batch.repeat


def test_repeated_rows_are_adjacent_and_the_first_keeps_its_seed():
    batch = make_batch(2)
    repeated = batch.repeat(3)
    assert [example.id for example in repeated.examples] == ["e0"] * 3 + ["e1"] * 3
    assert repeated.prompt_ids.tolist() == [[0, 1]] * 3 + [[2, 3]] * 3
    assert repeated.prompt_mask.tolist() == [[True, True]] * 3 + [[True, False]] * 3
    assert repeated.seeds == (
        10, derive_seed(10, "generation", 1), derive_seed(10, "generation", 2),
        11, derive_seed(11, "generation", 1), derive_seed(11, "generation", 2),
    )  # fmt: skip
    assert len(repeated) == 6
    assert repeated.num_truncated_prompts == 2  # prompts, however often they are answered


def test_once_is_the_batch_itself():
    batch = make_batch()
    assert batch.repeat(1) is batch


def test_all_seeds_differ_and_more_completions_add_to_fewer():
    batch = make_batch(50)
    many = batch.repeat(8).seeds
    assert len(set(many)) == 400
    few = batch.repeat(3).seeds
    assert [many[8 * i : 8 * i + 3] for i in range(50)] == [
        few[3 * i : 3 * i + 3] for i in range(50)
    ]


def test_a_share_of_the_rows_repeats_as_in_the_whole():
    batch = make_batch(4)
    share = batch.select([1, 3]).repeat(2)
    whole = batch.repeat(2).select([2, 3, 6, 7])
    assert share.examples == whole.examples
    assert share.seeds == whole.seeds
    assert torch.equal(share.prompt_ids, whole.prompt_ids)
    assert torch.equal(share.prompt_mask, whole.prompt_mask)


# Rows of a rollout


def test_every_tensor_of_a_rollout_follows_its_row():
    rollout = make_rollout()
    assert all(getattr(rollout, field.name) is not None for field in fields(rollout))
    rows = [3, 0, 3]
    chosen = rollout.select(rows)
    originals = tensors(rollout)
    assert len(originals) == 17
    for name, tensor in tensors(chosen).items():
        assert torch.equal(tensor, originals[name][rows]), name
    assert [example.id for example in chosen.batch.examples] == ["e3", "e0", "e3"]
    assert chosen.batch.seeds == (13, 10, 13)
    assert chosen.lengths.tolist() == [1, 1, 1]


def test_what_is_not_known_stays_unknown():
    rollout = make_rollout(2)
    plain = Rollout(rollout.batch, rollout.completion_ids, rollout.mask, rollout.truncated)
    for changed in (plain.select([1]), plain.to("meta")):
        assert {f.name for f in fields(changed) if getattr(changed, f.name) is None} == {
            f.name for f in fields(plain) if getattr(plain, f.name) is None
        }
    ended = replace(rollout, values=replace(rollout.values, bootstrap=None))
    assert ended.select([0]).values.bootstrap is None


@pytest.mark.parametrize(
    "value", [make_rollout(), make_rollout().values], ids=["rollout", "values"]
)
def test_all_tensors_move_and_what_is_there_already_is_not_copied(value):
    here, there = tensors(value.to("cpu")), tensors(value.to("meta"))
    assert here.keys() == there.keys() == tensors(value).keys()
    for name, tensor in tensors(value).items():
        assert here[name] is tensor
        assert there[name].is_meta
        assert there[name].shape == tensor.shape


# Rows by length


def ragged(lengths, prompt_lengths) -> Rollout:
    """Rows of these lengths, each with numbers of its own."""
    rows, width, prompt_width = len(lengths), max(lengths), max(prompt_lengths)
    numbers = torch.arange(rows)[:, None]
    return Rollout(
        batch=Batch(
            examples=tuple(Example(f"e{i}", f"prompt {i}") for i in range(rows)),
            prompt_ids=numbers.expand(rows, prompt_width),
            prompt_mask=torch.arange(prompt_width) < torch.tensor(prompt_lengths)[:, None],
            seeds=tuple(range(rows)),
        ),
        completion_ids=100 * numbers + torch.arange(width),
        mask=torch.arange(width) < torch.tensor(lengths)[:, None],
        truncated=numbers[:, 0] % 2 == 0,
    )


rollouts = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 30)), min_size=1, max_size=40).map(
    lambda rows: ragged(*zip(*rows, strict=True))
)


@given(rollouts, st.integers(1, 600))
def test_buckets_hold_every_row_once_and_few_tokens_with_their_padding(rollout, max_tokens):
    buckets = rollout.buckets(max_tokens)
    assert sorted(row for rows in buckets for row in rows) == list(range(len(rollout)))
    for rows in buckets:
        part = rollout.select(rows)
        longest = part.batch.prompt_mask.sum(1).max() + part.lengths.max()
        assert len(rows) == 1 or len(rows) * longest <= max_tokens


@given(rollouts, st.integers(1, 600))
def test_what_is_asked_bucket_by_bucket_is_what_the_whole_says(rollout, max_tokens):
    asked = []

    def tensor(part):
        return part.completion_ids.double() * part.lengths[:, None]

    def record(part):
        asked.append(part.batch.seeds)
        ids = part.completion_ids.float()
        return ActionValues(ids, ids + 1, -ids, part.truncated.float())

    assert torch.equal(rollout.map(tensor, max_tokens), tensor(rollout))
    values = rollout.map(record, max_tokens)
    buckets = rollout.buckets(max_tokens)
    assert sorted(map(sorted, asked)) == sorted(map(sorted, buckets))
    assert isinstance(values, ActionValues)
    for name, value in tensors(record(rollout)).items():
        assert torch.equal(getattr(values, name), value), name


@pytest.mark.parametrize("max_tokens", [1, 40, 10**6])
def test_what_no_bucket_knows_stays_unknown(max_tokens):
    rollout = ragged([3, 1, 7, 7, 2], [2, 9, 4, 4, 1])
    statistics = rollout.map(
        lambda part: TokenStatistics(part.mask.float(), part.completion_ids.float()), max_tokens
    )
    assert torch.equal(statistics.logprobs, rollout.mask.float())
    assert torch.equal(statistics.entropy, rollout.completion_ids.float())
    assert statistics.compared is None
    assert statistics.state_values is None


def test_a_gradient_passes_through_the_buckets():
    rollout = ragged([3, 1, 7], [2, 2, 2])
    weights = torch.ones(3, 7, requires_grad=True)

    def function(part):
        return weights[list(part.batch.seeds)] * part.completion_ids

    rollout.map(function, 10).sum().backward()
    assert torch.equal(weights.grad, rollout.completion_ids.float())
