"""The rows of `ditbench.analysis.interaction` as a table and as JSON. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ditbench.models.sampling import noun_for
from ditbench.statistics.estimates import Estimate

COLUMNS = (
    "model", "stack", "reading", "verdict", "reason", "basis", "gamma_flops", "gamma_clock",
    "alignment", "frechet", "control",
    "over_control", "student_control", "over_student_control", "samples_needed", "controls_left_out",
)  # fmt: skip
"""Of the rows of `interactions`, those that a table shows."""
LEGEND = (
    "gamma: the speed-up of the stack divided by the product of its methods', by FLOPs and by "
    "measured time (clock); alignment, frechet: its change minus the sum of its methods' changes; "
    "tuned: prepared in the stack, frozen: alone; [95 % intervals]."
)
"""What the columns hold."""


def describe(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of `interactions` as a table: estimates as words."""
    return [
        {name: _words(row[name]) for name in COLUMNS if name in row}
        | ({"samples_needed": needed(row)} if "samples_needed" in row else {})
        for row in rows
    ]


def needed(row: Mapping[str, Any]) -> str | None:
    """`samples_needed` of a row of `interactions` in words; of videos with what --num-samples would
    be."""
    if row.get("samples_needed") is None:
        return None
    words = f"{row['samples_needed']} {noun_for(row['frames'])}"
    return words + (f" (--num-samples {row['num_samples_needed']})" if row["frames"] > 1 else "")


def document(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of `interactions` as plain JSON, at full precision."""
    plain = [{k: v for k, v in row.items() if k != "evidence"} for row in rows]
    return [
        {k: v.as_dict() if isinstance(v, Estimate) else v for k, v in row.items()} for row in plain
    ]


def _words(value: Any) -> Any:
    if not isinstance(value, Estimate):
        return value
    reach = "" if value.low is None else f" [{value.low:.3f}, {value.high:.3f}]"
    return f"{value.value:.3f}{reach}"
