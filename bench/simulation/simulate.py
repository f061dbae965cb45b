"""What a model under a stack costs, by running it on the simulated device."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from ditbench.method.stack import Stack
from ditbench.models.sampling import Sampling
from ditbench.profiling.counting import first_line
from ditbench.simulation.costs import DENOISE, SEEN, Costs, StageCosts, affine_parts, launches

if TYPE_CHECKING:
    from ditbench.models.table import Model
    from ditbench.simulation.device import Device
    from ditbench.simulation.rehearsal import Rehearsal, Stand

CAPABILITIES = ("cuda", "sm>=")
"""How needs begin that the GPU decides, whatever it is: a format it has no rate for is refused when
times are wanted."""
AT_MOST = "at most"
DECIDE = frozenset({"block-schedule", "model-schedule"})
"""Claims of methods without which everything is computed, by the pipeline's own transformer."""


class Simulator:
    """Simulates stacks of one model; the pipeline is built when it is first wanted."""

    def __init__(
        self, model: Model, dtype: str, *, vae: str = "whole", row_kernels: str = "auto",
        changes: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """`vae` and `row_kernels` as in `records.settings`, on a GPU beside the package triton;
        `changes` overrides sizes of the architecture."""
        self.model, self.dtype, self.vae, self.changes = model, dtype, vae, changes
        self.rows = "triton" if row_kernels == "auto" else row_kernels
        self._device: Device | None = None
        self._stand: Stand | None = None

    def costs(self, stack: Stack, sampling: Sampling, seconds: float = math.inf) -> Costs | None:
        """Of a generation under a stack, `sampling` being the model's, which the stack adapts;
        without stages, and with the reason, where it cannot be simulated or breaks down. None where
        that would take longer than so many seconds."""
        from ditbench.quiet import quiet

        deadline = time.monotonic() + seconds
        with quiet():
            from ditbench.models.fused_rows import computed_by
            from ditbench.simulation.device import Device, OutOfTime, simulated
            from ditbench.simulation.rehearsal import Stand

            self._device = self._device or Device()
            self._device.deadline = deadline
            with simulated(self._device), computed_by(self.rows), _capable():
                try:
                    self._stand = self._stand or Stand(
                        self._device, self.model, self.dtype, self.changes, vae=self.vae
                    )
                    return _costs(self._stand, stack, sampling)
                except OutOfTime:
                    return None
                finally:
                    self._device.deadline = math.inf


@contextmanager
def _capable() -> Iterator[None]:
    """Let torchao take the simulated device for one that has products in eight-bit floats, whatever
    GPU the process has."""
    try:
        from torchao.quantization import quant_api
    except ImportError:
        yield
        return
    with (
        mock.patch.object(quant_api, "_check_hardware_support", lambda granularity: None),
        mock.patch.object(quant_api, "is_sm_at_least_89", lambda: True),
    ):
        yield


def at_once(model: Model, stack: Stack) -> Stack:
    """The stack with what runs in place of methods that would have to be prepared."""
    return Stack(
        tuple((m.instead(model) or m) if m.recipe() is not None else m for m in stack.methods)
    )


def _costs(stand: Stand, stack: Stack, sampling: Sampling) -> Costs:
    from ditbench.simulation.device import GoesByValues, OutOfTime

    if refusal := stack.refusal(stand.pipe, besides=CAPABILITIES):
        return Costs(status="refused", note=refusal)
    try:
        prepared = _prepared(stand.model, stack)
    except ValueError as error:
        return Costs(status="refused", note=str(error))
    adapted = stack.adapt(sampling)
    try:
        return _simulated(stand, stack, adapted, prepared)
    except OutOfTime:
        raise
    except GoesByValues as reason:
        try:
            return _at_most(stand, stack, sampling, prepared, reason)
        except OutOfTime:
            raise
        except Exception as error:
            note = f"{reason}; and its memory: {first_line(error)}"
            return Costs(status="refused", note=note, syncs=reason.syncs)
    except Exception as error:  # of a method or of the pipeline: the other rows are still wanted
        return Costs(status="failed", note=f"{type(error).__name__}: {first_line(error)}")


def _at_most(
    stand: Stand, stack: Stack, sampling: Sampling, prepared: dict[str, Path], reason: Any
) -> Costs:
    """Of a stack that decides by values what it skips: the kernels of the stack without it, which
    skips nothing, and the memory that it wants itself."""
    rest = Stack(tuple(m for m in stack.methods if not m.traits.claims & DECIDE))
    if len(rest.methods) == len(stack.methods):
        raise ValueError("no method of it decides what is computed")
    names = {m.name for m in rest.methods}
    folders = {name: folder for name, folder in prepared.items() if name in names}
    whole = _simulated(stand, rest, rest.adapt(sampling), folders)
    adapted = stack.adapt(sampling)
    own = _simulated(stand, stack, adapted, prepared, reads=True)
    note = f"times are those of skipping nothing: {reason}"
    return replace(
        own,
        stages=_with_launches(own.stages, whole.stages),
        single=_with_launches(own.single, whole.single),
        status=AT_MOST, note=note, syncs=reason.syncs,
    )  # fmt: skip


def _with_launches(
    own: Mapping[str, StageCosts], whole: Mapping[str, StageCosts]
) -> dict[str, StageCosts]:
    return {name: replace(stage, launches=whole[name].launches) for name, stage in own.items()}


def _prepared(model: Model, stack: Stack) -> dict[str, Path]:
    """The folders of what a stack was prepared for; ValueError where one is absent, as all are of
    full-size models, but for students, whose sizes are the teacher's."""
    from ditbench.method.needs import resolve

    if model.is_bundled:
        return {name: made.folder for name, made in resolve(model, stack, "bundled").items()}
    for m in stack.methods:
        if m.recipe() is not None and "weights" not in m.traits.claims:
            raise ValueError(
                f"{m.name} has to be prepared, and what it is prepared with cannot be simulated"
            )
        if m.lacks(()):
            raise ValueError(
                f"{m.name} goes by what another method of the stack was prepared with, which cannot "
                "be simulated"
            )
    return {}


def _simulated(
    stand: Stand, stack: Stack, sampling: Sampling, prepared: dict[str, Path], reads: bool = False
) -> Costs:
    """From generations of as many samples as `costs.SEEN`."""
    from ditbench.models.requests import make_requests

    one, two, three = (
        stand.rehearse(
            stack, sampling, make_requests(stand.model, n, 0), prepared=prepared, reads=reads
        )
        for n in SEEN
    )
    return costs_of(one, two, three, sampling)


def costs_of(one: Rehearsal, two: Rehearsal, three: Rehearsal, sampling: Sampling) -> Costs:
    """From rehearsals of one sample, of two and of three."""
    loop = one.stages[DENOISE].work
    return Costs(
        single=_between(one, one),
        stages=_between(two, three),
        steps=sampling.steps,
        copies=dict(loop.copies),
    )


def _between(two: Rehearsal, three: Rehearsal) -> dict[str, StageCosts]:
    return {
        name: StageCosts(
            launches=launches(stage.work.kernels, three.stages[name].work.kernels),
            at_peak=affine_parts(stage.at_peak, three.stages[name].at_peak),
        )
        for name, stage in two.stages.items()
    }
