"""What rollouts are rewarded for: what a judge finds of what was asked for, and how little it took.

n samples, Q = 4 quadrants. After RAPID3 (arXiv:2509.22323): r = (1/K) sum over k = 1..K of
lambda^(K-k) (q + omega d), where K counts what was computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ditbench.shapes.scenes import COLOURS, Scenes

if TYPE_CHECKING:
    from ditbench.acceleration.policies.deciding import Action
    from ditbench.shapes.judge import Judge


def compute_of(actions: Sequence[Action], saved: Sequence[float]) -> float:
    """K of one sample: the sum over its steps of (1 - C_cache) (1 - C_sparse), in whole computed
    steps. C_cache is 1 where it reused; `saved` are C_sparse by level."""
    return sum(1 - saved[level] for _, reused, level, _ in actions if not reused)


def discounted(worth: float, steps: float, decay: float) -> float:
    """(1/K) sum_k decay^(K-k) worth for K = `steps`, whole or not, by the sum of its geometric
    series; `decay` in 0..1, and 1 discounts nothing."""
    if decay == 1:
        return worth
    return worth * (1 - math.pow(decay, steps)) / (steps * (1 - decay))


@torch.no_grad()
def judged(judge: Judge, pixels: Tensor, truths: Sequence[dict[str, Any]], world: str) -> Tensor:
    """[n] float64 in 0..1: the probability that a judge gives to the attributes that were asked for,
    the mean over attributes; `pixels` in 0..1, [n,3,H,W] or [n,3,T,H,W].

    Where `judge.agreement` has 1 for the likeliest attribute, this has its probability. In the
    class world: that there is one object, of that shape and colour.
    """
    quadrant, whole = judge.logits(judge.pool(pixels))
    truth = Scenes.of(list(truths))
    shape, colour, size = (logits.double().softmax(2).cpu() for logits in quadrant)
    background, texture, *motion = (logits.double().softmax(1).cpu() for logits in whole)
    empty = shape[..., 0]  # [n,Q]
    if world == "class":
        labels = truth.labels
        of_shape = _at(shape, (labels // len(COLOURS) + 1)[:, None].expand(-1, 4))
        of_colour = _at(colour, (labels % len(COLOURS))[:, None].expand(-1, 4))
        others = torch.stack(
            [empty[:, [p for p in range(4) if p != q]].prod(1) for q in range(4)], 1
        )
        return (of_shape * of_colour * others).sum(1)
    there = truth.shape >= 0
    num = there.sum(1)
    attributes = [
        (_at(shape, truth.shape + 1) * there).sum(1) / num,
        ((1 - empty) * _at(colour, truth.colour.clamp(min=0)) * there).sum(1) / num,
        ((1 - empty) * _at(size, truth.size.clamp(min=0)) * there).sum(1) / num,
        torch.where(there, 1 - empty, empty).prod(1),
        background.gather(1, truth.background[:, None])[:, 0],
        texture.gather(1, truth.texture[:, None])[:, 0],
    ]
    if motion:
        attributes.append(motion[0].gather(1, truth.motion[:, None])[:, 0])
    return torch.stack(attributes).mean(0)


def _at(chances: Tensor, which: Tensor) -> Tensor:
    """[n,Q] of [n,Q,options] the options `which` [n,Q]."""
    return chances.gather(2, which[..., None])[..., 0]


def advantages(rewards: Tensor, group: int, scaled: bool = True) -> Tensor:
    """[n] (r - mean) / std within consecutive groups of `group` rollouts of one prompt (GRPO,
    arXiv:2402.03300), or, where not `scaled`, r - mean (Dr. GRPO, arXiv:2503.20783); 0 where all of a
    group are alike."""
    by_group = rewards.unflatten(0, (-1, group))
    centred: Tensor = by_group - by_group.mean(1, keepdim=True)
    if not scaled:
        return centred.flatten()
    spread = by_group.std(1, keepdim=True, unbiased=False)
    return torch.where(spread > 1e-8, centred / spread.clamp(min=1e-8), 0.0).flatten()
