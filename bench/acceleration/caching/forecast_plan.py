"""What a forecasting schedule does at each step: which sub-layers run, and the coefficients of the
others.

T steps, L sub-layers, P guidance passes, O order, G groups of channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from ditbench.acceleration.caching.schedule import Schedule, nearest
from ditbench.acceleration.caching.whole_rows import (
    Mask,
    evenly,
    mask_of_schedule,
    round_to_budget,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FILE = "forecast.safetensors"
"""`scores` [T,L], and `learned` and `local` [T,L,P,O,G]."""
MADE_BY = "python run_bench.py prepare sparsecast"


@dataclass(kw_only=True)
class ForecastPlan:
    """For one model at one number of steps, the same for every prompt."""

    mask: Mask
    """[T,L]: which sub-layers run."""
    coefficients: NDArray[np.float32]
    """[T,L,P,O,G]."""
    _placed: dict[torch.device, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._forecasts = (self.coefficients != 0).any((2, 3, 4))
        self._skipped_next = np.concatenate([~self.mask[1:], np.zeros_like(self.mask[:1])])

    def at(self, step: int, index: int, device: torch.device) -> Tensor | None:
        """Coefficients [P,O,G] of a sub-layer at a step, on a device; None where all are zero."""
        import torch

        if not self._forecasts[step, index]:
            return None
        if device not in self._placed:
            self._placed[device] = torch.from_numpy(self.coefficients).to(device)
        return self._placed[device][step, index]

    def extends(self, step: int, index: int) -> bool:
        """Whether the output of a step will stand for the next one's, or differences of it be taken
        further: the others need none."""
        return bool(self._skipped_next[step, index]) or self.coefficients.shape[3] > 1


def unlearned(
    names: Sequence[str],
    weights: NDArray[np.int64],
    steps: int,
    keep: float,
    schedule: str,
    coefficients: str,
    order: int,
) -> ForecastPlan:
    """A plan without learning: the schedule of a file, or evenly spaced steps; all coefficients one
    or `zero`. A file for other sub-layers or steps is refused with ValueError."""
    mask = evenly(steps, weights, keep)
    if schedule:
        mask = mask_of_schedule(Schedule.read(Path(schedule)).fitted(names, steps, MADE_BY))
    value = 0.0 if coefficients == "zero" else 1.0
    table = np.full((*mask.shape, 1, order, 1), value, np.float32)
    return ForecastPlan(mask=mask, coefficients=table)


def learned(
    folder: Path,
    names: Sequence[str],
    weights: NDArray[np.int64],
    steps: int,
    keep: float,
    coefficients: str,
    *,
    stretch: bool = False,
    anew: bool = False,
) -> ForecastPlan:
    """The plan of an artefact. For another budget, and for other weights (`anew`), its scores are
    rounded again. One of another number
    of steps is refused with ValueError; with `stretch` each step has the scores and coefficients of
    the one nearest by share of the sampling done."""
    schedule = Schedule.read(folder / "schedule.json")
    fitted = schedule.fitted(names, steps, MADE_BY, stretch=stretch)
    tables, places = load_file(folder / FILE), nearest(schedule.steps, steps)
    if schedule.steps == steps and schedule.notes.get("keep") == keep and not anew:
        mask = mask_of_schedule(fitted)
    else:
        mask = round_to_budget(tables["scores"][places].astype(np.float64), weights, keep)
    table = tables["local" if coefficients == "local" else "learned"][places]
    if coefficients in ("zero", "one"):
        table = np.full_like(table, coefficients == "one")
    return ForecastPlan(mask=mask, coefficients=table)
