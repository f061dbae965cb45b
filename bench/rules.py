"""The rules of ToCa and DuCa, by family: which steps are computed wholly, and how many tokens in between. Never imports torch.

Zou et al. 2024 (arXiv:2410.05317, arXiv:2412.18911) and their code, rewritten for any depth and number of steps: a block's place is
a share of the depth b = 0..1, a step i of T a share of sampling s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ditbench.anatomy import Sublayer

SelectorName = Literal["attention", "change", "similarity", "norm", "shuffle"]
"""What tokens are ranked by. `attention`: how much a token is attended to, and how widely it attends to the text (ToCa, DiffSparse).
`change`: how far its input has moved since it was last recomputed. `similarity`: one minus the cosine of the same two. `norm`: length
of its input. `shuffle`: a random permutation, the same for every sample, another at every step."""
SIGNALS = ("received", "entropy")
"""What `attention` adds up: how much a token is attended to, and how widely it attends to the text."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The settings of one method for one family."""

    interval: int
    """Steps, about, from one full computation to the next."""
    ratio: float
    """Share of tokens recomputed in between, before the factors below."""
    first: int = 1
    """Steps computed wholly at the beginning."""
    downward: bool = False
    """Whether steps are counted T-1 ... 0, as DiT's code does; else 0 ... T-1. Full steps are those whose count the period divides."""
    step_factor: Callable[[float], float]
    """Of s."""
    block_factor: Callable[[float, str], float]
    """Of b and the sub-layer's kind."""
    kind_factor: dict[str, float]
    """By kind of sub-layer; one that is not named is reused as it is."""
    period: Callable[[int, float], int]
    """From the interval and s, evaluated anew at every full step."""
    window: int = 0
    """The best token of every `window` x `window` gets `bonus` times its score more."""
    bonus: float = 0.0
    signals: tuple[str, ...] = SIGNALS
    """Which of them the selector `attention` adds up."""
    shared: bool = False
    """Whether the guidance passes of a batch share one ranking, so that their errors cancel in the guidance."""
    soft: float = 0.25
    """What a token that has waited for an interval gets more."""

    def share(self, step: int, steps: int) -> float:
        """s of a step, as the family's code counts it."""
        return (step + 1) / steps if self.downward else step / steps

    def keep(self, ratio: float, step: int, steps: int, block: float, kind: str) -> float:
        """Share of tokens a sub-layer recomputes at a step that is not full, 0..1."""
        factor = (
            self.step_factor(self.share(step, steps)) * self.block_factor(block, kind) * self.kind_factor.get(kind, 0.0)
        )
        return min(1.0, max(0.0, ratio * factor))

    def full_steps(self, interval: int, steps: int) -> list[tuple[bool, bool]]:
        """For every step whether it is full in the first block, and in the others.

        They are one and the same, but in the DiT code the first block of a full step sets the period by which the others then test it.
        """
        found, period = [], interval
        for step in range(steps):
            count = steps - 1 - step if self.downward else step - max(0, self.first - 1)
            full = step < self.first or count % period == 0
            if full:
                period = max(1, self.period(interval, self.share(step, steps)))
            found.append((full, step < self.first or (full and count % period == 0)))
        return found


def places(sublayers: Sequence[Sublayer]) -> list[float]:
    """b of every sub-layer: where its block stands among the blocks that have its kind, the first 0, the last 1."""
    found = []
    for sublayer in sublayers:
        alike = [other.block for other in sublayers if other.kind == sublayer.kind]
        found.append((sublayer.block - min(alike)) / max(1, max(alike) - min(alike)))
    return found


TOCA: dict[str, Rules] = {
    # DDIM, 50 steps: full steps are rarer early than late, and every second one in one fifth of the steps.
    "dit": Rules(
        interval=3, ratio=0.07, downward=True, window=2, bonus=0.6,
        step_factor=lambda s: 4 * s - 1,
        block_factor=lambda b, kind: 0.8 + 0.4 * b,
        kind_factor={"mlp": 2.5},
        period=lambda n, s: 2 if 0.6 < s <= 0.8 else round(n / (0.6 + 0.8 * s)),
    ),
    "pixart": Rules(
        interval=3, ratio=0.30, window=4, bonus=0.4, signals=("entropy",), shared=True,
        step_factor=lambda s: 1.9 - 1.8 * s,
        block_factor=lambda b, kind: 1.6 - 1.2 * b,
        kind_factor={"cross": 0.6, "mlp": 1.6},
        period=lambda n, s: round(n / (0.8 + 0.4 * s)),
    ),
    "flux": Rules(
        interval=4, ratio=0.1, first=3,
        step_factor=lambda s: 1.0,
        block_factor=lambda b, kind: 1.5 - (37 if kind == "single" else 18) / 27 * b,
        kind_factor={"mlp": 0.4, "context_mlp": 0.4, "single": 1.6},
        period=lambda n, s: n,
    ),
}  # fmt: skip
DUCA = TOCA | {
    "dit": replace(TOCA["dit"], ratio=0.05, bonus=0.8),
    "pixart": replace(TOCA["pixart"], ratio=0.75, period=lambda n, s: n),
}
for rules in (TOCA, DUCA):
    rules["wan"] = rules["pixart"]  # ours: the authors published none for Wan, and its blocks have PixArt's parts
DIFFSPARSE = {family: replace(rules, signals=SIGNALS) for family, rules in TOCA.items()}
"""How DiffSparse ranks, in training and in use alike: the paper adds up both signals, waiting and the bonus, with windows of 2 on DiT and
4 on PixArt. Weights, which it does not give, are ToCa's; its code for FLUX has no bonus."""
