"""Forecasts from computed steps: exact on the functions each formula is exact for."""

from __future__ import annotations

import pytest
import torch

from ditbench.acceleration.caching.forecasts import (
    differences,
    extended,
    hermite,
    mean_velocity,
    probed_coefficient,
    taylor,
    timed_coefficient,
    two_anchors,
)

START = torch.tensor([[1.0, -2.0], [0.5, 4.0]], dtype=torch.float64)
SLOPE = torch.tensor([[0.25, 1.0], [-3.0, 2.0]], dtype=torch.float64)


def test_taylor_of_order_one_is_exact_on_a_line_whatever_the_gaps() -> None:
    times = [0, 1, 4]
    values = [START + SLOPE * t for t in times]
    for order in (1, 2, 3):
        assert torch.allclose(taylor(values, times, 9, order), START + SLOPE * 9)
    assert torch.equal(taylor(values, times, 9, 0), values[-1])
    assert torch.equal(taylor(values[:1], times[:1], 9, 2), values[0])


def test_differences_are_those_of_one_value_more() -> None:
    times, order = [0, 2, 3, 7, 8], 3
    values = [torch.randn(3, generator=torch.Generator().manual_seed(t)) for t in times]
    kept: list[torch.Tensor] = []
    for i, (value, time) in enumerate(zip(values, times, strict=True)):
        kept = extended(value, kept, time - times[max(0, i - 1)], order)
        whole = differences(values[: i + 1], times[: i + 1], order)
        assert len(whole) == len(kept) == min(i, order) + 1
        for one, other in zip(whole, kept, strict=True):
            assert torch.allclose(one, other)


def test_hermite_by_hand() -> None:
    values, times = [START, START + SLOPE, START + 3 * SLOPE], [0, 1, 2]
    first, second = 2 * SLOPE, SLOPE  # D1 and D2 at the newest
    x, s = 3.0, 0.5
    by_hand = values[-1] + first * s * 2 * (s * x) + second * s**2 * (4 * (s * x) ** 2 - 2) / 2
    assert torch.allclose(hermite(values, times, 2 + x, 2), by_hand)
    assert torch.allclose(
        hermite(values, times, 2 + x, 1) - values[-1],
        0.5 * (taylor(values, times, 2 + x, 1) - values[-1]),
    )


def test_two_anchors() -> None:
    older, newer = START, START + SLOPE
    assert torch.equal(two_anchors(older, newer, 1.0), newer)
    assert torch.allclose(two_anchors(older, newer, 1.5), START + 1.5 * SLOPE)
    assert timed_coefficient([0, 4], 6, most=2) == 1.5
    assert timed_coefficient([0, 1], 6) == 1.5
    assert timed_coefficient([0, 4], 4) == 1
    still = torch.stack([START[0], START[1]])
    moved = torch.stack([START[0] + 1, START[1]])  # the second row's probe stood still
    far = torch.stack([START[0] + 1.25, START[1] + 5])
    assert probed_coefficient(far, still, moved).tolist() == [[1.25], [1.0]]
    assert probed_coefficient(far, still, moved, most=1.1).tolist() == [[1.1], [1.0]]


def test_mean_velocity_follows_a_velocity_that_grows_evenly() -> None:
    # v(sigma) = a + b sigma along z(sigma), whose mean between two sigmas is that of the ends
    a, b = START, SLOPE
    sigmas = [1.0, 0.75, 0.5]
    latents = [a * s + b * s**2 / 2 for s in sigmas]
    velocities = [a + b * s for s in sigmas]
    sigma, following = 0.4, 0.2
    latent = a * sigma + b * sigma**2 / 2
    ours = mean_velocity(latents, velocities, sigmas, latent, sigma, following, span=3)
    # u - v_r is b (sigma - sigma_r) / 2: the rule takes half of the slope
    assert torch.allclose(ours, velocities[-1] + (following - sigma) * b / 2)
    assert torch.equal(
        mean_velocity(latents, velocities, sigmas, latent, sigma, following, span=1), velocities[-1]
    )
    assert torch.equal(
        mean_velocity(latents[:1], velocities[:1], sigmas[:1], latent, sigma, following),
        velocities[0],
    )


def test_mean_velocity_takes_sigmas_as_tensors_and_stands_still_where_they_do() -> None:
    # the second stage of Heun's has the noise level of the first
    numbers = [1.0, 0.5], 0.5, 0.25
    still = [0.5, 0.5], 0.5, 0.25
    for (sigmas, sigma, following), moves in ((numbers, True), (still, False)):
        values = [START, START + SLOPE]
        of_numbers = mean_velocity(values, values, sigmas, START, sigma, following, span=2)
        tensors = torch.tensor(sigmas), torch.tensor(sigma), torch.tensor(following)
        of_tensors = mean_velocity(
            values, values, list(tensors[0]), START, tensors[1], tensors[2], span=2
        )
        assert torch.equal(of_numbers, of_tensors)
        assert torch.equal(of_numbers, values[-1]) is not moves


def test_what_makes_no_sense_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="two values of the same time 3"):
        taylor([START, START], [3, 3], 4)
    with pytest.raises(ValueError, match="0 values at 0 times"):
        hermite([], [], 4)
    with pytest.raises(ValueError, match="two anchors of the same time"):
        timed_coefficient([2, 2], 3)
    with pytest.raises(ValueError, match="1 latents, 0 velocities"):
        mean_velocity([START], [], [], START, 0.5, 0.4)
