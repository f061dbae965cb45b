"""The frontier of quality against time: which stacks no other beats in both, and how sure that is.
numpy only."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ditbench.analysis.rows import Interval, Row
from ditbench.records.record import SHOWN

DRAWS = 4000
NORMAL = 1.959963984540054
"""Standard errors in half a 95 % interval, where the standard error itself is not given."""

Array = NDArray[np.float64]


def placed(row: Row, metric: str) -> bool:
    """Whether a row may be set against others of its model: timed beside the baseline in the same
    environment, and with a quality that has a difference to it."""
    entry = row["quality"].get(metric)
    return (
        row["status"] == SHOWN
        and row["timing"]["call_s"] is not None
        and entry is not None
        and entry["value"] is not None
        and (
            row["baseline"]
            or (
                row["speedup_call"] is not None
                and (entry["delta"] is not None or entry["against_none"])
            )
        )
    )


def compared(rows: Sequence[Row], metric: str) -> bool:
    """Whether a frontier says anything: some stack beside `none` is placed, or there is none."""
    others = [row for row in rows if not row["baseline"]]
    return not others or any(placed(row, metric) for row in others)


def frontier(rows: Sequence[Row], metric: str) -> list[Row]:
    """The placed rows that no other is at least as fast and as good as, fastest first."""
    points = [row for row in rows if placed(row, metric)]
    ahead: list[Row] = []
    best = -math.inf
    for row in sorted(points, key=lambda row: (_seconds(row), -_goodness(row, metric))):
        if (good := _goodness(row, metric)) > best:
            ahead.append(row)
            best = good
    return ahead


def probabilities(rows: Sequence[Row], metric: str) -> dict[str, float]:
    """By record key, the share of draws in which a row is on the frontier.

    Each draw gives every row another time and quality: the logarithm of its speed-up and its change
    against `none` from normal distributions with their standard errors, independent of each other;
    the baseline itself stands still, for all are measured against it. Rows without such an interval
    stand still too.
    """
    points = [row for row in rows if placed(row, metric)]
    if not points or not compared(rows, metric):
        return {}
    rng = np.random.default_rng(0)
    shape = (DRAWS, len(points))
    time = np.array([-math.log(_factor(row)) for row in points]) + rng.standard_normal(shape) * [
        _log_error(row) for row in points
    ]
    good = np.array([_gain(row, metric) for row in points]) + rng.standard_normal(shape) * [
        _error(row, metric) for row in points
    ]
    on = np.empty(shape, bool)
    for i in range(len(points)):
        faster, better = time <= time[:, [i]], good >= good[:, [i]]
        strictly = (time < time[:, [i]]) | (good > good[:, [i]])
        on[:, i] = ~(faster & better & strictly).any(1)
    return {row["key"]: float(share) for row, share in zip(points, on.mean(0), strict=True)}


def dominated(rows: Sequence[Row], metric: str) -> tuple[Array, Array]:
    """x and y of the staircase under which (or over which, where lower is better) everything is
    dominated by the frontier."""
    points = frontier(rows, metric)
    x = np.array([_seconds(row) for row in points])
    y = np.array([level(row, metric) for row in points])
    return np.repeat(x, 2)[1:], np.repeat(y, 2)[:-1]


def level(row: Row, metric: str) -> float:
    """Where a placed row is drawn on the axis of a metric."""
    height = row["quality"][metric]["level"]
    return math.nan if height is None else height


def _seconds(row: Row) -> float:
    call = row["timing"]["call_s"]
    return call["value"] if call else math.inf


def _factor(row: Row) -> float:
    speed = row["speedup_call"]
    return 1.0 if row["baseline"] or not speed else speed["value"]


def _sign(row: Row, metric: str) -> int:
    return 1 if row["quality"][metric]["better"] == "higher" else -1


def _goodness(row: Row, metric: str) -> float:
    return _sign(row, metric) * level(row, metric)


def _gain(row: Row, metric: str) -> float:
    delta = row["quality"][metric]["delta"]
    return _sign(row, metric) * float(delta["value"]) if delta else 0.0


def _error(row: Row, metric: str) -> float:
    return _width(row["quality"][metric]["delta"])


def _log_error(row: Row) -> float:
    speed = row["speedup_call"]
    if row["baseline"] or not speed or speed["low"] is None or speed["high"] is None:
        return 0.0
    if speed["low"] <= 0:
        return 0.0
    return math.log(speed["high"] / speed["low"]) / (2 * NORMAL)


def _width(estimate: Interval | None) -> float:
    return float(estimate["se"]) if estimate and estimate["se"] is not None else 0.0
