"""Statistics against slow versions of themselves, and intervals against simulations that know the
truth."""

import math

import numpy as np
import pytest
import scipy.linalg

from ditbench.statistics.estimates import Estimate, delta, detectable, mean, two_sided_p
from ditbench.statistics.frechet import Reference, floor, frechet, frechet_delta, influence
from ditbench.statistics.moments import Moments
from ditbench.statistics.times import drift, seconds, speedup


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


# ----------------------------------------------------------------------------------------------
# Fréchet


def test_frechet_agrees_with_a_matrix_square_root():
    r, factor = np.random.default_rng(0), gaussian(24)
    x, y = (
        0.1 + 1.2 * r.standard_normal((300, 24)) @ factor.T,
        r.standard_normal((400, 24)) @ factor.T,
    )
    assert frechet(x, reference_of(y)) == pytest.approx(slow_frechet(x, y), rel=1e-6)
    assert frechet(Moments.of(x), reference_of(y)) == pytest.approx(
        frechet(x, reference_of(y)), rel=1e-12
    )


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
    """d/dw of the distance when one sample weighs 1 + w; 20 samples span less than the 24
    features."""
    r, factor = np.random.default_rng(4), gaussian(24)
    x, y = (
        0.1 + r.standard_normal((n, 24)) @ factor.T,
        reference_of(r.standard_normal((500, 24)) @ factor.T),
    )

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
def test_paired_frechet_delta_covers_the_true_difference_and_has_no_bias(n):
    d, factor = 16, gaussian(16)
    y = reference_of(np.random.default_rng(5).standard_normal((2000, d)) @ factor.T)
    found = []
    for seed in range(300):
        r = np.random.default_rng(100 + seed)
        shared, other = r.standard_normal((2, n, d))
        a = 0.05 + 1.05 * shared @ factor.T
        b = 0.10 + 1.10 * (0.9 * shared + math.sqrt(1 - 0.81) * other) @ factor.T
        found.append(frechet_delta(b, a, y))
    shared, other = np.random.default_rng(6).standard_normal((2, 200_000, d))
    a = 0.05 + 1.05 * shared @ factor.T
    truth = frechet(
        0.10 + 1.10 * (0.9 * shared + math.sqrt(1 - 0.81) * other) @ factor.T, y
    ) - frechet(a, y)
    values = np.array([e.value for e in found])
    assert np.mean([e.low <= truth <= e.high for e in found]) >= 0.92
    assert abs(values.mean() - truth) < 4 * values.std() / math.sqrt(len(values)) + 0.01 * truth
    assert np.mean([e.se for e in found]) == pytest.approx(values.std(), rel=0.5)


def test_a_variant_that_is_worse_but_varies_less_is_not_called_better_at_small_n():
    """Truly worse by 9 to 34, read as -39 to -126 at 16 samples of 64 features: such an n has no
    difference, and 80 the right sign."""
    d, factor = 64, gaussian(64, decay=20.0)
    y = reference_of(np.random.default_rng(5).standard_normal((4000, d)) @ factor.T)

    def pair(n, seed):
        r = np.random.default_rng(seed)
        shared, other = r.standard_normal((2, n, d)) @ factor.T
        return shared, 0.9 * (0.95 * shared + math.sqrt(1 - 0.95**2) * other) + 0.2 * factor.sum(1)

    base, variant = pair(100_000, 0)
    truth = frechet(variant, y) - frechet(base, y)
    assert truth > 0
    plain = [frechet(v, y) - frechet(b, y) for b, v in (pair(16, s) for s in range(1, 31))]
    assert np.mean(plain) < 0  # the sign that the plain difference has
    with pytest.raises(
        ValueError, match=r"1\.25 times as many samples as their 64 features, got 64"
    ):
        frechet_delta(*reversed(pair(64, 1)), y)
    found = [frechet_delta(v, b, y) for b, v in (pair(80, s) for s in range(1, 31))]
    assert not any(e.high < 0 for e in found)
    values = np.array([e.value for e in found])
    assert abs(values.mean() - truth) < 4 * values.std() / math.sqrt(len(values))


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
    """And yet its interval is no point: units that were not seen may differ, by as much as those
    seen differ among themselves."""
    x = np.random.default_rng(7).standard_normal((10, 4))
    y = reference_of(np.random.default_rng(8).standard_normal((50, 4)))
    found = frechet_delta(x, x, y)
    reach = (1 - 0.05 ** (1 / 10)) * np.ptp(influence(x, y))
    assert found.value == found.se == 0 and (found.low, found.high) == pytest.approx(
        (-reach, reach)
    )


def test_frechet_refuses_what_cannot_be_measured():
    y = reference_of(np.random.default_rng(9).standard_normal((50, 4)))
    with pytest.raises(ValueError, match="at least two samples, got 1"):
        frechet(np.ones((1, 4)), y)
    with pytest.raises(ValueError, match="finite"):
        Moments.of([[np.nan, 1.0]])
    x = np.random.default_rng(10).standard_normal((64, 4))
    with pytest.raises(ValueError, match="prompts of more equal numbers of samples"):
        frechet_delta(x, x + 1, y, np.minimum(np.arange(64), 20))
    with pytest.raises(ValueError, match="cannot be paired"):
        frechet_delta(np.ones((3, 4)), np.ones((4, 4)), y)


def test_the_floor_is_what_fresh_samples_of_the_reference_score_and_falls_with_n():
    factor = gaussian(16)
    y = reference_of(np.random.default_rng(0).standard_normal((5000, 16)) @ factor.T)
    fresh = [
        frechet(np.random.default_rng(s).standard_normal((40, 16)) @ factor.T, y)
        for s in range(1, 30)
    ]
    assert floor(40, y) == pytest.approx(np.mean(fresh), rel=0.15)
    assert floor(8, y) > 2 * floor(40, y) > 2 * floor(400, y)


# ------------------------------------------------------------------------------------------------
# means


def test_clustered_delta_covers_the_truth_in_nine_of_ten_simulations():
    covered, naive = [], []
    for seed in range(200):
        r = np.random.default_rng(seed)
        groups = np.repeat(np.arange(24), 3)
        effect = 0.1 + 0.5 * r.standard_normal(24)[groups] + 0.2 * r.standard_normal(72)
        base = r.standard_normal(72)
        found = delta(base + effect, base, groups)
        covered.append(found.low <= 0.1 <= found.high)
        careless = delta(base + effect, base)
        naive.append(careless.low <= 0.1 <= careless.high)
    assert np.mean(covered) >= 0.92
    assert np.mean(naive) < 0.85  # samples of one prompt are not independent


def test_the_interval_of_a_skewed_mean_leans_to_the_long_side():
    x = np.random.default_rng(0).exponential(size=40)
    found = mean(x)
    assert found.value == pytest.approx(x.mean())
    assert found.high - found.value > found.value - found.low > 0
    assert found.se == pytest.approx(x.std(ddof=1) / math.sqrt(40))
    assert mean(-x).low == pytest.approx(-found.high)


def test_an_interval_never_contradicts_the_p_value_beside_it():
    r = np.random.default_rng(0)
    for n in (2, 5, 16, 64):
        for x in (
            r.standard_normal(n),
            r.exponential(size=n),
            (r.random(n) < 0.1).astype(float),
            -np.ones(n),
            np.ones(n),
        ):
            for shift in (0.0, 0.3, 1.0):
                found = mean(np.clip(x - shift, -1, 1), bounds=(-1, 1))
                excluded = found.low > 0 or found.high < 0
                assert excluded == (two_sided_p(found) < 0.05), (n, x, shift)


def test_scores_that_never_differ_do_not_prove_a_certainty():
    perfect = mean(np.ones(64), bounds=(0, 1))
    assert (perfect.value, perfect.high) == (1, 1)
    assert perfect.low == pytest.approx(0.05 ** (1 / 64))
    same = delta(np.ones(64), np.ones(64), bounds=(0, 1))
    assert same.low == pytest.approx(-(1 - 0.05 ** (1 / 64))) and same.high == -same.low


def test_an_interval_reaches_at_least_as_far_as_student_s_and_one_group_has_none():
    found = mean([1.0, 2.0, 4.0])
    assert (
        found.value - found.low >= 4.302652 * found.se
        and found.high - found.value >= 4.302652 * found.se
    )
    # no skewness: Student's
    assert mean([1.0, 2.0, 3.0]).high == pytest.approx(2 + 4.302653 / math.sqrt(3), rel=1e-5)
    assert mean([1.0, 2.0, 4.0], [5, 5, 5]) == Estimate(
        value=pytest.approx(7 / 3), low=None, high=None, n=1, se=None
    )
    assert mean([2.0, 2.0]) == Estimate(value=2, low=None, high=None, n=2, se=0.0)


def test_means_refuse_what_is_no_row_of_numbers():
    with pytest.raises(ValueError, match="at least one value"):
        mean([])
    with pytest.raises(ValueError, match="1 of 2 values are not finite"):
        mean([1.0, float("nan")])
    with pytest.raises(ValueError, match="3 values cannot be paired with 2"):
        delta([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="2 values and 3 group labels"):
        mean([1, 2], [1, 2, 3])


def test_rounding_beyond_the_range_is_clipped_and_a_value_outside_it_leaves_no_range():
    assert (
        mean([0.5, 1.0000001], bounds=(0, 1)).bounds == (0, 1)
        and mean([0.5, 2], bounds=(0, 1)).bounds is None
    )
    noise = delta((np.arange(64) % 7 / 7 + 0.1) - 0.1, np.arange(64) % 7 / 7, bounds=(0, 1))
    # what differs by rounding does not differ
    assert noise == delta(np.ones(64), np.ones(64), bounds=(0, 1))


def test_detectable_difference_is_two_point_eight_standard_errors():
    assert detectable(0.5) == pytest.approx(1.4008, rel=1e-4)


# ------------------------------------------------------------------------------------------------
# times


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
    found = speedup(timed(3, 2, 2.0, weather=weather), timed(3, 2, 1.0, weather=weather))
    assert found.estimate.value == pytest.approx(2.0)
    assert found.estimate.high - found.estimate.low < 1e-9
    assert (found.unit, found.estimate.n) == ("rounds", 3)


@pytest.mark.parametrize("rounds", [2, 3, 5])
def test_ratio_interval_covers_the_truth_in_nine_of_ten_simulations(rounds):
    """Each process has a speed of its own (2 % here, as measured), which batches of one round
    share."""
    covered = []
    for seed in range(300):
        r = np.random.default_rng(seed)
        weather = np.exp(0.3 * r.standard_normal(rounds))
        own = np.exp(0.1 * r.standard_normal((2, rounds)))
        found = speedup(
            *(
                timed(rounds, 4, s, rng=r, noise=0.02, weather=weather * o)
                for s, o in zip((1.5, 1.0), own, strict=True)
            )
        )
        assert found.unit == "rounds" and found.estimate.n == rounds
        covered.append(found.estimate.low <= 1.5 <= found.estimate.high)
    assert np.mean(covered) >= 0.92


def test_one_round_has_no_interval_however_many_batches_it_has():
    found = speedup(timed(1, 15, 2.0), timed(1, 15, 1.0))
    assert (
        found.estimate == Estimate(value=pytest.approx(2), low=None, high=None, n=1, se=None)
        and found.unit == ""
    )


def test_a_short_last_batch_counts_by_the_seconds_it_took():
    """16 samples in 16 s that take 8 s, and one in 3 s that takes 3 s: 19 s become 11 s."""

    def entries(*batches):
        return [
            {"round": 0, "batch": i, "size": size, "call_s": s}
            for i, (size, s) in enumerate(batches)
        ]

    found = speedup(entries((16, 16.0), (1, 3.0)), entries((16, 8.0), (1, 3.0)))
    assert found.estimate.value == pytest.approx(19 / 11)
    assert seconds(entries((16, 16.0), (1, 3.0))).value == pytest.approx(19 / 17)


def test_rounds_that_time_only_the_first_batch_do_not_stand_for_the_whole_work():
    """As a run writes them: all batches in the first round, one in the others; without noise
    nothing is uncertain."""

    def entries(big, small):
        last = {"round": 0, "batch": 1, "size": 1, "call_s": small}
        return [last, *({"round": r, "batch": 0, "size": 16, "call_s": big} for r in range(3))]

    found = speedup(entries(16.0, 3.0), entries(8.0, 3.0)).estimate
    assert (found.low, found.value, found.high) == pytest.approx((19 / 11,) * 3)
    assert seconds(entries(16.0, 3.0)).value == pytest.approx(19 / 17)
    # slower, though its first batch is not
    assert speedup(entries(16.0, 3.0), entries(9.9, 12.0)).estimate.value < 1


def test_only_batches_that_both_timed_are_compared():
    slow_tail = [*timed(1, 1, 2.0), {"round": 0, "batch": 1, "size": 4, "call_s": 400.0}]
    found = speedup(slow_tail, timed(1, 1, 1.0))
    assert found.estimate == Estimate(value=pytest.approx(2), low=None, high=None, n=1, se=None)
    assert found.unit == ""
    assert speedup(slow_tail, []) is None


def test_drift_compares_rounds_on_the_batches_all_of_them_timed():
    timing = [
        *timed(2, 1, 1.0, weather=[1.0, 1.2]),
        {"round": 0, "batch": 1, "size": 4, "call_s": 99.0},
    ]
    assert drift(timing) == pytest.approx(0.2)
    assert drift(timed(1, 3, 1.0)) is None
