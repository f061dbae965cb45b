"""Distances between sets against loops, other people's code, and simulations that know the
truth."""

import math
import tracemalloc

import numpy as np
import pytest
import scipy.linalg

from ditbench.statistics import influence as readings
from ditbench.statistics import mmd as kernels
from ditbench.statistics import moments
from ditbench.statistics import precision_recall as manifold
from ditbench.statistics.frechet import (
    Reference,
    frechet,
    frechet_delta,
    read_frechet,
    read_jackknifed,
)
from ditbench.statistics.inception_score import read_inception_score
from ditbench.statistics.influence import blocks, contrast, members
from ditbench.statistics.mmd import cubic, gaussian, read_mmd, read_mmd_spread, spread
from ditbench.statistics.moments import Moments
from ditbench.statistics.precision_recall import read_precision, read_recall


def rng(seed):
    return np.random.default_rng(seed)


@pytest.fixture
def small_chunks(monkeypatch):
    """So that a small table is still many chunks."""
    monkeypatch.setattr(moments, "ROWS", 7)


def mixing(d, decay=5.0):
    factor = rng(0).standard_normal((d, d)) / np.sqrt(d) * np.exp(-np.arange(d) / decay)
    return np.linalg.cholesky(factor @ factor.T + 1e-3 * np.eye(d))


# ----------------------------------------------------------------------------------------------
# moments


def test_moments_do_not_lose_digits_to_a_large_mean_nor_to_the_order_of_shards(small_chunks):
    x = 1e6 + rng(0).standard_normal((100, 5))
    shards = [Moments.of(x[i:j]) for i, j in ((0, 1), (1, 60), (60, 100))]
    expected = np.cov(x - 1e6, rowvar=False)
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        merged = shards[order[0]] + shards[order[1]] + shards[order[2]]
        np.testing.assert_allclose(merged.covariance, expected, atol=1e-8)
        np.testing.assert_allclose(merged.mean - 1e6, (x - 1e6).mean(0), atol=1e-8)
    single = 3 + rng(1).standard_normal((100, 5))
    parts = sum((Moments.of(single[i : i + 9]) for i in range(9, 100, 9)), Moments.of(single[:9]))
    np.testing.assert_allclose(parts.scatter, Moments.of(single).scatter, atol=1e-10)
    np.testing.assert_allclose(parts.mean, Moments.of(single).mean, atol=1e-10)


def test_taking_a_part_out_of_moments_leaves_those_of_the_rest():
    x = 5 + rng(0).standard_normal((50, 4))
    left = Moments.of(x).without(Moments.of(x[10:20]))
    expected = Moments.of(np.delete(x, range(10, 20), 0))
    assert left.n == 40
    np.testing.assert_allclose(left.mean, expected.mean, atol=1e-12)
    np.testing.assert_allclose(left.scatter, expected.scatter, atol=1e-11)


def test_a_sample_that_is_there_twice_is_refused_by_name(small_chunks):
    x = rng(0).standard_normal((20, 3))
    names = [f"s{i:02d}" for i in range(20)]
    both = Moments.of(x[:10], names[:10]) + Moments.of(x[10:], names[10:])
    assert both.n == 20 and both.ids == frozenset(names)
    with pytest.raises(ValueError, match="sample 's09' is there twice"):
        Moments.of(x[:10], names[:10]) + Moments.of(x[9:], names[9:])
    with pytest.raises(ValueError, match="sample 's03' is there twice"):
        Moments.of(x, [*names[:19], "s03"])
    with pytest.raises(ValueError, match="sample 's00' is there twice"):
        Moments.of(x, ["s00", "s00", *names[2:]])
    with pytest.raises(ValueError, match="20 samples and 3 names"):
        Moments.of(x, names[:3])


def test_a_value_that_is_not_finite_is_found_in_any_chunk(small_chunks):
    x = rng(0).standard_normal((20, 3)).astype(np.float32)
    x[15, 1] = np.inf
    with pytest.raises(ValueError, match="got NaN or infinity"):
        Moments.of(x)
    with pytest.raises(ValueError, match="got NaN or infinity"):
        read_mmd(x, Reference.through(x[:10]))


def test_fifty_thousand_samples_are_read_without_a_copy_in_float64():
    x = rng(0).standard_normal((50_000, 64), np.float32)
    y = Reference.through(x[:2000])
    tracemalloc.start()
    read_frechet(x, y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.5 * x.size * 8


# ----------------------------------------------------------------------------------------------
# Fréchet


def torchmetrics_frechet(x, y):
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Columns(torch.nn.Module):
        num_features = x.shape[1]

        def forward(self, rows):
            return rows

    metric = FrechetInceptionDistance(feature=Columns()).set_dtype(torch.float64)
    metric.update(torch.from_numpy(y), real=True)
    metric.update(torch.from_numpy(x), real=False)
    return float(metric.compute())


@pytest.mark.parametrize(("d", "n"), [(64, 900), (600, 1200)])
def test_frechet_is_torchmetrics(d, n):
    """By 64 features and, where torch's own eigenvalues are asked, by more than
    `frechet.LARGE`."""
    factor = mixing(d, decay=d / 12)
    x, y = (
        0.1 + 1.1 * rng(1).standard_normal((n, d)) @ factor.T,
        rng(2).standard_normal((n + 100, d)) @ factor.T,
    )
    assert frechet(x, Reference.through(y)) == pytest.approx(torchmetrics_frechet(x, y), rel=1e-5)


def test_a_distance_costs_one_symmetric_eigenproblem_and_no_matrix_square_root(monkeypatch):
    """The work that makes it fast; the seconds are a benchmark's."""
    calls = []
    for name in ("eigvalsh", "eigh", "svd"):
        real = getattr(np.linalg, name)
        monkeypatch.setattr(
            np.linalg,
            name,
            lambda *a, _real=real, _name=name, **k: calls.append(_name) or _real(*a, **k),
        )
    reference = Reference.through(rng(2).standard_normal((200, 16)))
    frechet(Moments.of(rng(1).standard_normal((100, 16))), reference)
    assert calls == ["eigvalsh"]


def test_a_reference_of_fewer_samples_than_features_has_a_root_too():
    y, x = rng(0).standard_normal((20, 32)), rng(1).standard_normal((60, 32))
    singular = np.cov(y, rowvar=False)
    np.testing.assert_allclose((root := Reference.through(y).root) @ root.T, singular, atol=1e-12)
    shared = np.real(scipy.linalg.sqrtm(np.cov(x, rowvar=False) @ singular))
    direct = (
        np.sum((x.mean(0) - y.mean(0)) ** 2)
        + np.trace(np.cov(x, rowvar=False))
        + np.trace(singular)
    )
    assert frechet(x, Reference.through(y)) == pytest.approx(
        direct - 2 * np.trace(shared), rel=1e-5
    )


@pytest.mark.parametrize("n", [40, 400])
def test_the_block_jackknife_of_a_frechet_delta_agrees_with_its_influence_function(n):
    factor, d = mixing(16), 16
    y = Reference.through(rng(5).standard_normal((2000, d)) @ factor.T)
    groups = np.repeat(np.arange(n // 2), 2)
    ratio = []
    for seed in range(20):
        shared, other = rng(seed).standard_normal((2, n, d))
        a, b = 1.05 * shared @ factor.T, 0.1 + (0.9 * shared + 0.4 * other) @ factor.T
        slow = contrast([read_jackknifed(x, y, groups) for x in (b, a)], [1, -1])
        fast = contrast([read_frechet(x, y, groups) for x in (b, a)], [1, -1])
        found = frechet_delta(b, a, y, groups)
        assert (
            found.value == slow.value != fast.value == pytest.approx(frechet(b, y) - frechet(a, y))
        )
        assert found.se == pytest.approx(fast.se if n > 2 * d else max(slow.se, fast.se))
        assert slow.n == min(50, n // 2)
        ratio.append(slow.se / fast.se)
    assert np.mean(ratio) == pytest.approx(1, abs=0.15 if n > d * 2 else 0.6)


# ----------------------------------------------------------------------------------------------
# kernels


def slow_mmd(x, y, k, biased):
    n, m = len(x), len(y)
    own = [k(x[i], x[j]) for i in range(n) for j in range(n) if biased or i != j]
    held = [k(y[i], y[j]) for i in range(m) for j in range(m) if biased or i != j]
    return np.mean(own) + np.mean(held) - 2 * np.mean([k(a, b) for a in x for b in y])


def slow_gaussian(a, b):
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    return 1000 * math.exp(-np.sum((a - b) ** 2) / (2 * 10**2))


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("kernel", "slow"), [(cubic, lambda a, b: (a @ b / 6 + 1) ** 3), (gaussian, slow_gaussian)]
)
def test_mmd_is_the_mean_over_all_pairs(kernel, slow, biased, small_chunks):
    x, y = rng(0).standard_normal((20, 6)), 0.3 + rng(1).standard_normal((17, 6))
    found = read_mmd(x, Reference.through(y), kernel=kernel, biased=biased)
    assert found.value == pytest.approx(slow_mmd(x, y, slow, biased), rel=1e-8)
    assert found.parts.sum() == pytest.approx(0, abs=1e-9)


def test_the_spread_kernel_is_as_wide_as_its_reference_and_blind_to_scale(small_chunks):
    x, y = rng(0).standard_normal((20, 6)), 0.3 + rng(1).standard_normal((17, 6))
    width = 2 * np.cov(y, rowvar=False).trace()
    found = read_mmd_spread(x, Reference.through(y))
    expected = slow_mmd(x, y, lambda a, b: 1000 * math.exp(-np.sum((a - b) ** 2) / width), False)
    assert found.value == pytest.approx(expected, rel=1e-8)
    assert read_mmd_spread(50 * x, Reference.through(50 * y)).value == pytest.approx(
        found.value, rel=1e-8
    )


def test_mmd_is_torchmetrics_kernel_distance_on_one_subset_of_everything():
    import torch
    from torchmetrics.image.kid import KernelInceptionDistance

    x, y = rng(0).standard_normal((50, 8)), 0.3 + rng(1).standard_normal((50, 8))
    metric = KernelInceptionDistance(feature=torch.nn.Identity(), subsets=1, subset_size=50)
    metric.update(torch.from_numpy(y), real=True)
    metric.update(torch.from_numpy(x), real=False)
    assert read_mmd(x, Reference.through(y)).value == pytest.approx(
        float(metric.compute()[0]), rel=1e-6
    )


@pytest.mark.parametrize("kernel", [cubic, gaussian])
def test_mmd_of_samples_of_the_reference_itself_is_nothing_on_average(kernel):
    found = [
        read_mmd(rng(s).standard_normal((30, 4)), Reference.through(rng(10_000 + s).standard_normal((40, 4))), kernel=kernel)
        for s in range(400)
    ]  # fmt: skip
    values = np.array([f.value for f in found])
    assert abs(values.mean()) < 2.5 * values.std() / math.sqrt(len(values))
    above = read_mmd(
        rng(0).standard_normal((30, 4)),
        Reference.through(rng(1).standard_normal((40, 4))),
        biased=True,
    )
    assert above.value > 0 > values.min()


@pytest.mark.parametrize("kernel", [cubic, gaussian, None])
@pytest.mark.parametrize("per_prompt", [1, 3])
def test_paired_mmd_delta_covers_its_mean_in_nine_of_ten_simulations(kernel, per_prompt):
    d, num = 8, 40
    y = Reference.through(rng(5).standard_normal((500, d)))
    groups, found = np.repeat(np.arange(num), per_prompt), []
    for seed in range(300):
        r = rng(100 + seed)
        prompt = r.standard_normal((num, d))[groups]
        shared = (prompt + r.standard_normal((num * per_prompt, d))) / math.sqrt(2)
        other = r.standard_normal(shared.shape)
        a, b = 0.2 + shared, 0.3 + 1.1 * (0.9 * shared + math.sqrt(0.19) * other)
        found.append(
            contrast([read_mmd(z, y, groups, kernel=kernel or spread(y)) for z in (b, a)], [1, -1])
        )
    truth = np.mean([e.value for e in found])
    assert np.mean([e.low <= truth <= e.high for e in found]) >= 0.90


def test_a_reference_without_features_has_no_kernel_distance():
    x = rng(0).standard_normal((10, 3))
    with pytest.raises(ValueError, match="only the moments of this reference were kept"):
        read_mmd(x, Reference.of(Moments.of(x)))
    with pytest.raises(ValueError, match="at least two samples, got 1"):
        read_mmd(x[:1], Reference.through(x))
    with pytest.raises(ValueError, match="3 features cannot be held against a reference of 2"):
        read_mmd(x, Reference.through(x[:, :2]))


# -------------------------------------------------------------------------------- precision and
# recall, IS


def slow_share_inside(x, y):
    """Share of x inside a ball of y, by loops."""
    reach = [
        sorted(np.linalg.norm(a - b) for j, b in enumerate(y) if j != i)[2] for i, a in enumerate(y)
    ]
    return np.mean(
        [any(np.linalg.norm(a - b) <= r for b, r in zip(y, reach, strict=True)) for a in x]
    )


def test_precision_and_recall_are_the_shares_inside_balls_to_third_neighbours(small_chunks):
    x, y = 0.8 * rng(0).standard_normal((40, 3)), 1.5 + rng(1).standard_normal((31, 3))
    precision, recall = (
        read_precision(x, Reference.through(y)),
        read_recall(x, Reference.through(y)),
    )
    assert precision.value == pytest.approx(slow_share_inside(x, y)) and 0 < precision.value < 1
    assert recall.value == pytest.approx(slow_share_inside(y, x)) and 0 < recall.value < 1


@pytest.mark.parametrize("per_prompt", [1, 4])
def test_recall_of_a_half_is_that_of_its_prompts(per_prompt, small_chunks):
    x, y = 0.6 * rng(0).standard_normal((48, 3)), Reference.through(rng(1).standard_normal((31, 3)))
    groups = np.arange(48) // per_prompt
    num = 48 // per_prompt
    r, values = np.random.default_rng(0), []
    for _ in range(manifold.DRAWS):
        half = np.flatnonzero(r.permutation(num) < num // 2)
        values.append(slow_share_inside(y.features, x[np.isin(groups, half)]))
    found = read_recall(x, y, groups)
    np.testing.assert_allclose(
        found.parts, readings.replicates(0.0, values, num, num // 2).parts, atol=1e-12
    )
    assert found.groups == num and np.ptp(values) > 0
    assert contrast([found], [1]).se == pytest.approx(np.std(values, ddof=1))


def test_halves_give_the_standard_error_of_a_mean():
    x, r = rng(0).standard_normal(40), rng(1)
    halves = [x[r.permutation(40)[:20]].mean() for _ in range(4000)]
    found = contrast([readings.replicates(x.mean(), halves, 40, 20)], [1])
    assert found.se == pytest.approx(x.std(ddof=1) / math.sqrt(40), rel=0.03) and found.n == 40


@pytest.mark.parametrize("read", [read_precision, read_recall])
def test_paired_precision_and_recall_deltas_cover_their_means_and_are_not_too_wide(read):
    d, n = 4, 80
    y, found = Reference.through(rng(5).standard_normal((300, d))), []
    for seed in range(200):
        shared, other = rng(100 + seed).standard_normal((2, n, d))
        a, b = 0.9 * shared, 0.75 * (0.9 * shared + math.sqrt(0.19) * other) + 0.3
        found.append(contrast([read(b, y), read(a, y)], [1, -1]))
    values = [e.value for e in found]
    assert np.mean([e.low <= np.mean(values) <= e.high for e in found]) >= 0.91
    assert np.mean([e.se for e in found]) == pytest.approx(np.std(values), rel=0.25)


def test_precision_and_recall_need_more_samples_than_neighbours():
    x = rng(0).standard_normal((10, 3))
    with pytest.raises(ValueError, match="more than 3 samples, got 3"):
        read_recall(x[:3], Reference.through(x))
    with pytest.raises(ValueError, match="more than 3 reference samples, got 3"):
        read_precision(x, Reference.through(x[:3]))
    with pytest.raises(ValueError, match="precision and recall need its features"):
        read_recall(x, Reference.of(Moments.of(x)))


def slow_inception_score(p, splits):
    """Parts in file order, as published; `splits` lists of rows."""
    scores = []
    for rows in splits:
        mean = np.mean(p[rows], axis=0)
        kl = [
            sum(v * math.log(v / q) for v, q in zip(row, mean, strict=True) if v > 0)
            for row in p[rows]
        ]
        scores.append(math.exp(np.mean(kl)))
    return np.mean(scores)


def test_inception_score_is_that_of_loops_in_file_order(small_chunks):
    logits = 3 * rng(0).standard_normal((50, 5))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    p[3] = [1, 0, 0, 0, 0]
    ten = np.array_split(np.arange(50), 10)
    assert read_inception_score(p).value == pytest.approx(slow_inception_score(p, ten))
    assert read_inception_score(p, splits=1).value == pytest.approx(
        slow_inception_score(p, [np.arange(50)])
    )
    groups = np.repeat(np.arange(25), 2)
    block = blocks(50, groups)
    without = [slow_inception_score(p, [rows[block[rows] != b] for rows in ten]) for b in range(25)]
    np.testing.assert_allclose(
        read_inception_score(p, None, groups).parts,
        readings.jackknife(0.0, without).parts,
        atol=1e-12,
    )
    with pytest.raises(ValueError, match="10 splits needs at least as many samples, got 9"):
        read_inception_score(p[:9])
    with pytest.raises(ValueError, match="rows of numbers from 0 on that add up to 1"):
        read_inception_score(logits)


def test_paired_inception_score_deltas_cover_their_mean_in_nine_of_ten_simulations():
    found = []
    for seed in range(200):
        shared, other = rng(seed).standard_normal((2, 100, 6))
        tables = [np.exp(2 * shared), np.exp(1.5 * (0.9 * shared + math.sqrt(0.19) * other))]
        a, b = (read_inception_score(t / t.sum(1, keepdims=True), splits=1) for t in tables)
        found.append(contrast([b, a], [1, -1]))
    truth = np.mean([e.value for e in found])
    assert np.mean([e.low <= truth <= e.high for e in found]) >= 0.90


# ---------------------------------------------------------------------------------------------
# readings


def test_blocks_are_whole_groups_dealt_in_turn():
    groups = np.array([7, 7, 3, 9, 3, 1])
    np.testing.assert_array_equal(members(6, groups), [0, 0, 1, 2, 1, 3])
    np.testing.assert_array_equal(blocks(6, groups, 3), [0, 0, 1, 2, 1, 0])
    np.testing.assert_array_equal(members(3, None), [0, 1, 2])
    with pytest.raises(ValueError, match="2 samples and group labels of shape"):
        members(2, groups)


def test_the_jackknife_of_a_mean_has_the_standard_error_of_the_mean():
    x = rng(0).standard_normal(30)
    read = readings.jackknife(x.mean(), [np.delete(x, i).mean() for i in range(30)])
    found = contrast([read], [1])
    assert found.se == pytest.approx(x.std(ddof=1) / math.sqrt(30))
    assert found.se == pytest.approx(contrast([readings.linear(x.mean(), x, None)], [1]).se)
    with pytest.raises(ValueError, match="30 and of 29 units cannot be paired"):
        contrast([read, readings.linear(0.0, x[:29], None)], [1, -1])


def test_a_kernel_and_a_ball_see_every_tile_once(monkeypatch):
    x, y = rng(0).standard_normal((30, 4)), rng(1).standard_normal((25, 4))
    whole = [read(x, Reference.through(y)) for read in (read_mmd, read_precision, read_recall)]
    monkeypatch.setattr(moments, "ROWS", 4)
    tiled = [read(x, Reference.through(y)) for read in (read_mmd, read_precision, read_recall)]
    for a, b in zip(whole, tiled, strict=True):
        assert a.value == pytest.approx(b.value, rel=1e-12)
        np.testing.assert_allclose(a.parts, b.parts, atol=1e-12)
    assert kernels.SIGMA == 10 and manifold.NEIGHBOURS == 3
