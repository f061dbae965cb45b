"""The linear predictor of L2P: outputs of the transformer at computed steps, and the weights by which
they make up that of another step.

T steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from ditbench.method.probe import Trainee

if TYPE_CHECKING:
    from torch import Tensor

    from ditbench.method.prepare import Workroom

GRAM = "gram.safetensors"
BATCH = 10
TRAJECTORIES = 50
"""As many as the port of arXiv:2609.39343 is fitted on."""
RIDGE = 1e-5
"""Of the mean square of an output."""


class _Recorder(Trainee):
    """Keeps every output of the transformer, by guidance pass and step."""

    def __init__(self) -> None:
        self.outputs: dict[int, list[Tensor]] = {}

    def attach(self, pipeline: Any, at: Any) -> None:
        """Watch the transformer's outputs."""

        def after(_module: Any, _inputs: Any, result: Any) -> None:
            self.outputs.setdefault(at.now.branch, []).append(result[0].detach().float())

        at.undo(pipeline.transformer.register_forward_hook(after).remove)


def write_gram(folder: Path, room: Workroom) -> dict[str, Any]:
    """Sample training requests, and write the Gram matrix [T,T] of the outputs at all steps: the mean
    over their numbers, guidance passes counted alike. Returns notes for the manifest."""
    gram = np.zeros((room.calls, room.calls))
    made = numbers = 0
    while made < TRAJECTORIES:
        num = room.at_once(min(BATCH, TRAJECTORIES - made))
        recorder = _Recorder()
        room.generate(recorder, num, seed=made)
        for outputs in recorder.outputs.values():
            flat = torch.stack([output.flatten() for output in outputs])
            # products of some thousand numbers are added up in double precision
            parts = [part @ part.T for part in flat.split(1 << 12, dim=1)]
            gram += torch.stack(parts).double().sum(0).cpu().numpy()
            numbers += flat.shape[1]
        made += num
        room.tell({"done": made, "of": TRAJECTORIES})
    save_file({"gram": gram / numbers}, folder / GRAM)
    return {"samples": made, "rms": float(np.sqrt(np.trace(gram) / numbers / len(gram)))}


def read_gram(path: Path) -> NDArray[np.float64]:
    """The Gram matrix [T,T] of a file that `write_gram` wrote."""
    return load_file(path)["gram"].astype(np.float64)


def predictor(gram: NDArray[np.float64], steps: Sequence[int], wanted: int) -> NDArray[np.float64]:
    """Weights [len(steps)] of the outputs at `steps` for the one at step `wanted`: least squares with
    a ridge of `RIDGE` times the mean of these outputs' squares, solve (G_SS + r I) w = G_St."""
    chosen = list(steps)
    left = gram[np.ix_(chosen, chosen)].copy()
    left[np.diag_indices_from(left)] += RIDGE * np.diag(left).mean()
    return np.asarray(np.linalg.solve(left, gram[chosen, wanted]), dtype=np.float64)
