"""Who decides for each sample and step: trained heads, one fixed rule for all, or a recorded schedule.

n samples, C channels of a latent, T frames, H height, W width; a time is a sampler's timestep in
0..1000, and `times` are those of all steps with 0 after the last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributions import Beta, Categorical, Distribution

from ditbench.acceleration.caching.schedule import refuse_other_length
from ditbench.acceleration.policies import ATTENTION, CACHE, RATIO, SKIP
from ditbench.acceleration.policies.heads import likeliest


def landing(times: Sequence[float], step: int, fraction: float) -> int:
    """The step a sample goes to next: t -> floor(t a), and of the steps ahead the one whose time is
    nearest to that (the earlier of two as near); `len(times) - 1` is the end."""
    wanted = math.floor(times[step] * fraction)
    return min(range(step + 1, len(times)), key=lambda t: (abs(times[t] - wanted), t))


class Decider(Protocol):
    """Decides for some samples at a step."""

    @property
    def heads(self) -> frozenset[str]:
        """What it decides; the rest is not asked: every step is taken, computed, and dense."""

    def reuses(
        self,
        samples: Sequence[int],
        step: int,
        times: Sequence[float],
        change: Tensor,
        kept: Tensor,
    ) -> list[bool]:
        """Which of the samples take what the transformer added last. `change` [n,C,T,H,W]: their
        latents less those it was added to, `kept`."""

    def levels(
        self, samples: Sequence[int], step: int, times: Sequence[float], latents: Tensor
    ) -> list[int]:
        """How sparse their attention is, 0 for dense; of zipr1 which ratio of their tokens is
        computed."""

    def lands(
        self, samples: Sequence[int], step: int, times: Sequence[float], output: Tensor
    ) -> list[int]:
        """The steps they go to next; `output` [n,C,T,H,W] is the transformer's."""


@dataclass
class Choice:
    """What was drawn of one head for some samples at one step."""

    head: str
    samples: list[int]
    seen: Tensor
    """[n,C,T,H,W]."""
    time: Tensor
    """[n] in 0..1."""
    action: Tensor
    """[n]."""
    chance: Tensor
    """[n] logarithm of its probability when it was drawn."""


@dataclass
class ByHeads:
    """Trained heads: the likeliest action, or one that is drawn, which is noted."""

    modules: nn.ModuleDict
    draw: torch.Generator | None = None
    """None: nothing is drawn."""
    drawn: list[Choice] = field(default_factory=list)

    @property
    def heads(self) -> frozenset[str]:
        """Those there are."""
        return frozenset(self.modules)

    def _asked(self, head: str, samples: Sequence[int], time: float, seen: Tensor) -> list[float]:
        at = torch.full((len(samples),), time / 1000, device=seen.device)
        with torch.no_grad():
            policy = self.modules[head].policy(seen, at)  # type: ignore[operator]
            if self.draw is None:
                return [float(x) for x in likeliest(policy).tolist()]
            action = _drawn(policy, self.draw)
            chance = policy.log_prob(action)
        self.drawn.append(Choice(head, list(samples), seen.clone(), at, action, chance))
        return [float(x) for x in action.tolist()]

    def reuses(
        self,
        samples: Sequence[int],
        step: int,
        times: Sequence[float],
        change: Tensor,
        kept: Tensor,
    ) -> list[bool]:
        """See `Decider`."""
        return [a == 1 for a in self._asked(CACHE, samples, times[step], change)]

    def levels(
        self, samples: Sequence[int], step: int, times: Sequence[float], latents: Tensor
    ) -> list[int]:
        """See `Decider`."""
        head = RATIO if RATIO in self.modules else ATTENTION
        return [int(a) for a in self._asked(head, samples, times[step], latents)]

    def lands(
        self, samples: Sequence[int], step: int, times: Sequence[float], output: Tensor
    ) -> list[int]:
        """See `Decider`."""
        actions = self._asked(SKIP, samples, times[step], output)
        return [landing(times, step, a) for a in actions]


def _drawn(policy: Distribution, generator: torch.Generator) -> Tensor:
    """An action [n] by a generator of our own, on the host: the same whatever the device, whoever else
    draws."""
    seed = int(torch.randint(1 << 31, (1,), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if isinstance(policy, Beta):
            host = Beta(policy.concentration1.cpu(), policy.concentration0.cpu())
            # a density at 0 or 1 is infinite or nothing
            action: Tensor = host.sample().clamp(1e-4, 1 - 1e-4).to(policy.mean)
            return action
        choice: Tensor = Categorical(logits=policy.logits.cpu()).sample()  # type: ignore[attr-defined]
        return choice.to(policy.logits.device)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class ByRule:
    """One rule for all samples: the threshold grid's."""

    stride: int = 1
    """Every so-many-th step is taken."""
    threshold: float = 0.0
    """Mean |change| / mean |kept|, of a sample's latents, below which it reuses."""
    level: int = 0
    """How sparse attention is, always."""

    @property
    def heads(self) -> frozenset[str]:
        """What it does not do is not asked for."""
        on = {SKIP: self.stride > 1, CACHE: self.threshold > 0, ATTENTION: self.level > 0}
        return frozenset(head for head, there in on.items() if there)

    def reuses(
        self,
        samples: Sequence[int],
        step: int,
        times: Sequence[float],
        change: Tensor,
        kept: Tensor,
    ) -> list[bool]:
        """See `Decider`."""
        moved = change.abs().flatten(1).mean(1) / kept.abs().flatten(1).mean(1)
        return [bool(m < self.threshold) for m in moved.tolist()]

    def levels(
        self, samples: Sequence[int], step: int, times: Sequence[float], latents: Tensor
    ) -> list[int]:
        """See `Decider`."""
        return [self.level] * len(samples)

    def lands(
        self, samples: Sequence[int], step: int, times: Sequence[float], output: Tensor
    ) -> list[int]:
        """See `Decider`."""
        return [min(step + self.stride, len(times) - 1)] * len(samples)


class ByRatio(ByRule):
    """One share of the tokens for all samples, by `level`."""

    @property
    def heads(self) -> frozenset[str]:
        """The share."""
        return frozenset({RATIO})


Action = tuple[int, bool, int, int]
"""What one sample did: (step, whether it reused, level, step it went to next)."""
Actions = tuple[Action, ...]


class ByRecord:
    """The same actions for every sample, which were recorded once."""

    def __init__(self, actions: Sequence[Action], heads: frozenset[str], steps: int) -> None:
        """`steps`: of the sampler that it was recorded with. ValueError with another number, when
        it is first asked."""
        self.heads, self.steps = heads, steps
        self._at = {step: (reused, level, to) for step, reused, level, to in actions}

    def _say(
        self, samples: Sequence[int], step: int, times: Sequence[float], field: int
    ) -> list[Any]:
        refuse_other_length("the record", self.steps, len(times) - 1, "python run_bench.py prepare")
        # a method beside it may have it start anew at a step that the record jumps over
        recorded = self._at.get(step, (False, 0, step + 1))
        return [recorded[field]] * len(samples)

    def reuses(
        self,
        samples: Sequence[int],
        step: int,
        times: Sequence[float],
        change: Tensor,
        kept: Tensor,
    ) -> list[bool]:
        """See `Decider`."""
        return self._say(samples, step, times, 0)

    def levels(
        self, samples: Sequence[int], step: int, times: Sequence[float], latents: Tensor
    ) -> list[int]:
        """See `Decider`."""
        return self._say(samples, step, times, 1)

    def lands(
        self, samples: Sequence[int], step: int, times: Sequence[float], output: Tensor
    ) -> list[int]:
        """See `Decider`."""
        return self._say(samples, step, times, 2)
