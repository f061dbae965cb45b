"""Tokens of low local frequency: the choice against numpy, and what is computed and filled."""

import numpy as np
import torch

from ditbench.acceleration import local_frequency
from ditbench.method import Stack
from ditbench.testing import tiny

GRID = (2, 5, 6)


def draw(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def energy(tokens):
    frames = tokens.reshape(len(tokens), *GRID, -1)
    out = np.zeros(frames.shape[:-1])
    for y in range(GRID[1]):
        for x in range(GRID[2]):
            around = frames[:, :, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].mean((2, 3))
            out[:, :, y, x] = ((frames[:, :, y, x] - around) ** 2).mean(-1)
    return out.reshape(len(tokens), -1)


def test_local_frequency_is_what_the_neighbours_do_not_explain():
    tokens = draw(2, 60, 8)
    ours = local_frequency.high_pass(torch.tensor(tokens), GRID).numpy()
    np.testing.assert_allclose(ours, energy(tokens), rtol=1e-4)


def test_anchors_are_a_lattice_and_stand_for_what_is_most_like_them():
    tokens = draw(2, 60, 8)
    lattice, beside = local_frequency.anchors(GRID, 3, "cpu")
    chosen, around = lattice.tolist(), beside.tolist()
    assert chosen == [f * 30 + y * 6 + x for f in (0, 1) for y in (0, 3, 4) for x in (0, 3, 5)]
    assert around[0] == [0] * 4 and around[1 * 6 + 4] == [3, 5, 21, 23]
    assert around[30 + 2] == [30, 33, 30, 33]
    rows, stands = local_frequency.choose(torch.tensor(tokens), GRID, 0.4, lattice, beside)
    assert rows.shape == (2, 24)
    high = energy(tokens)
    for b in range(2):
        mine = rows[b].tolist()
        rest = sorted(set(range(60)) - set(chosen), key=lambda i: -high[b, i])
        assert set(mine) == {*chosen, *rest[: 24 - len(chosen)]}
        for i in range(60):
            source = mine[int(stands[b, i])]
            if i in mine:
                assert source == i
                continue
            cosines = [
                tokens[b, i] @ tokens[b, a] / np.linalg.norm(tokens[b, a]) for a in around[i]
            ]
            assert source == around[i][int(np.argmax(cosines))]
    filled = local_frequency.filled(torch.tensor(tokens[:, :24]), stands).numpy()
    np.testing.assert_array_equal(
        filled, [t[s] for t, s in zip(tokens, stands.numpy(), strict=True)]
    )


def test_late_steps_compute_fewer_tokens_of_the_rear_blocks():
    tried = tiny("pixart", steps=4)
    with Stack.parse("frequency_tokens(keep=0.5,begin=0.5,stride=3)").attached(tried.pipeline) as a:
        a.start(4, 1)
        tried.generate(tried.sampling, [0])
        schedule, counters = a.schedule(), a.counters()
    front = [i for i, name in enumerate(schedule["sublayers"]) if name.startswith("0.")]
    rear = [i for i, name in enumerate(schedule["sublayers"]) if name.startswith("1.")]
    keep = np.array(schedule["keep"])
    assert (keep[:2, rear] == 1).all() and (keep[2:, rear] == 0.5).all()
    assert (keep[:, front] == 1).all() and "skipped" not in schedule
    assert (
        counters["frequency_tokens.tokens_computed"] == counters["frequency_tokens.tokens_filled"]
    )


def test_a_token_that_is_its_own_anchor_changes_nothing():
    tried = tiny("flux", steps=2)
    plain = tried.generate(tried.sampling, [0])
    with Stack.parse("frequency_tokens(stride=1)").attached(tried.pipeline) as a:
        a.start(2, 1)
        assert torch.equal(tried.generate(tried.sampling, [0]), plain) and not a.counters()
