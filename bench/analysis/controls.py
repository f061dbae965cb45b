"""What a combination has to beat, the model or a student in fewer steps at no more time or FLOPs,
and the verdict on it. No torch.

A control may be the equal-time control of a stack if the interval of their times allows that it is
no slower. Where several may be, the stack is judged against each, and only what they agree on is
said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ditbench.analysis import host
from ditbench.analysis.control_cells import why_left_out
from ditbench.analysis.rows import Record
from ditbench.metrics.table import Metric
from ditbench.records.scores import Scores
from ditbench.statistics import estimates as statistics
from ditbench.statistics import times
from ditbench.statistics.estimates import Array, Estimate
from ditbench.statistics.hypothesis import ALPHA, exceeds_p, holm
from ditbench.statistics.times import DRIFT_BOUND

NOT_SLOWER = 1.02
"""A control within 2 % of a stack's time, or FLOPs, counts as no slower."""

VERDICTS = ("stacks", "clashes", "beaten", "slower", "inconclusive")


def rule(metric: Metric) -> str:
    """How the verdict on a combination follows, for models whose primary score is `metric`."""
    imagined = " (counting one imagined prompt at the worst end)" if _range(metric) else ""
    return (
        f"beaten: every control that may be the equal-time control is ahead in {metric.label} by "
        f"at least {metric.least}; clashes: the {metric.label} interaction is at least "
        f"{metric.least} below zero; slower: the stack is slower than none or than one of its "
        f"methods alone; stacks: the interaction is above -{metric.least}{imagined}, and as "
        f"measured no control is ahead by {metric.least} and nothing it is made of is faster; "
        f"inconclusive: otherwise. Differences by tests at {ALPHA:.0%} (stacks one-sided at "
        f"{ALPHA / 2:.1%}), p-values adjusted by Holm over the combinations and models of the run. "
        "Equal-time control: of none, fewer steps, and students of fewer steps, the one with the "
        f"most steps that is no slower (within {NOT_SLOWER - 1:.0%}) by the interval of the times. "
        "Where the times are unreliable (one round, a baseline that drifted over "
        f"{DRIFT_BOUND:.0%}, cells timed by different commands, or a GPU slowed down or shared) FLOPs stand in for them: see the "
        "column basis."
    )


def _range(metric: Metric) -> tuple[float, float] | None:
    """The range of a score that samples do reach, as a fraction of attributes does; a cosine has
    bounds too, but no sample comes near them."""
    return metric.bounds if metric.bounds == (0.0, 1.0) else None


def sum_range(metric: Metric, num: int) -> tuple[float, float] | None:
    """The range of an interaction of so many methods."""
    bounds = _range(metric)
    return bounds and (-num * (bounds[1] - bounds[0]), num * (bounds[1] - bounds[0]))


def goodness(metric: Metric, scores: Scores) -> Array:
    """The values of a metric, higher for better."""
    values: Array = scores.arrays[metric.name]
    return -values if metric.better == "lower" else values


@dataclass(frozen=True, kw_only=True)
class Control:
    """A cell that a stack is compared with."""

    stack: str
    steps: int
    sure: bool
    """Whether it is no slower than the stack wherever in its interval the ratio of times lies."""
    over: Estimate
    """Primary score of the stack minus its own."""
    margin: float
    """Least difference that counts."""

    @property
    def p_ahead(self) -> float:
        """Two-sided p-value of "it is no better"; 1 where it is not the better one."""
        p = statistics.two_sided_p(self.over) if self.over.value < 0 else None
        return 1.0 if p is None else p

    @property
    def ahead(self) -> bool:
        """Whether it is better by at least the margin, taken alone."""
        return self.p_ahead <= ALPHA and self.far_ahead

    @property
    def far_ahead(self) -> bool:
        """Whether it is better by at least the margin, as measured."""
        return self.over.value <= -self.margin


def reliable(records: Sequence[Record]) -> bool:
    """Whether the times of cells may decide anything: at least two rounds that all share, a
    baseline (the first) that did not drift beside them, and a GPU that was itself."""
    drift = times.drift(records[0]["timing"], records[-1]["timing"])
    shared = times.time_contrast([r["timing"] for r in records], [1] * len(records))
    return (
        not any(map(host.doubts, records))
        and drift is not None
        and drift <= DRIFT_BOUND
        and shared is not None
        and shared.estimate.low is not None
    )


def by_time(
    together: Record, candidates: Sequence[Record], scores: Mapping[str, Scores], metric: Metric
) -> list[Control]:
    """The candidates that may be the one with the most steps of those no slower than the stack,
    surest first.

    All that may be no slower by the interval of the times (or by FLOPs, where there is no such
    interval), and have no fewer steps than the best of those that surely are.
    """
    fitting = []
    for candidate in candidates:
        # the stack's time over the control's
        ratio = times.speedup(together["timing"], candidate["timing"])
        if ratio is None or ratio.estimate.low is None or ratio.estimate.high is None:
            sure, may_be = False, _no_more_flops(candidate, together)
        else:
            sure, may_be = (
                bound * NOT_SLOWER >= 1 for bound in (ratio.estimate.low, ratio.estimate.high)
            )
        if may_be and (control := _control(together, candidate, scores, metric, sure)):
            fitting.append(control)
    return _best(fitting)


def by_flops(
    together: Record, candidates: Sequence[Record], scores: Mapping[str, Scores], metric: Metric
) -> list[Control]:
    """The candidate with the most steps of those that take no more FLOPs than the stack, as a list
    of at most one."""
    fitting = (
        _control(together, c, scores, metric, True)
        for c in candidates
        if _no_more_flops(c, together)
    )
    return _best([control for control in fitting if control])[:1]


def _flops(record: Record) -> float | None:
    return (record["flops"] or {}).get("flops")


def _no_more_flops(candidate: Record, together: Record) -> bool:
    mine, limit = _flops(candidate), _flops(together)
    return bool(mine and limit and mine <= limit * NOT_SLOWER)


def _control(
    together: Record, candidate: Record, scores: Mapping[str, Scores], metric: Metric, sure: bool
) -> Control | None:
    if why_left_out(together, candidate, scores, metric):
        return None
    mine, theirs = scores[together["key"]], scores[candidate["key"]]
    over = statistics.delta(
        goodness(metric, mine),
        goodness(metric, theirs),
        mine.arrays["group"],
        bounds=_range(metric),
        blocks=mine.blocks,
    )
    return Control(
        stack=candidate["stack"],
        steps=candidate["sampling"]["steps"],
        sure=sure,
        over=over,
        margin=metric.least,
    )


def _best(controls: Sequence[Control]) -> list[Control]:
    least = max((c.steps for c in controls if c.sure), default=0)
    return sorted((c for c in controls if c.steps >= least), key=lambda c: (not c.sure, c.steps))


def speed_over(
    records: Sequence[Record], together: Record, timed: bool
) -> dict[str, Estimate | None]:
    """How many times as fast as each of `records` a stack is, by stack: with an interval by time,
    exactly by FLOPs; None where neither is known."""
    faster: dict[str, Estimate | None] = {}
    for record in records:
        if timed:
            ratio = times.speedup(record["timing"], together["timing"])
            faster[record["stack"]] = None if ratio is None else ratio.estimate
        else:
            theirs, mine = _flops(record), _flops(together)
            value = theirs / mine if theirs and mine else None
            faster[record["stack"]] = (
                None if value is None else Estimate(value=value, low=value, high=value, n=1, se=0.0)
            )
    return faster


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the verdict on one combination rests on."""

    interaction: Estimate
    margin: float
    """Of the primary score that may be lost beyond the sum of what the methods lose alone, where it
    is still said to stack; and the least that a clash must cost."""
    controls: Sequence[Sequence[Control]]
    """Of each kind, those that may be the equal-time (or equal-FLOPs) control."""
    speed: Mapping[str, Estimate | None]
    """How many times as fast as `none` and as each of its methods the stack is; None where that is
    not known."""

    @property
    def p_values(self) -> tuple[float, float, float]:
        """Of no clash, of no stacking (two-sided, to be compared with ALPHA alike), and of no
        control ahead; 1 where nothing can be said."""
        clash = statistics.two_sided_p(self.interaction) if self.interaction.value < 0 else None
        stacks = exceeds_p(self.interaction, -self.margin)
        return (
            1.0 if clash is None else clash,
            1.0 if stacks is None else min(1.0, 2 * stacks),
            self._p_beaten,
        )

    @property
    def _p_beaten(self) -> float:
        """Of no kind of control all of whose members, one of them surely no slower, are ahead by
        the margin: as many tests as kinds."""
        judged = [kind for kind in self.controls if any(c.sure for c in kind)]
        ahead = [max(c.p_ahead for c in kind) for kind in judged if all(c.far_ahead for c in kind)]
        return min(1.0, len(judged) * min(ahead)) if ahead else 1.0

    def verdict(self, p_clash: float, p_stacks: float, p_beaten: float) -> tuple[str, str]:
        """A word of `VERDICTS` and, where that is not all, the reason, from p-values that are
        adjusted over the run."""
        if p_beaten <= ALPHA:
            return "beaten", ""
        if p_clash <= ALPHA and self.interaction.value <= -self.margin:
            return "clashes", ""
        speed = {name: estimate for name, estimate in self.speed.items() if estimate is not None}
        if slower := [
            name for name, e in speed.items() if e.high is not None and e.high < 1 / NOT_SLOWER
        ]:
            return "slower", f"than {', '.join(slower)}"
        ahead = [c for kind in self.controls for c in kind if c.far_ahead]
        behind = [name for name, estimate in speed.items() if estimate.value < 1 / NOT_SLOWER]
        unknown = [name for name in self.speed if name not in speed]
        reasons = [
            *([BELOW] if p_stacks > ALPHA else []),
            *([f"{_names(c for c in ahead if c.sure)} may be ahead"] if any(c.sure for c in ahead) else []),
            *([f"{_names(c for c in ahead if not c.sure)} may be as fast and ahead"] if any(not c.sure for c in ahead) else []),
            *([f"it may be slower than {' and '.join(behind)}"] if behind else []),
            *([f"neither times nor FLOPs compare it with {' and '.join(unknown)}"] if unknown or not self.speed else []),
        ]  # fmt: skip
        return ("inconclusive", "; ".join(reasons)) if reasons else ("stacks", "")


BELOW = "the interaction may be below the margin"
"""Reason that more samples would settle."""


def _names(controls: Iterable[Control]) -> str:
    return " and ".join(c.stack for c in controls)


def judge(evidence: Sequence[Evidence]) -> list[dict[str, Any]]:
    """Of each combination of a run `verdict`, `reason`, and the adjusted `p_clash`, `p_stacks`,
    `p_beaten`."""
    adjusted = (
        [holm(p) for p in zip(*(e.p_values for e in evidence), strict=True)] if evidence else []
    )
    judged = []
    for e, *p in zip(evidence, *adjusted, strict=True):
        word, reason = e.verdict(*p)
        judged.append(
            {"verdict": word, "reason": reason, "p_clash": p[0], "p_stacks": p[1], "p_beaten": p[2]}
        )
    return judged


def samples_needed(interaction: Estimate, margin: float, tests: int = 1) -> int | None:
    """Units that would resolve an interaction from zero or from the margin, what is farther away,
    in 80 % of runs, where p-values are adjusted over `tests` combinations (Holm's first step); None
    without an error.

    At least as many as it takes for one imagined unit at the worst end to lie within the margin.
    """
    if interaction.se is None or interaction.bounds is None:
        return None
    level = ALPHA / 2 / tests
    enough = 2
    while (exceeds_p(_alike(enough, interaction.bounds), -margin) or 0.0) > level:
        enough += max(1, enough // 200)
    if interaction.se == 0:
        return enough
    far = max(-interaction.value, interaction.value + margin)
    detectable = statistics.detectable(interaction.se, level)
    return max(enough, int(np.ceil(interaction.n * (detectable / far) ** 2)))


def _alike(num: int, bounds: tuple[float, float]) -> Estimate:
    return statistics.constant(0.0, num, bounds)
