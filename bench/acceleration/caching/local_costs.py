"""What it costs to reuse a sub-layer's output, by that output alone: one dense generation, no
gradients. The cheap way to a schedule of a full-size model.

T steps, L sub-layers, S levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save_file

from ditbench.acceleration.caching.knapsack import Costs
from ditbench.acceleration.caching.schedule import LEVELS, Schedule
from ditbench.method.probe import Trainee

if TYPE_CHECKING:
    from torch import Tensor

    from ditbench.method.attachment import Attachment
    from ditbench.method.prepare import Workroom
    from ditbench.models.sublayers import Route, Run, Sublayer

REQUESTS = 4
"""Training requests of the generation. Ours."""


class _Watched(Trainee):
    """Computes everything, and sums how far each output is from that of the step before."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.changes: dict[tuple[int, int], list[Tensor]] = {}
        """By step and sub-layer, for each guidance pass: squared change over squared output."""

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Watch every sub-layer."""
        before: dict[tuple[int, int], tuple[Tensor, ...]] = {}
        at.keeps(before)
        self.names = [s.name for s in at.sublayers]

        def at_sublayer(sublayer: Sublayer) -> Route:
            def route(run: Run, hidden: Any) -> Any:
                output = run()
                parts = output if isinstance(output, tuple) else (output,)
                if (last := before.get((at.now.branch, sublayer.index))) is not None:
                    self.changes.setdefault((at.now.step, sublayer.index), []).append(
                        _relative_change(parts, last)
                    )
                before[at.now.branch, sublayer.index] = parts
                return output

            return route

        for sublayer in at.sublayers:
            at.reroute(sublayer, at_sublayer(sublayer))


def _relative_change(new: Sequence[Tensor], old: Sequence[Tensor]) -> Tensor:
    """A number, left on the device: nothing waits for it inside the sampler loop."""
    import torch

    change = [(a.float() - b.float()).square().sum() for a, b in zip(new, old, strict=True)]
    whole = [a.float().square().sum() for a in new]
    return torch.stack(change).sum() / (torch.stack(whole).sum() + 1e-12)


def local_costs(room: Workroom) -> tuple[list[str], Costs]:
    """Names of the sub-layers, and the table [T L, S]: the relative squared change of a sub-layer's
    output since the step before, times the share of tokens a level does not recompute.

    What a change does to the picture is not in it, nor what several of them do together.
    """
    watched = _Watched()
    room.generate(watched, REQUESTS)
    room.tell({"done": 1, "of": 1})
    steps, layers = room.calls, len(watched.names)
    change = np.zeros((steps, layers))
    for (step, index), values in watched.changes.items():
        change[step, index] = sum(float(value) for value in values)
    reused = 1 - np.asarray(LEVELS)
    return watched.names, (change[..., None] * reused).reshape(steps * layers, -1)


def prepare_local(folder: Path, room: Workroom) -> dict[str, Any]:
    """Measure the table and write `cost.safetensors`; returns notes for the manifest."""
    names, costs = local_costs(room)
    save_file({"cost": costs.astype(np.float32)}, folder / "cost.safetensors")
    layers = len(names)
    dense = np.full((len(costs) // layers, layers), len(LEVELS) - 1)
    notes = {"allocator": "local"}
    Schedule(sublayers=tuple(names), chosen=dense, notes=notes).write(folder / "schedule.json")
    return {"samples": REQUESTS, "distance": "squared change of each output since the step before"}
