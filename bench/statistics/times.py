"""Times of cells and their ratios, each with its interval. numpy and scipy only.

R rounds; timing entries are raw: session (the command that timed it), round, batch, size (samples),
and seconds by stage. Rounds of two sessions are two rounds: times are compared inside one session,
since the machine may do other work by the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

from ditbench.statistics.estimates import LEVEL, Array, Estimate, student

Batch = tuple[tuple[str, int], int, int]
"""(session and round, batch, size) of a timed call."""
DRIFT_BOUND = 0.10
"""A baseline whose slowest round took over 10 % longer than its fastest makes the times of its
model suspect."""


@dataclass(frozen=True, kw_only=True)
class Speedup:
    """Time of the baseline over time of a cell."""

    estimate: Estimate
    unit: str
    """What the interval counts as independent: "rounds", or "" where there is no interval."""


def speedup(
    baseline: Sequence[Mapping[str, Any]], cell: Sequence[Mapping[str, Any]], stage: str = "call_s"
) -> Speedup | None:
    """Ratio of the seconds spent on the same requests, paired inside rounds; None when the two
    share no timed batch.

    `baseline` and `cell` are raw timing entries (session, round, batch, size, and seconds of
    `stage`). In each round both times are summed over the batches both have, so that a batch counts by the
    seconds it took (`_by_round`); the value is the geometric mean of the rounds' ratios and the
    interval Student's t on their logarithms (R - 1). One round carries no interval: its batches
    share a process.
    """
    return time_contrast([baseline, cell], [1, -1], stage)


def time_contrast(
    timings: Sequence[Sequence[Mapping[str, Any]]], signs: Sequence[int], stage: str = "call_s"
) -> Speedup | None:
    """The product of the seconds of several cells, each to the power of its sign: paired and with
    an interval as `speedup`."""
    times = [_batches(timing, stage) for timing in timings]
    shared = sorted(
        at for at in set.intersection(*map(set, times)) if all(t[at] > 0 for t in times)
    )
    if not shared:
        return None

    def log(part: Sequence[Batch]) -> float:
        return float(
            sum(
                sign * np.log(sum(t[at] for at in part))
                for sign, t in zip(signs, times, strict=True)
            )
        )

    logs, short = _by_round(shared, log)
    centre = float(logs.mean()) + short
    value = float(np.exp(centre))
    if len(logs) < 2:
        return Speedup(estimate=Estimate(value=value, low=None, high=None, n=1, se=None), unit="")
    se = float(logs.std(ddof=1) / np.sqrt(len(logs)))
    low, high = student(centre, se, len(logs) - 1)
    estimate = Estimate(
        value=value, low=float(np.exp(low)), high=float(np.exp(high)), n=len(logs), se=value * se
    )
    return Speedup(estimate=estimate, unit="rounds")


def seconds(timing: Sequence[Mapping[str, Any]], stage: str = "call_s") -> Estimate | None:
    """Seconds per sample, all seconds over all samples: the geometric mean of the rounds
    (`_by_round`), with Student's t interval on their logarithms (R - 1); with one round no
    interval. None without a timed batch.
    """
    times = _batches(timing, stage)

    def spent(part: Sequence[Batch]) -> float:
        return sum(times[at] for at in part) / sum(at[2] for at in part)

    if not times:
        return None
    if min(times.values()) <= 0:
        return Estimate(
            value=spent(list(times)), low=None, high=None, n=len({at[0] for at in times}), se=None
        )
    logs, short = _by_round(sorted(times), lambda part: float(np.log(spent(part))))
    centre = float(logs.mean()) + short
    value = float(np.exp(centre))
    if len(logs) < 2:
        return Estimate(value=value, low=None, high=None, n=1, se=None)
    error = float(logs.std(ddof=1) / np.sqrt(len(logs)))
    low, high = (float(np.exp(x)) for x in student(centre, error, len(logs) - 1))
    return Estimate(value=value, low=low, high=high, n=len(logs), se=value * error)


def _by_round(
    batches: Sequence[Batch], log: Callable[[Sequence[Batch]], float]
) -> tuple[Array, float]:
    """`log` of each round's full batches [R], and what is to be added for the others.

    A run times all batches in its first round and one in the others. Batches of one size do the
    same work, so that each round goes by all that it has of the sizes every round has: to compare
    one and the same batch over rounds, and to add in the end what the first round's others were
    off, would leave the error of that one batch out of the interval (92 % coverage with five
    rounds on a quiet machine). A short last batch is work of another kind: the whole is that of the
    rounds with the most batches. Where no batch is in every round, each round's own are taken.
    """
    rounds = sorted({at[0] for at in batches})
    own = {r: [at for at in batches if at[0] == r] for r in rounds}
    sizes = {at[1] for at in set.intersection(*({at[1:] for at in part} for part in own.values()))}
    if not sizes:
        return np.array([log(part) for part in own.values()]), 0.0
    full = {r: [at for at in part if at[2] in sizes] for r, part in own.items()}
    most = max(map(len, own.values()))
    short = [log(own[r]) - log(full[r]) for r in rounds if len(own[r]) == most]
    return np.array([log(part) for part in full.values()]), float(np.mean(short))


def quotient(over: Mapping[str, Any], under: Mapping[str, Any]) -> Estimate | None:
    """The ratio of two independent positive estimates (as dicts), with Welch's t interval on its
    logarithm; None where one has no error or too few units for one.

    For speed-ups of different runs, which share no rounds.
    """
    parts = [
        (estimate["se"] / estimate["value"], estimate["n"] - 1)
        for estimate in (over, under)
        if estimate["se"] is not None
    ]
    if len(parts) < 2 or min(freedom for _, freedom in parts) < 1:
        return None
    value, variance = over["value"] / under["value"], sum(error**2 for error, _ in parts)
    if variance == 0:
        return Estimate(value=value, low=value, high=value, n=min(over["n"], under["n"]), se=0.0)
    freedom = variance**2 / sum(error**4 / f for error, f in parts)
    factor = float(np.exp(special.stdtrit(freedom, (1 + LEVEL) / 2) * np.sqrt(variance)))
    error = value * float(np.sqrt(variance))
    return Estimate(
        value=value, low=value / factor, high=value * factor, n=min(over["n"], under["n"]), se=error
    )


def drift(
    timing: Sequence[Mapping[str, Any]],
    beside: Sequence[Mapping[str, Any]] | None = None,
    stage: str = "call_s",
) -> float | None:
    """Slowest round over fastest, minus one, on the batches that every round of a session timed: the
    largest over the sessions, of `beside` alone where it is given. None where no session has two
    rounds.
    """
    times = _batches(timing, stage)
    sessions = {at[0][0] for at in (times if beside is None else _batches(beside, stage))}
    drifts = []
    for session in sessions:
        rounds = {at[0] for at in times if at[0][0] == session}
        if len(rounds) < 2:
            continue
        everywhere = set.intersection(*({at[1:] for at in times if at[0] == r} for r in rounds))
        seconds = [sum(times[r, *batch] for batch in everywhere) for r in rounds]
        if everywhere and min(seconds) > 0:
            drifts.append(max(seconds) / min(seconds) - 1)
    return max(drifts, default=None)


def _batches(timing: Sequence[Mapping[str, Any]], stage: str) -> dict[Batch, float]:
    """Seconds by session and round, batch, and size."""
    return {((t.get("session", ""), t["round"]), t["batch"], t["size"]): t[stage] for t in timing}
