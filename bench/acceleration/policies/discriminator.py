"""The discriminator: does a sample look like one of the un-accelerated model? Trained against the
policy.

RAPID3's is CLIP with an adapter; here it is the judge's frozen layers with an adapter, since nothing
is downloaded. n samples, F numbers that the judge's trunk gives for a sample.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from ditbench.shapes.judge import Judge

WIDTH, RATE, DECAY = 64, 1e-3, 1e-2
"""Of the adapter and its AdamW. Ours."""
Kind = Literal["real", "first", "rollout"]
"""Of the un-accelerated model, of the policy before its training, of a rollout since."""
UPDATES, BATCH, MEMORY = 4, 32, 512
"""Updates after each batch of rollouts, samples of each kind in one, and how many of each are
remembered. Ours."""


class Discriminator:
    """d in 0..1 of samples, and its training."""

    def __init__(self, judge: Judge, seed: int) -> None:
        self.judge, self._draw = judge, torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            features = 4 * 2 * 96
            self.adapter = nn.Sequential(
                nn.LayerNorm(features), nn.Linear(features, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 1)
            )
        self.adapter.to(next(judge.parameters()).device)
        self._optimiser = torch.optim.AdamW(self.adapter.parameters(), RATE, weight_decay=DECAY)
        self._known: dict[str, Tensor] = {}

    def features(self, pixels: Tensor) -> Tensor:
        """[n,F] of pixels in 0..1."""
        with torch.no_grad():
            return self.judge.pool(pixels).flatten(1)

    def realness(self, features: Tensor) -> Tensor:
        """[n] float64: the probability that a sample is the un-accelerated model's."""
        with torch.no_grad():
            return torch.sigmoid(self.adapter(features)[:, 0].double())

    def remember(self, features: Tensor, kind: Kind) -> None:
        """Samples to be told apart."""
        before = self._known.get(kind, features[:0])
        self._known[kind] = torch.cat([before, features])[-MEMORY:]

    def update(self) -> float:
        """Binary cross-entropy of `real` against the others, which have as much weight; the mean of
        the last updates."""
        losses = []
        for _ in range(UPDATES):
            loss = torch.zeros(())
            false = [kind for kind in self._known if kind != "real"]
            for kind in self._known:
                logits = self.adapter(self._some(self._known[kind]))[:, 0]
                wanted = torch.full_like(logits, float(kind == "real"))
                weight = 0.5 if kind == "real" else 0.5 / len(false)
                loss = loss + weight * F.binary_cross_entropy_with_logits(logits, wanted).cpu()
            self._optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimiser.step()
            losses.append(float(loss.detach()))
        return sum(losses) / len(losses)

    def _some(self, features: Tensor) -> Tensor:
        rows = torch.randint(len(features), (min(BATCH, len(features)),), generator=self._draw)
        return features[rows]
