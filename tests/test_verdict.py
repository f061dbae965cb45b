"""Tests and verdicts against scipy's and by hand, and against simulations that know the truth."""

import numpy as np
import pytest
from scipy import stats

from ditbench.analysis import verdict
from ditbench.analysis.verdict import decide
from ditbench.statistics.estimates import Estimate, delta, mean, wilson
from ditbench.statistics.frechet import Reference, frechet, frechet_delta
from ditbench.statistics.hypothesis import difference_p, equivalence_p, exceeds_p, holm
from ditbench.statistics.influence import contrast, linear


def test_p_of_a_difference_is_the_paired_t_test_s():
    r = np.random.default_rng(0)
    a, b = r.standard_normal((2, 30))
    student = stats.ttest_rel(a, b).pvalue
    # the larger of Student's and the skewness-corrected one
    assert student <= difference_p(delta(a, b)) <= 1.2 * student
    flat = np.concatenate([a - a.mean(), a.mean() - a]) + 0.2  # no skewness: both are Student's
    assert difference_p(mean(flat)) == pytest.approx(stats.ttest_1samp(flat, 0).pvalue)


def test_p_of_equivalence_is_the_larger_of_two_one_sided_t_tests():
    x = 0.1 + np.random.default_rng(0).standard_normal(30)
    found = delta(x, np.zeros(30))
    above = stats.ttest_1samp(x, -0.5, alternative="greater").pvalue
    below = stats.ttest_1samp(x, 0.5, alternative="less").pvalue
    assert equivalence_p(found, 0.5) == pytest.approx(max(above, below))


def test_scores_that_never_differ_are_equivalent_only_where_enough_of_them_were_seen():
    """A change hidden from G units may move up to 1 - 0.05^(1/G) of the range: 0.046 of 2 at 64,
    which no margin of 0.02 covers."""
    few, many = (delta(np.ones(n), np.ones(n), bounds=(0, 1)) for n in (64, 1000))
    assert difference_p(few) == 1
    assert equivalence_p(few, 0.02) >= (1 - 0.02) ** 64 > 0.05
    assert equivalence_p(many, 0.02) < 1e-6
    assert equivalence_p(few, few.high) >= 0.05


@pytest.mark.parametrize("n", [16, 64, 256, 1024])
def test_no_loss_makes_equivalence_likelier_than_seeing_none(n):
    """64 equal pairs had p .274 and one pair at -1/7 made it 2e-11."""
    before = 0.0
    for lost in (0, 1 / 7, 1 / 3, 1):
        x = np.zeros(n)
        x[0] = -lost
        p = equivalence_p(mean(x, bounds=(-1, 1)), 0.02)
        assert p >= before
        before = p
    more = [
        equivalence_p(mean(np.repeat([-0.5, 0.0], [k, n - k]), bounds=(-1, 1)), 0.02)
        for k in range(8)
    ]
    assert more == sorted(more)


@pytest.mark.parametrize("n", [150, 216, 292, 364, 500, 512, 700, 1024])
@pytest.mark.parametrize(
    ("reach", "least", "level"), [(1, 0.02, 0.05), (2, 0.02, 0.025), (3, 0.02, 0.025)]
)
def test_rare_whole_losses_keep_the_level_at_every_n(n, reach, least, level):
    """Exactly, by the binomial: a t test with an imagined unit alone reached 6.9 % at 216."""
    error = 0.0
    for k in range(40):
        x = np.zeros(n)
        x[:k] = -reach
        if exceeds_p(mean(x, bounds=(-reach, reach)), -least) <= level:
            error += stats.binom.pmf(k, n, least / reach)
    assert error <= level


def test_prompts_of_unequal_numbers_of_samples_count_for_as_many_as_they_weigh():
    groups = np.concatenate([np.arange(256), np.full(64, 256)])
    assert (
        exceeds_p(mean(np.zeros(320), groups, bounds=(-1, 1)), -0.02)
        > 0.05
        > exceeds_p(mean(np.zeros(257), bounds=(-1, 1)), -0.02)
    )


@pytest.mark.parametrize("n", [64, 256])
def test_a_loss_of_the_margin_in_rare_samples_is_called_equivalent_once_in_twenty_at_most(n):
    """One sample in fifty lost wholly: 11.8 % at 256 by a t test on the pairs alone."""
    r = np.random.default_rng(0)
    losses = [-(r.random(n) < 0.02).astype(float) for _ in range(1500)]
    small = [
        np.where(r.random(n) < 0.05, -0.4, np.where(r.random(n) < 0.2, r.choice([-0.1, 0.1], n), 0))
        for _ in range(1500)
    ]
    for sample in (losses, small):
        assert (
            np.mean([equivalence_p(mean(x, bounds=(-1, 1)), 0.02) <= 0.05 for x in sample]) <= 0.06
        )
        assert (
            np.mean([exceeds_p(mean(x, bounds=(-2, 2)), -0.02) <= 0.025 for x in sample]) <= 0.035
        )


def test_a_difference_that_is_the_same_everywhere_may_be_nothing_in_as_many_units_as_can_hide():
    found = delta(np.ones(6), np.zeros(6), bounds=(0, 1))
    assert difference_p(found) == 0.5**6 and equivalence_p(found, 0.5) == 1
    assert difference_p(delta(np.ones(4), np.zeros(4), bounds=(0, 1))) > 0.05


def test_features_that_never_differ_prove_no_more_than_their_number_does():
    """Precision of slightly other samples with the same hits read [0, 0] and p_equivalent 0."""
    read = linear(0.5, np.repeat([0.0, 1.0], 32), None)
    found = contrast([read, read], [1, -1])
    reach = 1 - 0.05 ** (1 / 64)
    assert (found.low, found.high) == pytest.approx((-reach, reach))
    assert difference_p(found) == 1 and equivalence_p(found, 0.02) > 0.05


def test_one_unit_gives_no_p():
    alone = Estimate(value=1.0, low=None, high=None, n=1, se=None)
    assert difference_p(alone) is equivalence_p(alone, 1.0) is None
    assert decide(1.0, "higher", None, None) == ""


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (10, 10), (41, 60)])
def test_wilson_is_scipys(k, n):
    expected = stats.binomtest(k, n).proportion_ci(method="wilson")
    assert wilson(k, n) == pytest.approx((expected.low, expected.high))


def test_holm_is_by_hand_and_in_the_order_given():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, 0.9]) == [1, 1] and holm([]) == []


def test_holm_errs_anywhere_in_one_family_of_twenty():
    r, wrong = np.random.default_rng(0), []
    for _ in range(400):
        shared = r.standard_normal(40)
        p = [difference_p(mean(0.5 * shared + r.standard_normal(40))) for _ in range(10)]
        wrong.append((min(p) < 0.05, min(holm(p)) < 0.05))
    careless, careful = np.mean(wrong, axis=0)
    assert careless > 0.2 and careful <= 0.07


@pytest.mark.parametrize(("true", "said"), [(0.0, "equivalent"), (-0.8, "worse"), (0.8, "better")])
def test_verdicts_on_enough_samples_are_true(true, said):
    r, found = np.random.default_rng(0), []
    for _ in range(100):
        e = delta(true + 0.5 * r.standard_normal(60), np.zeros(60))
        found.append(decide(e.value, "higher", difference_p(e), equivalence_p(e, 0.3)))
    assert found.count(said) >= 95 and set(found) <= set(verdict.WORDS)


def test_a_difference_as_large_as_the_margin_is_called_equivalent_once_in_twenty_at_most():
    r, found = np.random.default_rng(1), []
    for _ in range(600):
        e = delta(0.3 + 0.5 * r.standard_normal(40), np.zeros(40))
        found.append(decide(e.value, "higher", difference_p(e), equivalence_p(e, 0.3)))
    assert found.count("equivalent") / 600 <= 0.07


def test_a_small_certain_difference_inside_the_margin_is_equivalent():
    e = delta(0.05 + 0.01 * np.random.default_rng(0).standard_normal(40), np.zeros(40))
    assert (
        difference_p(e) < 1e-6
        and decide(e.value, "higher", difference_p(e), equivalence_p(e, 0.2)) == "equivalent"
    )
    assert decide(e.value, "lower", difference_p(e), None) == "worse"
    # of no size that counts
    assert decide(e.value, "lower", difference_p(e), 0.3, margin=0.2) == "inconclusive"


# --------------------------------------------------------------- where unpaired comparisons say the
# wrong thing


def test_two_samples_of_other_prompts_call_the_worse_method_better_where_pairs_do_not():
    """Prompts differ by much more than methods do: B loses .03 on every prompt, and yet has the
    better mean in over a third of runs.

    Unpaired, with prompts of its own, it is called better with confidence in some of them; paired,
    never, and worse nearly always.
    """
    runs = 300
    unpaired, ahead, paired = [], [], []
    for seed in range(runs):
        r = np.random.default_rng(seed)
        hard, other = 0.3 * r.standard_normal((2, 64))
        a, b = 0.8 + hard + 0.02 * r.standard_normal(64), 0.77 + hard + 0.02 * r.standard_normal(64)
        elsewhere = 0.77 + other + 0.02 * r.standard_normal(64)
        test = stats.ttest_ind(elsewhere, a)
        ahead.append(elsewhere.mean() > a.mean())
        unpaired.append(
            "inconclusive" if test.pvalue > 0.05 else "better" if test.statistic > 0 else "worse"
        )
        e = delta(b, a)
        paired.append(decide(e.value, "higher", difference_p(e), equivalence_p(e, 0.01)))
    assert (
        np.mean(ahead) > 0.25
        and unpaired.count("better") >= 1
        and unpaired.count("inconclusive") > 0.8 * runs
    )
    assert paired.count("better") == 0 and paired.count("worse") >= 0.99 * runs


def test_a_frechet_distance_of_more_samples_looks_better_than_one_of_fewer_that_is():
    """Its bias falls with n: a worse model shown at n = 1000 beats a perfect one at n = 64, until
    both are read on the same requests."""
    r, d = np.random.default_rng(0), 32
    reference = Reference.through(r.standard_normal((5000, d)))
    noise = r.standard_normal((1000, d))
    perfect, worse = noise, 0.08 + 1.03 * noise
    assert frechet(worse, reference) < frechet(perfect[:64], reference)
    found = frechet_delta(worse[:256], perfect[:256], reference)
    assert found.value > 0 and decide(found.value, "lower", difference_p(found), None) == "worse"
    few = frechet_delta(worse[:64], perfect[:64], reference)
    assert few.value > 0 and decide(few.value, "lower", difference_p(few), None) == "inconclusive"
    plain = frechet(worse[:64], reference) - frechet(perfect[:64], reference)
    assert plain > few.value > 0  # without the bias that the two do not share
