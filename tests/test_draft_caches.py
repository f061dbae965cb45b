"""Caches that extrapolate the outputs of sub-layers, some of them corrected by a little that is computed,
give what their formulas say, worked out again beside them in numpy."""

import numpy as np
import pytest
import torch
from fake_parts import B, D, Fake, method_of, near, paths, tensor

from ditbench.acceleration.caching.clusters import ITERATIONS, k_means, one_of_each


def running(ran, step, value):
    """A sub-layer's own run at a step, which is noted in `ran`."""

    def run():
        ran.append(step)
        return value

    return run


def sublayer_outputs(fake, values, steps):
    """What its one sub-layer gives at every step, and at which of them it ran."""
    outs, ran, (sublayer,) = [], [], fake.at.sublayers
    for step in range(steps):
        fake.at_step(step)
        value = tensor(values[step])
        outs.append(sublayer.route(running(ran, step, value), value))
    return outs, ran


def hermite(order, u):
    """By numpy's own series."""
    return np.polynomial.hermite.hermval(u, [0.0] * order + [1.0])


def factors(values, computed, first, order):
    """D0, D1, ... at the last of the computed steps, each from those at the computed step before."""
    kept = []
    for i, step in enumerate(computed):
        before, kept = kept, [values[step]]
        for previous in before[:order] if step >= first - 1 else []:
            kept.append((kept[-1] - previous) / (step - computed[i - 1]))
    return kept


# hicache


@pytest.mark.parametrize(
    ("knobs", "computed"),
    [
        ({}, [0, 1, 5, 9]),
        ({"interval": 3, "order": 3, "first": 1, "contraction": 0.8}, [0, 3, 6, 9]),
        ({"order": 0}, [0, 1, 5, 9]),
    ],
)
def test_hicache_extends_differences_by_contracted_hermite_polynomials(knobs, computed):
    steps, values = 12, paths(12, 4)
    order, first, s = (
        knobs.get(k, d) for k, d in (("order", 2), ("first", 2), ("contraction", 0.5))
    )
    fake = Fake(method_of("hicache", **knobs), steps=steps)
    outs, ran = sublayer_outputs(fake, values, steps)
    assert ran == computed
    for step in set(range(steps)) - set(computed):
        so_far = [t for t in computed if t < step]
        k, expected, factorial = step - so_far[-1], 0, 1
        for i, part in enumerate(factors(values, so_far, first, order)):
            factorial *= i or 1
            expected = expected + s**i * hermite(i, s * k) / factorial * part
        near(outs[step], expected, 1e-3)


def test_both_outputs_of_a_pair_are_extrapolated():
    fake, ran = Fake(method_of("hicache", interval=4, first=2), steps=4), []
    image, text = paths(4, 4), paths(4, 2, seed=1)
    for step in range(4):
        fake.at_step(step)
        pair = tensor(image[step]), tensor(text[step])
        out = fake.at.sublayers[0].route(running(ran, step, pair), pair[0])
    assert ran == [0, 1]
    for part, values in zip(out, (image, text), strict=True):
        near(part, values[1] + 0.5 * 2 * (0.5 * 2) * (values[1] - values[0]))


# speca


def authors_of_speca(errors, steps, first, base, decay, floor, least, most, ahead):
    """Whether each step is computed, as their `cal_type` decides, where a checked draft of step t has
    the error `errors[t]`; and which drafts are checked."""
    full, checked, last, counter, error, check = [], [], None, 0, 0.0, False
    for step in range(steps):
        if last == "full":
            kind, counter, check, error = "draft", 1, False, None
        else:
            limit = max(base * decay ** ((step + ahead) / steps), floor)
            check = counter >= least
            if step < first or counter >= most or (error is not None and error > limit and check):
                kind, counter = "full", 0
            else:
                kind, counter = "draft", counter + 1
        if kind == "full":
            full.append(step)
        elif check:
            checked.append(step)
            error = errors[step]
        last = kind
    return full, checked


def relative(draft, true):
    return float(np.mean(np.abs(draft - true) / (np.abs(true) + 1e-10)))


@pytest.mark.parametrize(
    ("knobs", "rules"),
    [
        ({}, (0.1, 0.01, 2, 5)),
        ({"threshold": 3.0, "decay": 0.9}, (3.0, 0.9, 2, 5)),
        ({"threshold": 0.5, "decay": 1.0, "least": 1, "most": 9}, (0.5, 1.0, 1, 9)),
        ({"threshold": 0.0, "least": 3, "most": 4}, (0.0, 0.01, 3, 4)),
    ],
)
def test_speca_on_dit_compares_what_the_last_block_returns(knobs, rules):
    """A block adds its one sub-layer's output to the stream."""
    steps, base, decay, least, most = 20, *rules
    entering, values = paths(steps, 4, seed=2), paths(steps, 4)
    fake = Fake(method_of("speca", **knobs), steps=steps, blocks=1)
    (sublayer,), outs, ran, shown = fake.at.sublayers, [], [], {}
    for step in range(steps):
        fake.at_step(step)

        def own(_block, streams, step=step):
            run = running(ran, step, tensor(values[step]))
            return (streams[0] + sublayer.route(run, streams[0]),)

        outs.append(fake.through_blocks((tensor(entering[step]),), own)[0])
        true = entering[step] + values[step]
        shown[step] = relative(outs[-1].numpy(), true)
    full, checked = authors_of_speca(shown, steps, 3, base, decay, 0.01, least, most, 1)
    assert ran == sorted(full + checked)
    assert fake.at.counters["passes_computed"] == len(full) >= 4
    assert fake.at.counters.get("passes_verified", 0) == len(checked) > 0
    for step in set(range(steps)) - set(full):
        so_far = [t for t in full if t < step]
        k, term, expected = step - so_far[-1], 1.0, 0
        for i, part in enumerate(factors(values, so_far, 3, 4)):
            term *= k / i if i else 1
            expected = expected + term * part
        near(outs[step], entering[step] + expected, 1e-2)


def test_speca_on_flux_compares_the_output_of_the_last_single_block():
    steps, values = 16, paths(16, 4, seed=3)
    knobs = {"threshold": 0.3, "decay": 0.5, "most": 6}
    fake = Fake(method_of("speca", **knobs), steps=steps, family="flux", kinds=("single",))
    outs, ran = sublayer_outputs(fake, values, steps)
    errors = {t: relative(outs[t].numpy(), values[t]) for t in range(steps)}
    full, checked = authors_of_speca(errors, steps, 3, 0.3, 0.5, 0.1, 2, 6, 0)
    assert ran == sorted(full + checked) and checked
    assert full[:2] == [0, 2]  # of the first three the second is a draft


def test_a_draft_of_speca_that_is_found_to_be_off_is_used():
    """The error is felt a step later."""
    values = [np.full((1, 2, D), float(t < 6)) for t in range(8)]
    fake = Fake(method_of("speca", least=1, most=9, order=0), steps=8, blocks=1)
    (sublayer,), outs, ran = fake.at.sublayers, [], []
    for step in range(8):
        fake.at_step(step)

        def own(_block, streams, step=step):
            run = running(ran, step, tensor(values[step]))
            return (streams[0] + sublayer.route(run, streams[0]),)

        outs.append(fake.through_blocks((torch.ones(1, 2, D),), own)[0])
    assert float(outs[6].mean()) == 2.0 and float(outs[7].mean()) == 1.0
    assert fake.at.counters["passes_computed"] == 3  # 0, 2 and 7


# clusca


def test_k_means_is_of_every_sample_by_itself_and_by_the_mean_absolute_distance():
    x = np.random.default_rng(0).normal(size=(B, 20, D))
    start = x[:, [3, 8, 15]]
    labels, centroids = k_means(tensor(x), 3, tensor(start))
    for row in range(B):
        c = start[row]
        for _ in range(ITERATIONS):
            of = np.abs(x[row][:, None] - c[None]).sum(-1).argmin(1)
            c = np.stack([x[row][of == k].mean(0) if (of == k).any() else c[k] for k in range(3)])
        near(centroids[row], c)
        assert (labels[row].numpy() == np.abs(x[row][:, None] - c[None]).sum(-1).argmin(1)).all()
        alone, _ = k_means(tensor(x[row : row + 1]), 3)
        together, _ = k_means(tensor(x), 3)
        spread, _ = k_means(tensor(x), 3, tensor(x[:, [0, 6, 13]]))
        assert torch.equal(together, spread)
        assert torch.equal(alone[0], together[row])


def test_a_token_is_drawn_of_each_cluster_and_the_same_one_in_every_sample():
    labels = torch.tensor([[0, 2, 2, 0, 0, 2], [0, 2, 2, 0, 0, 2]])
    ranks = torch.rand(40, 1, 6, generator=torch.Generator().manual_seed(0)).expand(-1, 2, -1)
    drawn = [one_of_each(labels, 3, of) for of in ranks]
    firsts = {(int(rows[0, 0]), int(rows[0, 2])) for rows in drawn}
    assert firsts == {(i, j) for i in (0, 3, 4) for j in (1, 2, 5)}
    assert all(int(rows[0, 1]) == 0 for rows in drawn)  # of an empty cluster the first token
    assert all(torch.equal(*rows) for rows in drawn)


@pytest.mark.parametrize("propagation", [0.0, 0.3])
def test_clusca_changes_the_last_output_by_one_token_of_each_cluster(propagation):
    """MLP outputs of 6 tokens in 2 clusters, the streams of which tell them apart."""
    steps, tokens, count = 7, 6, 2
    values, streams = paths(steps, tokens, seed=4), np.zeros((B, tokens, D))
    streams[:, [1, 4, 5]] = 9
    cluster_of = np.array([0, 1, 0, 0, 1, 1])
    fake = Fake(
        method_of("clusca", clusters=count, propagation=propagation, interval=3, order=1, first=2),
        steps=steps, blocks=1,
    )  # fmt: skip
    (sublayer,), outs, rows_of = fake.at.sublayers, [], {}
    for step in range(steps):
        fake.at_step(step)

        def run(rows=None, step=step):
            whole = tensor(values[step])
            rows_of[step] = rows
            return whole if rows is None else whole.gather(1, rows[..., None].expand(-1, -1, D))

        def own(_block, given, run=run):
            outs.append(sublayer.route(run, given[0]))
            return given

        fake.through_blocks((tensor(streams),), own)
    assert [step for step, rows in rows_of.items() if rows is None] == [0, 1, 4]
    d0, gap = values[0], 1
    for base in (1, 4):
        slope = (values[base] - d0) / gap  # from the last output as it was changed
        d0, gap = values[base].copy(), 3
        for step in range(base + 1, min(base + 3, steps)):
            rows = rows_of[step].numpy()
            for row in range(B):
                chosen = {cluster_of[place]: place for place in rows[row]}
                assert sorted(chosen) == [0, 1]
                for place in chosen.values():
                    d0[row, place] = values[step][row, place]
                follow = np.stack([values[step][row, chosen[c]] for c in cluster_of])
                d0[row] = propagation * follow + (1 - propagation) * d0[row]
            near(outs[step], d0 + (step - base) * slope, 1e-3)
    assert fake.at.counters["tokens_recomputed"] == 4 * B * count
    assert fake.at.shares[5, 0] == count / tokens
