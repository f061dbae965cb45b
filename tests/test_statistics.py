"""Statistics against slow versions of themselves, and intervals against simulations that know the truth."""

import math

import numpy as np
import pytest
import scipy.linalg

from ditbench import statistics
from ditbench.distances import Moments, Reference, floor, frechet, frechet_delta, influence
from ditbench.statistics import Estimate, delta, detectable, drift, mean, median, speedup


def slow_frechet(x, y):
    """By the textbook, with a matrix square root."""
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = np.real(scipy.linalg.sqrtm(a @ b))
    return np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(a) + np.trace(b) - 2 * np.trace(root)


def gaussian(d, seed=0, decay=5.0):
    """A covariance's Cholesky factor with a spectrum that falls off."""
    r = np.random.default_rng(seed)
    factor = r.standard_normal((d, d)) / np.sqrt(d) * np.exp(-np.arange(d) / decay)
    return np.linalg.cholesky(factor @ factor.T + 1e-3 * np.eye(d))


def reference_of(x):
    return Reference.of(Moments.of(x))


# ---------------------------------------------------------------------------------------------- Fréchet


def test_frechet_agrees_with_a_matrix_square_root():
    r, factor = np.random.default_rng(0), gaussian(24)
    x, y = 0.1 + 1.2 * r.standard_normal((300, 24)) @ factor.T, r.standard_normal((400, 24)) @ factor.T
    assert frechet(x, reference_of(y)) == pytest.approx(slow_frechet(x, y), rel=1e-6)
    assert frechet(Moments.of(x), reference_of(y)) == pytest.approx(frechet(x, reference_of(y)), rel=1e-12)


def test_frechet_of_fewer_samples_than_features_is_the_same_by_both_routes():
    r, factor = np.random.default_rng(1), gaussian(32)
    y = reference_of(r.standard_normal((500, 32)) @ factor.T)
    for n in (2, 5, 31, 32):
        x = 0.2 + r.standard_normal((n, 32)) @ factor.T
        assert frechet(x, y) == pytest.approx(frechet(Moments.of(x), y), rel=1e-6)


def test_frechet_of_two_known_gaussians_is_the_closed_form():
    r = np.random.default_rng(2)
    x = r.standard_normal((200_000, 3)) * [1.0, 2.0, 0.5] + [0.3, 0.0, 0.0]
    y = r.standard_normal((200_000, 3))
    assert frechet(x, reference_of(y)) == pytest.approx(0.09 + 0 + 1 + 0.25, rel=0.02)
    assert frechet(y, reference_of(y)) == pytest.approx(0, abs=1e-9)


def test_moments_of_shards_merge_to_the_moments_of_all_in_any_order():
    r = np.random.default_rng(3)
    x = 3 + r.standard_normal((500, 16))
    parts = [Moments.of(x[i:j]) for i, j in ((0, 7), (7, 200), (200, 500))]
    for order in ((0, 1, 2), (2, 0, 1)):
        merged = parts[order[0]] + parts[order[1]] + parts[order[2]]
        assert merged.n == 500
        np.testing.assert_allclose(merged.mean, x.mean(0), atol=1e-10)
        np.testing.assert_allclose(merged.covariance, np.cov(x, rowvar=False), atol=1e-10)


@pytest.mark.parametrize("n", [20, 60])
def test_influence_is_the_derivative_of_frechet_in_a_samples_weight(n):
    """d/dw of the distance when one sample weighs 1 + w; 20 samples span less than the 24 features."""
    r, factor = np.random.default_rng(4), gaussian(24)
    x, y = 0.1 + r.standard_normal((n, 24)) @ factor.T, reference_of(r.standard_normal((500, 24)) @ factor.T)

    def weighted(weights):
        w = weights / weights.sum()
        centre = w @ x
        scaled = np.sqrt(w * n / (n - 1))[:, None] * (x - centre)
        shared = np.linalg.svd(scaled @ y.root, compute_uv=False).sum()
        return np.sum((centre - y.mean) ** 2) + np.sum(scaled**2) + np.sum(y.root**2) - 2 * shared

    found, step = influence(x, y), 1e-5
    assert weighted(np.ones(n)) == pytest.approx(frechet(x, y), rel=1e-9)
    for i in (0, 3, n - 1):
        bump = np.zeros(n)
        bump[i] = step
        slope = (weighted(1 + bump) - weighted(1 - bump)) / (2 * step)
        assert found[i] / n == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("n", [24, 200])
def test_paired_frechet_delta_covers_its_mean_in_nine_of_ten_simulations(n):
    d, factor = 16, gaussian(16)
    y = reference_of(np.random.default_rng(5).standard_normal((2000, d)) @ factor.T)
    found = []
    for seed in range(300):
        r = np.random.default_rng(100 + seed)
        shared, other = r.standard_normal((2, n, d))
        a = 0.05 + 1.05 * shared @ factor.T
        b = 0.10 + 1.10 * (0.9 * shared + math.sqrt(1 - 0.81) * other) @ factor.T
        found.append(frechet_delta(b, a, y))
    truth = np.mean([e.value for e in found])
    covered = np.mean([e.low <= truth <= e.high for e in found])
    assert covered >= 0.90
    assert np.mean([e.se for e in found]) == pytest.approx(np.std([e.value for e in found]), rel=0.5)


def test_grouped_frechet_delta_counts_prompts_not_samples():
    r, d = np.random.default_rng(6), 8
    y = reference_of(r.standard_normal((500, d)))
    a, b = r.standard_normal((2, 30, d))
    groups = np.repeat(np.arange(30), 4)
    once = frechet_delta(a, b, y)
    many = frechet_delta(np.repeat(a, 4, 0), np.repeat(b, 4, 0), y, groups)
    careless = frechet_delta(np.repeat(a, 4, 0), np.repeat(b, 4, 0), y)
    assert many.n == 30
    assert many.se == pytest.approx(once.se, rel=0.1)
    assert careless.se < 0.6 * once.se


def test_frechet_delta_of_the_same_samples_is_exactly_nothing():
    x = np.random.default_rng(7).standard_normal((10, 4))
    found = frechet_delta(x, x, reference_of(np.random.default_rng(8).standard_normal((50, 4))))
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_frechet_refuses_what_cannot_be_measured():
    y = reference_of(np.random.default_rng(9).standard_normal((50, 4)))
    with pytest.raises(ValueError, match="at least two samples, got 1"):
        frechet(np.ones((1, 4)), y)
    with pytest.raises(ValueError, match="finite"):
        Moments.of([[np.nan, 1.0]])
    with pytest.raises(ValueError, match="cannot be paired"):
        frechet_delta(np.ones((3, 4)), np.ones((4, 4)), y)


def test_the_floor_is_what_fresh_samples_of_the_reference_score_and_falls_with_n():
    factor = gaussian(16)
    y = reference_of(np.random.default_rng(0).standard_normal((5000, 16)) @ factor.T)
    fresh = [frechet(np.random.default_rng(s).standard_normal((40, 16)) @ factor.T, y) for s in range(1, 30)]
    assert floor(40, y) == pytest.approx(np.mean(fresh), rel=0.15)
    assert floor(8, y) > 2 * floor(40, y) > 2 * floor(400, y)


# ------------------------------------------------------------------------------------------------ means


@pytest.mark.parametrize("how", ["bootstrap", "t"])
def test_clustered_delta_covers_the_truth_in_nine_of_ten_simulations(how, monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 400)
    covered, naive = [], []
    for seed in range(200):
        r = np.random.default_rng(seed)
        groups = np.repeat(np.arange(24), 3)
        effect = 0.1 + 0.5 * r.standard_normal(24)[groups] + 0.2 * r.standard_normal(72)
        base = r.standard_normal(72)
        found = delta(base + effect, base, groups, how=how)
        covered.append(found.low <= 0.1 <= found.high)
        careless = delta(base + effect, base, how="t")
        naive.append(careless.low <= 0.1 <= careless.high)
    assert np.mean(covered) >= 0.90
    assert np.mean(naive) < 0.85  # samples of one prompt are not independent


def test_bootstrap_interval_of_a_skewed_mean_leans_to_the_long_side():
    x = np.random.default_rng(0).exponential(size=40)
    found = mean(x)
    assert found.value == pytest.approx(x.mean())
    assert found.high - found.value > found.value - found.low > 0
    assert found.se == pytest.approx(x.std(ddof=1) / math.sqrt(40))
    assert mean(x) == found != mean(x, seed=1)


def test_scores_that_never_differ_do_not_prove_a_certainty():
    perfect = mean(np.ones(64), bounds=(0, 1))
    assert (perfect.value, perfect.high) == (1, 1)
    assert perfect.low == pytest.approx(0.05 ** (1 / 64))
    same = delta(np.ones(64), np.ones(64), bounds=(0, 1))
    assert same.low == pytest.approx(-(1 - 0.05 ** (1 / 64))) and same.high == -same.low


def test_few_groups_fall_back_to_student_and_one_has_no_interval():
    x = [1.0, 2.0, 4.0]
    found = mean(x)
    assert found == mean(x, how="t")
    assert found.high - found.value == pytest.approx(4.302653 * np.std(x, ddof=1) / math.sqrt(3), rel=1e-5)
    assert mean(x, [5, 5, 5]) == Estimate(value=pytest.approx(7 / 3), low=None, high=None, n=1, se=None)


def test_means_refuse_what_is_no_row_of_numbers():
    with pytest.raises(ValueError, match="at least one value"):
        mean([])
    with pytest.raises(ValueError, match="1 of 2 values are not finite"):
        mean([1.0, float("nan")])
    with pytest.raises(ValueError, match="3 values cannot be paired with 2"):
        delta([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="2 values and 3 group labels"):
        mean([1, 2], [1, 2, 3])


def test_median_interval_covers_in_nineteen_of_twenty_and_needs_no_shape():
    r = np.random.default_rng(0)
    found = [median(r.exponential(size=15)) for _ in range(600)]
    assert np.mean([e.low <= math.log(2) <= e.high for e in found]) >= 0.93
    assert median([3.0, 1.0, 2.0]) == Estimate(value=2, low=1, high=3, n=3, se=None)
    assert median([3.0]).low is None


def test_detectable_difference_is_two_point_eight_standard_errors():
    assert detectable(0.5) == pytest.approx(1.4008, rel=1e-4)


# ------------------------------------------------------------------------------------------------ times


def timed(rounds, batches, per_sample, size=4, rng=None, noise=0.0, weather=None):
    """Raw timing entries; `weather` slows whole rounds."""
    found = []
    for r in range(rounds):
        for b in range(batches):
            jitter = math.exp(noise * rng.standard_normal()) if rng else 1.0
            seconds = size * per_sample * jitter * (weather[r] if weather is not None else 1.0)
            found.append({"round": r, "batch": b, "size": size, "call_s": seconds})
    return found


def test_ratio_of_times_cancels_weather_that_slows_a_whole_round():
    weather = [1.0, 3.0, 0.7]
    found = speedup(timed(3, 2, 2.0, weather=weather), timed(3, 2, 1.0, size=8, weather=weather))
    assert found.estimate.value == pytest.approx(2.0)
    assert found.estimate.high - found.estimate.low < 1e-9
    assert (found.unit, found.estimate.n) == ("rounds", 3)


@pytest.mark.parametrize("rounds", [1, 2, 3, 5])
def test_ratio_interval_covers_the_truth_in_nine_of_ten_simulations(rounds):
    covered = []
    for seed in range(300):
        r = np.random.default_rng(seed)
        weather = np.exp(0.3 * r.standard_normal(rounds))
        told = dict(rng=r, noise=0.1, weather=weather)
        found = speedup(timed(rounds, 4, 1.5, **told), timed(rounds, 4, 1.0, **told))
        assert found.unit == ("rounds" if rounds >= 3 else "batches within rounds")
        covered.append(found.estimate.low <= 1.5 <= found.estimate.high)
    assert np.mean(covered) >= 0.90


def test_only_batches_that_both_timed_are_compared():
    slow_tail = [*timed(1, 1, 2.0), {"round": 0, "batch": 1, "size": 4, "call_s": 400.0}]
    found = speedup(slow_tail, timed(1, 1, 1.0))
    assert found.estimate == Estimate(value=pytest.approx(2), low=None, high=None, n=1, se=None)
    assert found.unit == ""
    assert speedup(slow_tail, []) is None


def test_drift_compares_rounds_on_the_batches_all_of_them_timed():
    timing = [*timed(2, 1, 1.0, weather=[1.0, 1.2]), {"round": 0, "batch": 1, "size": 4, "call_s": 99.0}]
    assert drift(timing) == pytest.approx(0.2)
    assert drift(timed(1, 3, 1.0)) is None
