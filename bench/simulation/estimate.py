"""What a model under a stack needs of a GPU, at full size, without the GPU: memory with its ledger,
kernels, host syncs, the least time, the largest batch that fits and the hours of a run.

What it goes by is in `device.py` and `roofline.py`: shapes and published peaks. Times are lower
bounds, memory is what tensors ask for. What was simulated before is read (`shelf.py`). Imports torch
only where something has to be simulated.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ditbench.method.stack import Stack
from ditbench.models.sampling import Sampling, count_for, sampling_of
from ditbench.profiling.gpus import Gpu
from ditbench.simulation.costs import Costs
from ditbench.simulation.forecast import Conditions, choose_batch, row
from ditbench.simulation.shelf import SIMULATED, Shelf
from ditbench.simulation.simulate import Simulator, at_once

if TYPE_CHECKING:
    from ditbench.models.table import Model


class Source:
    """Where the costs of one model's stacks are from: what was simulated before, or a simulation."""

    def __init__(
        self,
        model: Model,
        conditions: Conditions,
        changes: dict[str, Any] | None = None,
    ) -> None:
        """`changes` overrides sizes of the architecture, as `part.key`."""
        self.model, self.conditions = model, conditions
        # what a tiny model is simulated with was prepared for it, and may change
        self.shelf = Shelf(model) if not model.is_bundled and not changes else None
        self._simulator = Simulator(
            model, conditions.dtype, vae=conditions.vae, row_kernels=conditions.row_kernels,
            changes=changes,
        )  # fmt: skip

    def costs(self, stack: Stack, sampling: Sampling, seconds: float = math.inf) -> Costs | None:
        """Of a generation under a stack; None where it was not simulated before and that would take
        longer than so many seconds."""
        if reason := stack.kept_away(self.conditions.offload):
            return Costs(status="refused", note=reason)
        key = ""
        if self.shelf:
            try:
                adapted = stack.adapt(sampling)
            except ValueError as error:
                return Costs(status="refused", note=str(error))
            now = self.conditions
            key = self.shelf.key(stack, adapted, now.dtype, now.vae, now.row_kernels)
            if before := self.shelf.get(key):
                return before
        if seconds <= 0:
            return None
        costs = self._simulator.costs(stack, sampling, seconds)
        if self.shelf and costs and costs.status in SIMULATED:
            self.shelf.add(key, costs)
        return costs


class Clock:
    """Seconds that simulations may take together."""

    def __init__(self, budget: float) -> None:
        self._end = time.monotonic() + budget

    @property
    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()


def estimate(
    models: Sequence[Model],
    stacks: Sequence[Stack],
    gpu: Gpu,
    *,
    batch: int | None = None,
    dtype: str = "bfloat16",
    steps: int | None = None,
    samples: int = 64,
    rounds: int = 3,
    changes: dict[str, Any] | None = None,
    text_encoding: str = "auto",
    offload: str = "none",
    vae: str = "whole",
    row_kernels: str = "auto",
) -> Iterator[dict[str, Any]]:
    """A row (`forecast.row`) for every model and stack, in that order.

    `batch` None: the one that `run` would choose. `steps` None: the model's own. `samples` and
    `rounds` are those of the run whose `hours` are told; a video counts as four in `samples` and
    `batch`. `changes` overrides sizes of the architecture; `text_encoding`, `offload`, `vae` and
    `row_kernels` are as in `records.settings`, and ValueError says that `sequential` offloading is not simulated. A
    stack that cannot be simulated is a row with the status `refused`, one that breaks down `failed`,
    with the reason as `note` and without numbers.
    """
    if offload == "sequential":
        raise ValueError("--offload: sequential is not simulated; none, text and model are")
    conditions = Conditions(
        dtype=dtype, text_encoding=text_encoding, offload=offload, vae=vae, row_kernels=row_kernels
    )
    for model in models:
        sampling, number = sampling_of(model), count_for(model, samples)
        if steps is not None:
            sampling = replace(sampling, steps=steps)
        source = Source(model, conditions, changes)
        rows: dict[str, Costs] = {}
        for stack in (at_once(model, stack) for stack in stacks):
            costs = source.costs(stack, sampling)
            assert costs is not None  # it had all the time it needs
            rows[str(stack)] = costs
            if batch is None:
                continue  # which depends on all stacks
            yield row(
                model, str(stack), costs, gpu, conditions,
                batch=min(number, count_for(model, batch)), samples=number, rounds=rounds,
            )  # fmt: skip
        if batch is not None:
            continue
        chosen = choose_batch(model, rows, gpu, conditions, number)
        for name, costs in rows.items():
            yield row(
                model, name, costs, gpu, conditions,
                batch=chosen.batch, samples=number, rounds=rounds,
            )  # fmt: skip
