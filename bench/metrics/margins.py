"""How small a difference counts as none, by metric: stated before a run, so that "lossless" means
something. No torch."""

from __future__ import annotations

from typing import Any

MARGINS = (
    ("align.shapes_v1", 0.02),
    ("fd.shapes_v1", 30.0),
    ("precision.shapes_v1", 0.05),
    ("recall.shapes_v1", 0.05),
)
"""Differences that count as none in the embedded world: one attribute in fifty; a hundredth of the
features' whole variance (2,900 to 4,700 in the three worlds); one sample in twenty."""


def read_margins(table: Any, above: str = "") -> dict[str, float]:
    """Metric -> margin of a table; a metric's name may be a quoted key, or a table in a table as
    TOML reads it without quotes.

    ValueError names the key that is no metric, or the value that is no number.
    """
    from ditbench.metrics.table import select

    if not isinstance(table, dict):
        raise ValueError(f"margins: expected a table of metrics, got {table!r}")
    margins: dict[str, float] = {}
    for key, value in table.items():
        name = f"{above}.{key}" if above else key
        if isinstance(value, dict):
            margins |= read_margins(value, name)
        elif isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"margins.{name}: expected a number, got {value!r}")
        else:
            try:
                (metric,) = select(name)
            except ValueError as error:
                raise ValueError(f"margins.{name}: {error}") from None
            if metric.against_none:
                raise ValueError(
                    f"margins.{name}: its value is already against none, so that no difference is "
                    "judged"
                )
            margins[name] = float(value)
    return margins
