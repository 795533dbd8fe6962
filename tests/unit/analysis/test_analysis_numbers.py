import csv
import io
import json
import math

import numpy as np
import pytest
import torch

from brim.analysis.choice import choose
from brim.analysis.gradients import (
    GradientMoments,
    GradientSketch,
    PromptGradients,
    gradient_moments,
)
from brim.analysis.sampling import Estimate, Resamples, Samples, pooled_variance
from brim.analysis.subjects import AnalyzedModel, find_students
from brim.analysis.theorem1 import measure_theorem1
from brim.errors import ConfigError
from brim.examples import Example
from brim.types import ActionValues, Batch, Rollout

# The sketch.


def test_sketch_keeps_inner_products_on_average_and_within_its_bound():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 300, generator=generator)
    width, draws = 64, 400
    products, norms = [], []
    for seed in range(draws):
        sketch = GradientSketch([100, 200], num_dimensions=width, seed=seed)
        sx, sy = (sketch([v[:100], v[100:].reshape(10, 20)]).sum(0) for v in (x, y))
        products.append(float(sx @ sy))
        norms.append(float(sx @ sx))
    exact, squared = float(x @ y), float(x @ x)
    spread = float((x @ x) * (y @ y)) ** 0.5 * math.sqrt(2 / width)
    assert np.mean(products) == pytest.approx(exact, abs=4 * spread / math.sqrt(draws))
    assert np.mean(norms) == pytest.approx(squared, rel=4 * math.sqrt(2 / width / draws))
    assert np.std(norms) <= 1.15 * math.sqrt(2 / width) * squared


def test_sketch_is_linear_the_same_for_a_seed_and_takes_missing_gradients_as_zero():
    x, y = torch.randn(2, 50, generator=torch.Generator().manual_seed(1))
    sketch = GradientSketch([50, 7], num_dimensions=16, seed=3)
    again = GradientSketch([50, 7], num_dimensions=16, seed=3)
    torch.testing.assert_close(
        sketch([2 * x - y, None]), 2 * again([x, None]) - again([y, torch.zeros(7)]),
        atol=1e-4, rtol=0,
    )  # fmt: skip
    other = GradientSketch([50, 7], num_dimensions=16, seed=4)
    assert not torch.equal(sketch([x, None]), other([x, None]))


# Moments of gradients: contributions of a known distribution.


def draw_gradients(rng, *, num_prompts, num_rounds, means, between, within):
    """(E, P, 2, D) halves: u = mean + between · prompt + within · round, standard normal each."""
    dimensions = means.shape[1]
    prompt = between * rng.standard_normal((num_prompts, 1, dimensions))
    rounds = within * rng.standard_normal((num_prompts, 2, num_rounds // 2, dimensions))
    noise = prompt + rounds.mean(axis=2)
    return PromptGradients({"whole": means[:, None, None] + noise[None]}, num_rounds)


def test_moments_are_unbiased_for_signal_noise_and_bias():
    rng = np.random.default_rng(0)
    dimensions = 5
    means = np.zeros((2, dimensions))
    means[0, 0], means[1, :2] = 0.5, (0.25, 0.25)
    found = []
    for _ in range(3000):
        gradients = draw_gradients(
            rng, num_prompts=6, num_rounds=4, means=means, between=0.7, within=1.5
        )
        (one, two) = gradient_moments(gradients, "whole", np.ones((1, 6)))
        found.append(
            [float(x[0]) for x in (one.squared_norm, one.variance, one.variance_within,
                                   two.squared_norm, two.product)]
        )  # fmt: skip
        assert one.squared_bias[0] == 0
        assert two.squared_bias[0] == pytest.approx(0.125)  # the same noise in both
    mean = np.mean(found, axis=0)
    error = np.std(found, axis=0) / math.sqrt(len(found))
    within = dimensions * 1.5**2
    expected = [0.25, dimensions * 0.7**2 + within, within, 0.125, 0.125]
    assert np.all(np.abs(mean - expected) < 4 * error)
    assert np.min(found, axis=0)[0] < 0  # unbiased, and so negative now and then


def test_moments_of_resamples_leave_out_pairs_of_a_prompt_with_itself():
    rng = np.random.default_rng(1)
    gradients = draw_gradients(
        rng, num_prompts=4, num_rounds=2, means=np.zeros((1, 3)), between=1, within=1
    )
    counts = np.array([[2.0, 1, 1, 0]])
    mean = gradients.sketches["whole"][0].mean(axis=1)
    rows = np.repeat(np.arange(4), counts[0].astype(int))
    pairs = [mean[i] @ mean[j] for i in rows for j in rows if i != j]
    (moments,) = gradient_moments(gradients, "whole", counts)
    assert moments.squared_norm[0] == pytest.approx(np.mean(pairs))


# Which K.


def moments_of(norm, variance, product, reference, resamples=200, noise=1e-3):
    """Moments whose resamples scatter by `noise`, relatively; the same scatter for all."""
    shake = 1 + noise * np.random.default_rng(0).standard_normal(1 + resamples)
    shake[0] = 1
    bias = norm - 2 * product + reference
    return GradientMoments(
        *(value * shake for value in (norm, variance)), 0 * shake,
        *(value * shake for value in (product, bias, reference)),
    )  # fmt: skip


RESAMPLES = Resamples.draw(10, num_resamples=200)


def test_variance_that_dominates_asks_for_a_large_k():
    # The same direction, a quarter of the variance.
    moments = [moments_of(1, 1000, 1, 1), moments_of(1, 500, 1, 1), moments_of(1, 250, 1, 1)]
    choice = choose([1, 2, 4], moments, RESAMPLES, num_prompts=10)
    assert (choice.value, choice.best, choice.not_told_apart) == (4, 4, ())
    assert choice.shares[4] == 1
    assert "K = 4" in choice.text


def test_bias_that_dominates_asks_for_k_1():
    # Hardly any noise, and other directions: cosines 1, 0.8, 0.5.
    moments = [moments_of(1, 1, 1, 1), moments_of(1, 0.1, 0.8, 1), moments_of(1, 0.1, 0.5, 1)]
    choice = choose([1, 2, 4], moments, RESAMPLES, num_prompts=100)
    assert (choice.value, choice.by_mse) == (1, 1)


def test_a_larger_batch_asks_for_a_smaller_k():
    moments = [moments_of(1, 10, 1, 1), moments_of(1, 1, 0.8, 1)]
    choice = choose([1, 4], moments, RESAMPLES, num_prompts=1)
    assert choice.value == 4
    assert list(choice.by_batch.values()) == sorted(choice.by_batch.values(), reverse=True)
    assert choice.by_batch[64] == 1


def test_shrinking_a_gradient_is_no_merit():
    # At K = 4 everything is a tenth: the plain error falls, the direction is as noisy as before.
    moments = [moments_of(1, 1000, 1, 1), moments_of(0.01, 10, 0.1, 1)]
    choice = choose([1, 4], moments, RESAMPLES, num_prompts=10)
    assert (choice.value, choice.by_mse) == (1, 4)


def test_noise_that_hides_the_gradient_or_the_difference_is_said():
    hidden = [moments_of(1, 100, 1, 1, noise=2), moments_of(1, 10, 1, 1, noise=2)]
    choice = choose([1, 4], hidden, RESAMPLES, num_prompts=10)
    assert choice.value is None
    assert choice.text.startswith("Cannot say")
    rng = np.random.default_rng(0)
    shaken = moments_of(1, 100, 1, 1)
    wobble = 1 + 0.5 * rng.standard_normal(201)
    wobble[0] = 1.02
    other = GradientMoments(
        shaken.squared_norm, shaken.variance, shaken.variance_within,
        shaken.product * wobble, shaken.squared_bias, shaken.reference,
    )  # fmt: skip
    choice = choose([1, 4], [shaken, other], RESAMPLES, num_prompts=10)
    assert (choice.value, choice.best, choice.not_told_apart) == (None, 4, (1,))
    assert choice.text.startswith("Cannot tell them apart")


def test_equal_estimators_are_the_smallest_k():
    moments = [moments_of(1, 100, 1, 1), moments_of(1, 100, 1, 1)]
    choice = choose([1, 16], moments, RESAMPLES, num_prompts=10, note=" Mind the tail.")
    assert (choice.value, choice.not_told_apart) == (1, (16,))
    assert choice.text.endswith(" Mind the tail.")
    json.dumps(choice.as_dict(), allow_nan=False)


@pytest.mark.parametrize(("knob", "symbol"), [("k", "K"), ("lambda", "λ")])
def test_what_is_chosen_is_called_by_its_name_and_the_first_has_no_bias(knob, symbol):
    moments = [moments_of(1, 1000, 1, 1), moments_of(1, 250, 1, 1), moments_of(1, 250, 1, 1)]
    choice = choose([1, 0.7, 0], moments, RESAMPLES, num_prompts=10, knob=knob)
    assert (choice.value, choice.as_dict()[knob]) == (0.7, 0.7)  # of equal ones the least bias
    assert choice.text.startswith(f"{symbol} = 0.7: ")
    assert choice.as_dict()["shares"].keys() == {"1", "0.7", "0"}


def test_values_begin_with_1():
    with pytest.raises(ValueError, match="begin with 1"):
        choose([2, 4], [], RESAMPLES, num_prompts=1)


def choices_of(means, noise, *, num_prompts, trials=40, dimensions=30):
    """What is recommended of K = 1, 2, 4 in trials of their own, at B = P."""
    rng = np.random.default_rng(0)
    found = []
    for seed in range(trials):
        common, own = rng.standard_normal((2, 3, num_prompts, 2, dimensions))
        halves = means[:, None, None] + noise[:, None, None, None] * (0.9 * common[:1] + 0.44 * own)
        resamples = Resamples.draw(num_prompts, num_resamples=200, seed=seed)
        moments = gradient_moments(PromptGradients({"whole": halves}, 2), "whole", resamples.counts)
        found.append(choose([1, 2, 4], moments, resamples, num_prompts=num_prompts).value)
    return found


def test_noise_alone_recommends_no_larger_k_and_no_k_where_there_is_no_gradient():
    means = np.zeros((3, 30))
    assert sum(k is not None for k in choices_of(means, np.ones(3), num_prompts=50)) <= 3
    means[:, 0] = 1.0  # all alike, and a batch's SNR of 3
    found = choices_of(means, np.full(3, 1.8), num_prompts=50)
    assert sum(k in (2, 4) for k in found) <= 3
    assert found.count(1) + found.count(None) >= 37


def test_the_best_of_three_gradients_is_found():
    # The same direction with less noise, K = 4; and with a wrong one, K = 2.
    means = np.zeros((3, 30))
    means[:, 0], means[1, 1] = 1.0, 3.0
    found = choices_of(means, np.array([2.0, 0.6, 0.6]), num_prompts=50)
    assert found.count(4) >= 30  # by E g_1's own norm alone it would be a handful
    assert 2 not in found


# Numbers with intervals.


def test_undefined_numbers_are_null_and_printed_as_such():
    assert Estimate(1.0, math.nan, math.nan).as_dict() == {"value": 1.0, "low": None, "high": None}
    assert f"{Estimate(math.nan, 0, 1)}" == "—"
    assert f"{Estimate(0.5, math.nan, 1):.1f}" == "0.5 [—]"
    assert f"{Estimate(0.5, 0.25, 1):.2f}" == "0.50 [0.25, 1.00]"


def test_cosines_are_cosines_and_what_noise_took_out_is_marked():
    marked = without = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        # Of the same mean, or of none.
        halves = (seed % 2) * np.eye(1, 4) + 0.7 * rng.standard_normal((2, 12, 2, 4))
        gradients = PromptGradients({"whole": halves}, 2)
        resamples = Resamples.draw(12, num_resamples=50, seed=seed)
        for found in gradient_moments(gradients, "whole", resamples.counts):
            cosines = found.describe(resamples, 4)
            for name in ("gradient_cosine", "gradient_alignment"):
                cosine = cosines[name]
                ends = np.array([cosine.value, cosine.low, cosine.high])
                assert (np.isnan(ends) | (np.abs(ends) <= 1)).all()
                assert cosine.outside == ("†" in f"{cosine}") == ("outside" in cosine.as_dict())
                marked += cosine.outside
            # Two negative estimates are no length together.
            known = cosines["gradient_squared_norm"].value > 0
            assert known or math.isnan(cosines["gradient_cosine"].value)
            without += not known
    assert marked
    assert without
    assert not Estimate(1 + 1e-12, 0.5, 1.5).within(-1, 1).outside
    assert Estimate(-1.2, -1.5, -0.9).within(-1, 1) == Estimate(-1.0, -1.0, -0.9, outside=True)


def test_intervals_of_a_mean_are_those_of_the_metrics():
    from brim.metrics import mean_score

    values = np.random.default_rng(0).standard_normal(40)
    score = mean_score("mean", values, seed=5)
    estimate = Resamples.draw(40, seed=5).mean(values)
    found = [estimate.value, estimate.low, estimate.high]
    assert found == pytest.approx([score.value, score.low, score.high])


def test_pooled_variance_is_that_of_all_tokens():
    rng = np.random.default_rng(0)
    groups = [rng.standard_normal(size) for size in (3, 5, 1)]
    sums = (np.array([f(group) for group in groups]) for f in (len, np.sum, lambda x: (x**2).sum()))
    assert pooled_variance(np.ones(3), *sums) == pytest.approx(np.concatenate(groups).var())


# Theorem 1.


def synthetic(taken, best, lengths, num_prompts):
    """Samples of one completion a round and prompt with these numbers."""
    rows, width = taken.shape
    examples = tuple(Example(f"{i}", "prompt") for i in range(num_prompts))
    batch = Batch(
        examples * (rows // num_prompts),
        torch.zeros(rows, 1, dtype=torch.long),
        torch.ones(rows, 1, dtype=torch.bool),
        tuple(range(rows)),
    )
    mask = torch.arange(width) < lengths[:, None]
    ids = torch.zeros(rows, width, dtype=torch.long)
    values = ActionValues(taken, best, torch.zeros_like(taken))
    rollout = Rollout(batch, ids, mask, torch.zeros(rows, dtype=torch.bool), values=values)
    return Samples(rollout, rows // num_prompts, num_prompts, 1)


def theorem1_of(taken, best, lengths, num_prompts=200, ks=(1, 2, 4, 8)):
    resamples = Resamples.draw(num_prompts, num_resamples=200)
    samples = synthetic(taken, best, lengths, num_prompts)
    return measure_theorem1(AnalyzedModel("it"), samples, resamples, ks)


def lengths_of(rows, generator):
    return torch.randint(1, 17, (rows,), generator=generator)


def test_steps_that_are_independent_follow_the_law():
    generator = torch.Generator().manual_seed(0)
    taken, best = torch.randn(2, 4000, 16, generator=generator)
    found = theorem1_of(2 * taken, 0.5 * best, lengths_of(4000, generator))
    for fit in found.fits:
        assert fit.a.value == pytest.approx(4.0, rel=0.1)
        if fit.k < 8:
            assert fit.b.value == pytest.approx(4.25, rel=0.1)
            assert fit.refined_r2.value > 0.98
        assert fit.ratio.value == pytest.approx(1, abs=0.05)
    assert found.constants["law_constant"].value == pytest.approx(4.25, rel=0.03)
    assert found.verdict.startswith("No departure")


def test_steps_that_share_something_are_flagged():
    generator = torch.Generator().manual_seed(1)
    taken, best = torch.randn(2, 4000, 16, generator=generator)
    shared = torch.randn(4000, 1, generator=generator)
    found = theorem1_of(taken + shared, best, lengths_of(4000, generator))
    # Var (taken + shared - best) = 3, of which the shared third is correlated at all distances.
    for row in found.correlations[:5]:
        assert row["regret"].value == pytest.approx(1 / 3, abs=0.06)
    assert found.verdict.startswith("The iid assumption does not hold")
    # G sums m correlated regrets, whose variance grows with m²: K saves more than the law says.
    assert all(fit.ratio.high < 1 for fit in found.fits[1:])
    assert found.fits[0].b.value > 2 * 3


def test_taken_and_best_of_one_step_move_together_and_the_law_overstates():
    generator = torch.Generator().manual_seed(2)
    level, noise = torch.randn(2, 4000, 16, generator=generator)
    found = theorem1_of(3 * level, 3 * level + noise.abs(), lengths_of(4000, generator))
    assert found.constants["correlation_taken_best"].value > 0.95
    # A block adds a regret, whose variance is that of |noise|, not 9 + 9.
    assert found.fits[0].b.value == pytest.approx(1 - 2 / math.pi, abs=0.1)
    assert found.fits[0].c.value < 0.5 * found.constants["law_constant"].value
    assert "taken and best of a step are correlated" in found.verdict


def test_positions_and_lengths_are_counted_once():
    generator = torch.Generator().manual_seed(3)
    taken, best = torch.randn(2, 400, 16, generator=generator)
    lengths = lengths_of(400, generator)
    found = theorem1_of(taken, best, lengths)
    for row in found.positions:
        present = lengths >= row["position"]
        regrets = (best - taken)[present, row["position"] - 1]
        assert row["tokens"] == int(present.sum())
        assert row["mean_regret"] == pytest.approx(float(regrets.mean()), abs=1e-5)
    for row in found.lengths:
        assert row["tokens"] == int((lengths >= row["remaining"]).sum())
    json.dumps(found.as_dict(), allow_nan=False)


# Students.


def make_model_folder(path):
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")


def test_students_are_found_in_folders_in_the_order_of_their_numbers(tmp_path):
    for step in (50, 100, 9):
        make_model_folder(tmp_path / "stage" / "checkpoints" / f"step-{step}")
    found = find_students([tmp_path / "stage" / "checkpoints"])
    assert [subject.label for subject in found] == ["step-9", "step-50", "step-100"]
    make_model_folder(tmp_path / "other" / "checkpoints" / "step-9")
    found = find_students([tmp_path / "stage" / "checkpoints", tmp_path / "other" / "checkpoints"])
    labels = [subject.label for subject in found]
    assert labels == ["other/step-9", "stage/step-9", "stage/step-50", "stage/step-100"]
    assert find_students([])[0].path is None
    with pytest.raises(ConfigError, match="holds no model"):
        find_students([tmp_path / "nothing"])


# Files.


def test_files_of_theorem1_are_the_same_bytes_again_and_tidy(tmp_path):
    from brim.analysis import Theorem1Analysis, write_analysis

    generator = torch.Generator().manual_seed(4)
    taken, best = torch.randn(2, 400, 16, generator=generator)
    student = theorem1_of(taken, best, lengths_of(400, generator))
    analysis = Theorem1Analysis("runs/$a_b$", "test", 0, 200, 2, "mean", 0.95, 200, (student,))
    first = {path.name: path.read_bytes() for path in write_analysis(analysis, tmp_path / "a")}
    again = {path.name: path.read_bytes() for path in write_analysis(analysis, tmp_path / "b")}
    assert first == again
    assert set(first) == {f"theorem1.{ending}" for ending in ("md", "json", "csv", "png", "svg")}
    rows = list(csv.DictReader(io.StringIO(first["theorem1.csv"].decode())))
    variances = [row for row in rows if row["quantity"] == "variance" and row["k"] == "4"]
    written = json.loads(first["theorem1.json"])["students"][0]["lengths"]
    assert [float(row["value"]) for row in variances] == [x["variance"]["4"] for x in written]
    assert "a\\_b" in first["theorem1.md"].decode()
