"""Formulas on videos whose motion is known, each against explicit loops."""

import itertools

import numpy as np
import pytest
from safetensors.numpy import save_file

from ditbench.metrics import motion as video
from ditbench.metrics.samples import Sampled, Samples
from ditbench.metrics.scoring import _extract
from ditbench.metrics.table import metrics

NAMES = [name for name, metric in metrics().items() if metric.family == "motion"]


def sampled(path, mine, theirs=None):
    save_file({"samples": mine}, path / "mine")
    if theirs is not None:
        save_file({"samples": theirs}, path / "theirs")
    return Sampled(
        world="", weights="bundled", samples=Samples(path / "mine"), truths=None,
        baseline=None if theirs is None else Samples(path / "theirs"), no_baseline="no baseline",
    )  # fmt: skip


def noise(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def moving(step, frames=6, side=32):
    """A patch of noise that goes `step` pixels to the right in every frame, on grey."""
    found = np.full((frames, side, side, 3), 128, np.uint8)
    patch = noise(3, 16, 16, 3)
    for t in range(frames):
        found[t, 8:24, t * step : t * step + 16] = patch
    return found


ALTERNATING = np.stack([np.full((32, 32, 3), 255 * (t % 2), np.uint8) for t in range(6)])
FROZEN = np.repeat(noise(0, 1, 32, 32, 3), 6, axis=0)


def test_a_frozen_video_is_perfect_by_smoothness_and_has_no_motion():
    assert video.frame_mad(FROZEN) == video.linear_interp_smooth(FROZEN) == 1
    assert video.second_diff(FROZEN) == video.block_motion(FROZEN) == 0
    assert video.hist_consistency(FROZEN) == pytest.approx(1)


def test_a_video_that_alternates_between_black_and_white_is_the_worst_there_is():
    assert video.frame_mad(ALTERNATING) == video.linear_interp_smooth(ALTERNATING) == 0
    assert video.second_diff(ALTERNATING) == 1
    assert video.hist_consistency(ALTERNATING) < 0.5


def test_a_steady_fade_is_motion_to_the_first_difference_and_smooth_to_the_second():
    fade = np.stack([np.full((32, 32, 3), 20 * t, np.uint8) for t in range(6)])
    assert video.frame_mad(fade) == pytest.approx(1 - 20 / 255)
    assert video.second_diff(fade) == 0 and video.linear_interp_smooth(fade) == 1


@pytest.mark.parametrize("step", [1, 2])
def test_blocks_are_followed_at_the_speed_they_move(step):
    whole = np.stack([np.roll(noise(5, 32, 32, 3), step * t, axis=1) for t in range(4)])
    # the block at the edge, where new pixels roll in, may match elsewhere
    inner = video.block_motion(whole)
    assert inner == pytest.approx(100 * step / 32, rel=0.35)
    # most of this picture is grey and stands still
    assert 0 < video.block_motion(moving(step)) < 100 * step / 32


def test_motion_is_a_share_of_the_picture_whatever_its_size():
    small = moving(2)
    # 256 pixels: averaged down by two, sixteen pixels a frame
    large = small.repeat(8, axis=1).repeat(8, axis=2)
    still = video.block_motion(np.repeat(large[:1], 3, axis=0))
    assert still == 0 < video.block_motion(small)


def slow(v):
    """frame_mad, second_diff, linear_interp_smooth by explicit loops in Python numbers."""
    frames = [[int(x) for x in frame.ravel()] for frame in v]
    mad = [abs(b - a) for f, g in itertools.pairwise(frames) for a, b in zip(f, g, strict=True)]
    triples = list(zip(frames, frames[1:], frames[2:], strict=False))
    second = [abs(a - 2 * b + c) for f, g, h in triples for a, b, c in zip(f, g, h, strict=True)]
    odd = [
        abs(b - (a + c) / 2) for f, g, h in triples[::2] for a, b, c in zip(f, g, h, strict=True)
    ]
    return (
        1 - sum(mad) / len(mad) / 255,
        sum(second) / len(second) / 510,
        1 - sum(odd) / len(odd) / 255,
    )


@pytest.mark.parametrize("frames", [3, 4, 5, 6])
def test_formulas_agree_with_explicit_loops(frames):
    v = noise(frames, frames, 6, 5, 3)
    found = video.frame_mad(v), video.second_diff(v), video.linear_interp_smooth(v)
    np.testing.assert_allclose(found, slow(v), rtol=1e-12)


def slow_motion(v):
    """Full search with explicit loops; v [T, 16, 16, 3], four blocks."""
    luma = v.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    luma, lengths = luma.round(), []
    for before, after in itertools.pairwise(luma):
        for i, j in np.ndindex(2, 2):
            best = (np.inf, 0.0)
            for y, x in np.ndindex(9, 9):
                y, x, cost = y - 4, x - 4, 0.0
                for k, m in np.ndindex(8, 8):
                    source = before[np.clip(8 * i + k - y, 0, 15), np.clip(8 * j + m - x, 0, 15)]
                    cost += abs(float(after[8 * i + k, 8 * j + m]) - float(source))
                best = min(best, (cost, float(np.hypot(y, x))))
            lengths.append(best[1])
    return 100 * np.mean(lengths) / 16


def test_block_matching_agrees_with_explicit_loops():
    v = np.stack([np.roll(noise(7, 16, 16, 3), (t, 2 * t), (0, 1)) for t in range(3)])
    assert video.block_motion(v) == pytest.approx(slow_motion(v), rel=1e-6)


def test_histograms_agree_with_explicit_loops():
    frame = noise(2, 6, 7, 3)
    expected = np.zeros(32)
    grey = frame.astype(float).mean(-1)
    down, right = np.gradient(grey)
    for i, j in np.ndindex(6, 7):
        for c in range(3):
            expected[8 * c + frame[i, j, c] // 32] += 1 / 42
        angle = np.arctan2(down[i, j], right[i, j])
        expected[24 + int((angle + np.pi) / (2 * np.pi) * 8) % 8] += np.hypot(
            down[i, j], right[i, j]
        )
    expected[24:] /= expected[24:].sum()
    np.testing.assert_allclose(video.histogram(frame), expected, rtol=1e-9)


def test_differences_are_compared_without_wrapping_round(tmp_path):
    mine, theirs = noise(0, 2, 4, 16, 16, 3), noise(1, 2, 4, 16, 16, 3)
    cell, table = sampled(tmp_path, mine, theirs), metrics()
    x, y = mine / 255, theirs / 255
    dx, dy = np.diff(x, axis=1), np.diff(y, axis=1)
    fidelity = video.extract(cell, table["tdiff_fidelity.vs_none"])
    np.testing.assert_allclose(
        fidelity["tdiff_fidelity.vs_none.mae"], np.abs(dx - dy).mean((1, 2, 3, 4))
    )
    np.testing.assert_allclose(
        fidelity["tdiff_fidelity.vs_none"],
        -10 * np.log10(((dx - dy) ** 2).mean((1, 2, 3, 4))),
        rtol=1e-9,
    )
    ratio = video.extract(cell, table["motion_energy_ratio.vs_none"])["motion_energy_ratio.vs_none"]
    np.testing.assert_allclose(ratio, np.abs(dx).mean((1, 2, 3, 4)) / np.abs(dy).mean((1, 2, 3, 4)))


def test_frozen_motion_is_seen_by_its_energy_and_the_same_video_is_the_same(tmp_path):
    table = metrics()
    frozen = sampled(tmp_path, FROZEN[None], moving(2)[None])
    assert video.extract(frozen, table["motion_energy_ratio.vs_none"])[
        "motion_energy_ratio.vs_none"
    ] == [0]
    (tmp_path / "same").mkdir()
    same = sampled(tmp_path / "same", moving(1)[None], moving(1)[None])
    found = video.extract(same, table["tdiff_fidelity.vs_none"])
    assert found["tdiff_fidelity.vs_none"] == [100] and found["tdiff_fidelity.vs_none.mae"] == [0]
    assert video.extract(same, table["motion_energy_ratio.vs_none"])[
        "motion_energy_ratio.vs_none"
    ] == [1]


def test_a_baseline_that_stands_still_has_no_ratio_and_says_so(tmp_path):
    cell = sampled(tmp_path, moving(1)[None], FROZEN[None])
    reason, arrays = _extract(cell, metrics()["motion_energy_ratio.vs_none"])
    assert "1 of 1 un-accelerated videos do not move at all" in reason and not arrays


@pytest.mark.parametrize("name", NAMES)
def test_pictures_and_videos_too_short_or_alone_are_refused_by_name(name, tmp_path):
    metric = metrics()[name]
    assert (
        video.refuse(sampled(tmp_path, noise(0, 2, 16, 16, 3)), metric)
        == "these are pictures, not videos"
    )
    short = sampled(tmp_path, noise(0, 2, 1, 16, 16, 3))
    assert "frames, got 1" in video.refuse(short, metric)
    alone = sampled(tmp_path, noise(0, 2, 3, 16, 16, 3))
    assert video.refuse(alone, metric) == ("no baseline" if metric.against_none else "")
    both = sampled(tmp_path, noise(0, 2, 3, 16, 16, 3), noise(1, 2, 3, 16, 16, 3))
    assert video.refuse(both, metric) == ""
    assert (
        video.fingerprint(both, metric) != video.fingerprint(alone, metric)
    ) == metric.against_none
    assert all(
        a.shape == (2,) and a.dtype == np.float64 for a in video.extract(both, metric).values()
    )


def test_blocks_need_room(tmp_path):
    cell = sampled(tmp_path, noise(0, 1, 3, 12, 32, 3))
    assert "at least 16 pixels a side, got 12" in video.refuse(
        cell, metrics()["vstyle.block_motion"]
    )
