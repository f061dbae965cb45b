"""How far each sub-layer's output moves between any two steps of one dense generation, and the
schedule that follows: no gradients, the cheap way to a schedule of a full-size model.

T steps, L sub-layers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load_file, save_file

from ditbench.acceleration.caching.budget import DENSE
from ditbench.acceleration.caching.common_steps import Distances, schedule_of
from ditbench.acceleration.caching.knapsack import Weights
from ditbench.acceleration.caching.schedule import Schedule, nearest
from ditbench.method.probe import Trainee

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ditbench.method.attachment import Attachment
    from ditbench.method.prepare import Workroom
    from ditbench.models.sublayers import Route, Run, Sublayer

REQUESTS = 4
"""Training requests of the generation. Ours."""
VALUES = 1 << 14
"""Of each output that are kept of every step, at places drawn once: whole outputs of all steps are
60 GB for FLUX. Ours."""
FILE = "distance.safetensors"


class _Watched(Trainee):
    """Computes everything, and keeps some values of each output of every step."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.values: dict[tuple[int, int], list[Tensor]] = {}
        """By guidance pass and sub-layer: a row for each step."""

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Watch every sub-layer."""
        import torch

        places: dict[int, Tensor] = {}
        self.names = [s.name for s in at.sublayers]

        def values_of(output: Tensor) -> Tensor:
            flat = output.detach().flatten()
            if (size := flat.numel()) <= VALUES:
                return flat.float()
            if size not in places:
                drawn = torch.randint(size, (VALUES,), generator=torch.Generator().manual_seed(0))
                places[size] = drawn.to(flat.device)
            return flat[places[size]].float()

        def at_sublayer(sublayer: Sublayer) -> Route:
            def route(run: Run, hidden: Any) -> Any:
                output = run()
                parts = output if isinstance(output, tuple) else (output,)
                rows = self.values.setdefault((at.now.branch, sublayer.index), [])
                rows.append(torch.cat([values_of(part) for part in parts]))
                return output

            return route

        for sublayer in at.sublayers:
            at.reroute(sublayer, at_sublayer(sublayer))


def relative_distances(rows: Tensor) -> Tensor:
    """[T,T]: how far the row of one step [T,N] is from that of another, over the length of the
    first."""
    import torch

    lengths = rows.norm(dim=1, keepdim=True).clamp(min=1e-12)
    apart = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    relative: Tensor = apart / lengths
    return relative


def local_distances(room: Workroom) -> tuple[list[str], Distances]:
    """Names of the sub-layers, and [T,T,L]: how far each output of a step is from that of another,
    relative to its own length, added over guidance passes.

    What a change does to the picture is not in it, nor what several of them do together.
    """
    watched = _Watched()
    room.generate(watched, room.at_once(REQUESTS))
    room.tell({"done": 1, "of": 1})
    steps, layers = room.calls, len(watched.names)
    distance = np.zeros((steps, steps, layers))
    for (_, index), rows in watched.values.items():
        distance[:, :, index] += relative_distances(_stacked(rows)).cpu().numpy()
    return watched.names, distance


def _stacked(rows: Sequence[Tensor]) -> Tensor:
    import torch

    return torch.stack(list(rows))


def prepare_local(folder: Path, room: Workroom) -> dict[str, Any]:
    """Measure the distances and write `distance.safetensors`; returns notes for the manifest."""
    names, distance = local_distances(room)
    save_file({"distance": distance.astype(np.float32)}, folder / FILE)
    dense = np.full(distance.shape[1:], DENSE)
    notes = {"allocator": "local"}
    Schedule(sublayers=tuple(names), chosen=dense, notes=notes).write(folder / "schedule.json")
    return {
        "samples": room.at_once(REQUESTS),
        "distance": "relative distance of each output between any two steps",
    }


def solved_locally(
    folder: Path, names: Sequence[str], weights: Weights, steps: int, keep: float, *, stretch: bool
) -> Schedule:
    """The schedule of measured distances for a budget; a table of another number of steps is
    refused with ValueError, or with `stretch` read at the steps nearest by share of the sampling
    done."""
    measured = Schedule.read(folder / "schedule.json")
    measured.fitted(names, steps, "python run_bench.py prepare diffsparse", stretch=stretch)
    places = nearest(measured.steps, steps)
    distance = load_file(folder / FILE)["distance"].astype(np.float64)[places][:, places]
    chosen = schedule_of(distance, weights, keep)
    return Schedule(sublayers=tuple(names), chosen=chosen, notes={"keep": keep})
