"""Numbers as people read them: three figures, the interval beside them, and a dash where there is
none."""

from __future__ import annotations

from ditbench.analysis.rows import Interval
from ditbench.metrics.table import metrics

DASH = "-"


def number(value: float | None, figures: int = 3) -> str:
    """`figures` significant figures without an exponent between 0.0001 and a million; a dash for
    None."""
    if value is None:
        return DASH
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{figures - 1}e}"
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    if whole >= figures:
        return f"{value:.0f}"
    text = f"{value:#.{figures}g}" if abs(value) < 1 else f"{value:.{figures - whole}f}"
    return text.rstrip(".")


def fixed(value: float | None, places: int = 3, signed: bool = False) -> str:
    """A fixed number of places, with its sign when `signed`; never a negative zero; a dash for
    None."""
    if value is None:
        return DASH
    value = round(value, places) + 0.0
    return f"{value:+.{places}f}" if signed else f"{value:.{places}f}"


def interval(estimate: Interval | None, places: int = 3, signed: bool = False) -> str:
    """`[low, high]`, or "" where the estimate carries no interval. An end that rounds to zero keeps
    its sign when `signed`, which says whether zero is inside."""
    if estimate is None or estimate["low"] is None or estimate["high"] is None:
        return ""
    low, high = estimate["low"], estimate["high"]
    if signed:
        return f"[{low + 0.0:+.{places}f}, {high + 0.0:+.{places}f}]"
    return f"[{fixed(low, places)}, {fixed(high, places)}]"


def value(estimate: Interval | None, places: int = 3, signed: bool = False) -> str:
    """The value alone."""
    return fixed(None if estimate is None else estimate["value"], places, signed)


def spoken(estimate: Interval | None, places: int = 3, signed: bool = False) -> str:
    """Value and interval on one line."""
    return f"{value(estimate, places, signed)} {interval(estimate, places, signed)}".strip()


def text(value: object) -> str:
    """Anything without units; a dash where there is nothing."""
    return DASH if value in (None, "") else str(value)


def size(num_bytes: float | None) -> str:
    """Bytes in MB or GB (powers of ten)."""
    if num_bytes is None:
        return DASH
    return f"{number(num_bytes / 1e9)} GB" if num_bytes >= 1e9 else f"{number(num_bytes / 1e6)} MB"


def times(factor: float | None) -> str:
    """A speed-up."""
    return DASH if factor is None else f"{fixed(factor, 2)}x"


def share(fraction: float | None) -> str:
    """A percentage."""
    return DASH if fraction is None else f"{fixed(100 * fraction, 1)} %"


def count(number_: int, noun: str) -> str:
    """`1 sample`, `2 samples`."""
    return f"{number_} {noun}" + ("" if number_ == 1 else "s")


def decimals(metric: str) -> int:
    """Decimal places a metric is shown with."""
    row = metrics().get(metric)  # a run may have been scored by metrics that are not here
    return row.decimals if row else 3


def short(metric: str) -> str:
    """A metric's family where the extractor goes without saying, else its whole name: two distances
    may stand in one table."""
    family, _, extractor = metric.partition(".")
    return family if extractor in ("shapes_v1", "vs_none") else metric
