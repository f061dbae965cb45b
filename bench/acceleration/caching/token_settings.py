"""The rules of ToCa and DuCa, by family: which steps are computed wholly, and how many tokens in
between. Never imports torch.

Zou et al. 2024 (arXiv:2410.05317, arXiv:2412.18911) and their code, rewritten for any depth and
number of steps: a block's place is a share of the depth b = 0..1, a step's count of T a share u of
them.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditbench.suggest import suggest

if TYPE_CHECKING:
    from ditbench.models.sublayers import Sublayer

SELECTORS: dict[str, str] = {
    name: f"ditbench.acceleration.caching.selectors:{cls}"
    for name, cls in {
        "attention": "Attention",
        "change": "Change",
        "similarity": "Similarity",
        "norm": "Norm",
        "shuffle": "Shuffle",
    }.items()
}
"""What tokens are ranked by: name -> "module:class" of a `selectors.Selector`, which is imported
when it is used. A plug-in adds its own with `selectors.selector`. `attention`: how much a token is
attended to, and how widely it attends to the text (ToCa, DiffSparse). `change`: how far its input
has moved since it was last recomputed (ours). `similarity`: one minus the cosine of its residual
stream and the cached output. `norm`: length of its residual stream. `shuffle`: a random
permutation, the same for every sample, another at every step and sub-layer."""


def selector_class(name: str) -> type[Any]:
    """The class of that name, a `selectors.Selector`; ValueError with the nearest names when there is none."""
    if name not in SELECTORS:
        raise ValueError(f"no selector {name!r}; {suggest(name, SELECTORS)}")
    module, _, cls = SELECTORS[name].partition(":")
    selector_type: type[Any] = getattr(import_module(module), cls)
    return selector_type


def selector_files(name: str) -> list[Path]:
    """The file that declares a selector from outside ditbench, which samples depend on."""
    module = sys.modules.get(SELECTORS[name].partition(":")[0])
    file = getattr(module, "__file__", None)
    own = module is None or module.__name__.partition(".")[0] == "ditbench"
    return [] if own or file is None else [Path(file)]


def relied_on(selector: str, rules: Rules | None) -> dict[str, str]:
    """What a token cache relies on besides what it claims (`Method.relies_on`), by its selector and
    the family's rules; nothing for a family without."""
    if selector != "attention" or rules is None or "received" not in rules.signals:
        return {}
    why = (
        "ranks tokens by how much each of them is attended to; choose another selector, such as "
        "selector='change'"
    )
    return {"attended-tokens": why, "attention-operator": why}


SIGNALS = ("received", "entropy")
"""What `attention` adds up: how much a token is attended to, and how widely it attends to the
text."""


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
    """Whether steps are counted T-1 ... 0, as DiT's code does; else upwards, the last of the
    `first` steps being 0."""
    step_factor: Callable[[float], float]
    """Of u."""
    block_factor: Callable[[float, str], float]
    """Of b and the sub-layer's kind."""
    kind_factor: dict[str, float]
    """By kind of sub-layer; one that is not named is reused as it is."""
    period: Callable[[int, int, int], int]
    """From the interval, a step's count and T; evaluated anew at every full step."""
    window: int = 0
    """The best token of every `window` x `window` gets `bonus` times its score more."""
    bonus: float = 0.0
    signals: tuple[str, ...] = SIGNALS
    """Which of them the selector `attention` adds up."""
    shared: bool = False
    """Whether the guidance passes of a batch share one ranking, so that their errors cancel in the
    guidance."""
    by_block: bool = False
    """Whether the authors' published numbers place steps block by block (see `phases`), as their
    code does for DiT and PixArt."""
    soft: float = 0.25
    """What a token that has waited for an interval gets more."""
    query_stride: int = 1
    """How much tokens are attended to is the mean over one query in so many."""

    def count(self, step: int, steps: int) -> int:
        """A step's number as the family's code counts it."""
        return steps - 1 - step if self.downward else step - max(0, self.first - 1)

    def rows(
        self, ratio: float, step: int, steps: int, block: float, kind: str, tokens: int
    ) -> int:
        """How many of its `tokens` a sub-layer of `kind`, `block` of the depth, recomputes at a
        step that is neither full nor skipped."""
        factor = self.step_factor(self.count(step, steps) / steps) * self.block_factor(block, kind)
        keep = ratio * factor * self.kind_factor.get(kind, 0.0)
        return int(_single(_single(min(1.0, max(0.0, keep))) * tokens))

    def phases(self, interval: int, steps: int) -> list[tuple[int, int]]:
        """Place of every step in its period, in the first block and in the others: a step is full
        at 0.

        They are one and the same, but in the code for DiT and PixArt the first block of a full step
        sets the period by which the others then place it.
        """
        kinds, period = [], interval
        for step in range(steps):
            count = self.count(step, steps)
            first = 0 if step < self.first else count % period
            if first == 0:
                period = max(1, self.period(interval, count, steps))
            kinds.append((first, 0 if step < self.first else count % period))
        return kinds


def refuse_stride(method: str, selector: str, query_stride: int) -> None:
    """ValueError for a stride of queries where tokens are not ranked by attention."""
    if query_stride > 1 and selector != "attention":
        raise ValueError(
            f"{method}: query_stride is of selector='attention', and not of selector={selector!r}"
        )


def without_settings(
    method: str, settings: Mapping[str, Any], pipeline: Any, query_stride: int = 1
) -> str | None:
    """Why a method with settings by family cannot take a pipeline, in one sentence: it has none for
    its family, or a stride of queries where those do not look at how much tokens are attended to;
    None when it can."""
    from ditbench.models.family import family_of

    family = family_of(pipeline.transformer)
    if family.name in settings:
        if query_stride == 1 or "received" in settings[family.name].signals:
            return None
        return (
            f"the tokens of {family.title} are ranked by how widely they attend to the text, which takes "
            "all queries; leave query_stride out"
        )
    return (
        f"{method} has no settings for the family {family.name}; it has for {', '.join(settings)}"
    )


def interval_settings(
    method: Any, settings: Mapping[str, Any], family: str
) -> tuple[float, int, int]:
    """Interval, order and first steps of a forecasting method: its knobs, and where they are None what
    `settings` has for the family."""
    interval, order, first = settings.get(family, (1, 0, 1))
    return (
        method.interval or interval,
        order if method.order is None else method.order,
        method.first or first,
    )


def _single(x: float) -> float:
    """Rounded to single precision, in which the authors' code reckons."""
    rounded: float = struct.unpack("f", struct.pack("f", x))[0]
    return rounded


def _period(interval: int, factor: float) -> int:
    return round(_single(interval / _single(factor)))


def places(sublayers: Sequence[Sublayer]) -> list[float]:
    """b of every sub-layer: where its block stands among the blocks that have its kind, the first
    0, the last 1."""
    full = []
    for sublayer in sublayers:
        alike = [other.block for other in sublayers if other.kind == sublayer.kind]
        full.append((sublayer.block - min(alike)) / max(1, max(alike) - min(alike)))
    return full


def _dit_period(interval: int, count: int, steps: int) -> int:
    """Every second step is full in one fifth of the steps; otherwise full steps are rarer early
    than late."""
    if int(steps * 0.2) <= count < int(steps * 0.4):
        return 2
    return _period(interval, 1.4 - 0.8 * count / steps)


TOCA: dict[str, Rules] = {
    "dit": Rules(  # the authors' for 50 steps of DDIM
        interval=3, ratio=0.07, downward=True, by_block=True, window=2, bonus=0.6,
        step_factor=lambda u: 3 - 4 * u,
        block_factor=lambda b, kind: 0.8 + 0.4 * b,
        kind_factor={"mlp": 2.5},
        period=_dit_period,
    ),
    "pixart": Rules(
        interval=3, ratio=0.30, window=4, bonus=0.4, signals=("entropy",), shared=True,
        step_factor=lambda u: 1.9 - 1.8 * u,
        block_factor=lambda b, kind: 1.6 - 1.2 * b,
        kind_factor={"cross": 0.6, "mlp": 1.6},
        period=lambda n, count, steps: _period(n, 0.8 + 0.4 * count / steps),
    ),
    "flux": Rules(
        interval=4, ratio=0.1, first=3,
        step_factor=lambda u: 1.0,
        block_factor=lambda b, kind: 1.5 - (37 if kind == "single" else 18) / 27 * b,
        kind_factor={"mlp": 0.4, "context_mlp": 0.4, "single": 1.6},
        period=lambda n, count, steps: n,
    ),
}  # fmt: skip
TOCA_DDPM250 = replace(
    TOCA["dit"],
    interval=4,
    step_factor=lambda u: 1.4 - 0.8 * u,
    block_factor=lambda b, kind: 1.8 - 1.6 * b,
)
"""The authors' for 250 steps of DDPM on DiT."""
DUCA = TOCA | {
    "dit": replace(TOCA["dit"], ratio=0.05, bonus=0.8),
    "pixart": replace(TOCA["pixart"], ratio=0.75, period=lambda n, count, steps: n),
}
for rules in (TOCA, DUCA):
    # ours: the authors published none for Wan, whose blocks have PixArt's parts, nor for SD3, whose
    # blocks are FLUX's double blocks
    rules["wan"], rules["sd3"] = rules["pixart"], rules["flux"]
DIFFSPARSE = {family: replace(rules, signals=SIGNALS) for family, rules in TOCA.items()}
"""How DiffSparse ranks, in training and in use alike: the paper adds up both signals, waiting and
the bonus, with windows of 2 on DiT and 4 on PixArt. Weights, which it does not give, are ToCa's;
its code for FLUX has no bonus."""
