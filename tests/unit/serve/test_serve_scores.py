"""The numbers of `/v1/score` are the model's own, whatever else is asked at the same time."""

from dataclasses import replace

import pytest
import torch
from tiny import written
from torch import Tensor
from torch.testing import assert_close

from brim.models import LanguageModel
from brim.models.encoding import pad
from brim.serve.batching import Row, Worker
from brim.serve.scoring import Score, make_batch
from brim.types import ActionValues, Rollout

FAMILIES = ("t5", "bart", "llama")
each_family = pytest.mark.parametrize("family", FAMILIES)
# What of a row's numbers each centering subtracts.
CENTERS = {"none": None, "mean": "mean", "max": "best", "logsumexp": "logsumexp"}


def ids_of(rollout: Rollout) -> tuple[list[list[int]], list[list[int]]]:
    batch = rollout.batch
    return (
        listed(batch.prompt_ids, batch.prompt_mask),
        listed(rollout.completion_ids, rollout.mask),
    )


def listed(ids: Tensor, mask: Tensor) -> list[list[int]]:
    return [row[kept].tolist() for row, kept in zip(ids, mask, strict=True)]


def action_values(rows: list[dict], rollout: Rollout, centering: str) -> ActionValues:
    """What a client makes of an answer."""
    columns = {name: pad([row[name] for row in rows], 0.0, "right")[0] for name in
               ("taken", "best", "logsumexp", "mean")}  # fmt: skip
    center = CENTERS[centering]
    subtract = columns[center] if center else 0.0
    after = torch.tensor([r["after"]["best"] - (r["after"][center] if center else 0) for r in rows])
    return ActionValues(
        columns["taken"] - subtract,
        columns["best"] - subtract,
        columns["taken"] - columns["logsumexp"],
        after.where(rollout.truncated, 0.0),
    )


@each_family
@pytest.mark.parametrize("centering", CENTERS)
def test_every_centering_is_that_of_the_model(servers, family, centering):
    model, rollout = written(family)
    assert rollout.truncated.any()
    rows = servers(family).score(*ids_of(rollout), bootstrap=True)
    assert [len(row["taken"]) for row in rows] == rollout.lengths.tolist()
    found = action_values(rows, rollout, centering)
    wanted = model.action_values(rollout, centering=centering, bootstrap=True)
    for name in ("q_taken", "q_max", "logprobs", "bootstrap"):
        assert_close(getattr(found, name), getattr(wanted, name), atol=2e-5, rtol=1e-5)


@each_family
def test_half_precision_is_that_of_the_model(family):
    model, rollout = written(family)
    model = model.bfloat16()
    numbers = Score().answer(model, rows_of(rollout))
    wanted = model.action_values(rollout)
    for one, taken, best, mask in zip(
        numbers, wanted.q_taken, wanted.q_max, rollout.mask, strict=True
    ):
        assert_close(one.values[:, :2], torch.stack([taken[mask], best[mask]], dim=1))


@each_family
def test_excluded_tokens_are_no_actions(servers, family):
    model, rollout = written(family)
    prompts, completions = ids_of(rollout)
    free = model.action_values(rollout)
    used = {token for row in completions for token in row}
    excluded = [token for token in range(3, 40) if token not in used]
    rows = servers(family).score(prompts, completions, excluded=[*excluded, 10**9], bootstrap=True)
    model.exclude(excluded)  # as generation settings say it
    for centering in CENTERS:
        found = action_values(rows, rollout, centering)
        wanted = model.action_values(rollout, centering=centering, bootstrap=True)
        assert_close(found.q_max, wanted.q_max, atol=2e-5, rtol=1e-5)
        assert_close(found.bootstrap, wanted.bootstrap, atol=2e-5, rtol=1e-5)
    assert (wanted.q_max <= free.q_max + 1e-5).all()
    assert not torch.allclose(model.action_values(rollout).q_max, free.q_max)


def test_a_view_without_tokens_leaves_the_model_as_it_was():
    model, rollout = written("t5")
    before, excluded = model.action_values(rollout), set(model.excluded_rows)
    view = model.without([5, 6, 10**6])
    assert set(view.excluded_rows) == excluded | {5, 6}
    assert set(model.excluded_rows) == excluded
    assert all(a is b for a, b in zip(view.parameters(), model.parameters(), strict=True))
    assert torch.equal(model.action_values(rollout).q_max, before.q_max)


def test_only_what_is_asked_is_answered(servers):
    rows = servers("llama").score([[3, 4]], [[5, 6]], values=["best"])
    assert [row.keys() for row in rows] == [{"best", "after"}]
    assert rows[0]["after"] is None


def test_numbers_come_with_all_of_their_digits(servers):
    model, rollout = written("llama")
    rows = servers("llama").score(*ids_of(rollout), bootstrap=True)
    taken = pad([row["taken"] for row in rows], 0.0, "right")[0]
    numbers = Score(after=True).answer(model, rows_of(rollout))
    assert torch.equal(taken[rollout.mask], torch.cat([one.values[:-1, 0] for one in numbers]))


def rows_of(rollout: Rollout) -> list[Row]:
    return [Row(*pair) for pair in zip(*ids_of(rollout), strict=True)]


def many_rows(family: str) -> tuple[LanguageModel, list[Row]]:
    model, rollout = written(family, 8, (3, 1, 6, 2, 4, 9, 5, 2, 7, 8, 3, 1))
    return model, rows_of(rollout)


@each_family
def test_requests_share_passes_and_get_the_same_numbers(family):
    model, rows = many_rows(family)
    question = Score(after=True)
    worker = Worker(model, batch_tokens=128, max_jobs=99)
    # Before it starts, so that all of them wait.
    futures = [worker.submit(question, [row]) for row in rows]
    with worker:
        found = [future.result(60)[0].values for future in futures]
    assert worker.num_passes < len(rows) / 2
    for row, values in zip(rows, found, strict=True):
        (alone,) = question.answer(model, [row])
        assert_close(values, alone.values, atol=2e-5, rtol=1e-5)


def test_a_request_larger_than_a_pass_is_answered_in_order():
    model, rows = many_rows("llama")
    with Worker(model, batch_tokens=20, max_jobs=1) as worker:
        found = worker.submit(Score(), rows).result(60)
        assert worker.num_passes > 3
    assert [len(one.values) for one in found] == [len(row.completion) for row in rows]
    for row, one in zip(rows, found, strict=True):
        assert_close(one.values, Score().answer(model, [row])[0].values, atol=2e-5, rtol=1e-5)


def test_different_questions_keep_their_own_exclusions():
    model, rows = many_rows("t5")
    best = int(Score(top=1).answer(model, rows[:1])[0].top_ids[0, 0])
    row = replace(rows[0], completion=[7 if best != 7 else 8])
    worker = Worker(model, batch_tokens=4096, max_jobs=9)
    questions = [Score(), Score(frozenset([best])), Score(), Score(frozenset([best]))]
    futures = [worker.submit(question, [row]) for question in questions]
    with worker:
        values = [future.result(60)[0].values[0, 1] for future in futures]
    assert worker.num_passes == 2
    assert values[0] == values[2] > values[1] == values[3]


def test_rows_that_are_too_long_beside_each_other_pass_apart():
    model, _ = written("llama")  # of 64 positions
    rows = [Row([3] * 60, [4] * 4), Row([3] * 4, [4] * 60), Row([5] * 60, [6] * 5)]
    worker = Worker(model, batch_tokens=4096, max_jobs=9)
    futures = [worker.submit(Score(), [row]) for row in rows]
    with worker:
        assert [len(future.result(60)[0].values) for future in futures] == [4, 60, 5]
    assert worker.num_passes == 2


def test_prompts_of_several_completions_are_read_once():
    model, _ = written("t5")
    batch = make_batch(model, [Row([3, 4], [5]), Row([3, 4], [6]), Row([4], [6])])
    first, second, other = batch.examples
    assert first is second is not other
