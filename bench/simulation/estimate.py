"""What a model under a stack needs of a GPU, at full size, without the GPU: memory with its ledger,
kernels, host syncs, the least time, the largest batch that fits and the hours of a run.

What it goes by is in `device.py` and `roofline.py`: shapes and published peaks. Times are lower
bounds, memory is what tensors ask for. Imports torch only inside functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditbench.method.stack import Stack
from ditbench.models.placement import encodes_once
from ditbench.models.sampling import Sampling, count_for, sampling_of
from ditbench.profiling.counting import first_line
from ditbench.profiling.gpus import Gpu
from ditbench.simulation.roofline import seconds

if TYPE_CHECKING:
    from ditbench.models.table import Model
    from ditbench.simulation.rehearsal import Rehearsal, Stand

GB = 1e9


def estimate(
    models: Sequence[Model],
    stacks: Sequence[Stack],
    gpu: Gpu,
    *,
    batch: int = 1,
    dtype: str = "bfloat16",
    steps: int | None = None,
    samples: int = 64,
    rounds: int = 3,
    changes: dict[str, Any] | None = None,
    text_encoding: str = "auto",
    offload: str = "none",
    vae: str = "whole",
) -> Iterator[dict[str, Any]]:
    """A row for every model and stack, in that order, as they are done.

    `steps` None: the model's own. `samples` and `rounds` are those of the run whose `hours` are
    told; a video counts as four samples. `changes` overrides sizes of the architecture;
    `text_encoding`, `offload` and `vae` are as in `records.settings`, and ValueError says that
    `sequential` offloading is not simulated. A stack that
    cannot be simulated is a row with the status `refused`, one that breaks down `failed`, with the
    reason as `note` and without numbers.
    """
    if offload == "sequential":
        raise ValueError("--offload: sequential is not simulated; none, text and model are")
    import torch  # noqa: F401  (the first to be imported, or torchao's remarks reach the screen)

    from ditbench.quiet import quiet

    for model in models:
        run = count_for(model, samples), rounds
        sampling = sampling_of(model)
        if steps is not None:
            sampling = replace(sampling, steps=steps)
        with quiet():
            from ditbench.simulation.device import simulated
            from ditbench.simulation.rehearsal import Stand

            with simulated() as device:
                once = encodes_once(text_encoding, model)
                stand = Stand(device, model, dtype, changes, once=once, offload=offload, vae=vae)
        for stack in stacks:
            with quiet(), simulated(device):
                row = _row(stand, _at_once(model, stack), sampling, gpu, batch, run)
            yield row


def _at_once(model: Model, stack: Stack) -> Stack:
    """The stack with what runs in place of methods that would have to be prepared."""
    return Stack(
        tuple((m.instead(model) or m) if m.recipe() is not None else m for m in stack.methods)
    )


def _row(
    stand: Stand, stack: Stack, sampling: Sampling, gpu: Gpu, batch: int, run: tuple[int, int]
) -> dict[str, Any]:
    from ditbench.simulation.device import GoesByValues

    row: dict[str, Any] = {"model": stand.model.name, "stack": str(stack), "batch": batch}
    try:
        if reason := stack.refusal(stand.pipe) or stack.kept_away(stand.offload):
            if "needs a CUDA device" in reason:  # which the simulated one is not
                reason = f"{reason.partition(':')[0]}: its kernels are not simulated"
            return row | _nothing("refused", reason)
        try:
            prepared = _prepared(stand.model, stack)
        except ValueError as error:
            return row | _nothing("refused", str(error))
        sampling = stack.adapt(sampling)
        one, two = _rehearsed(stand, stack, sampling, batch, prepared)
    except GoesByValues as reason:
        return row | _nothing("refused", str(reason)) | {"syncs_by_line": reason.syncs}
    except Exception as error:  # of a method or of the pipeline: the other rows are still wanted
        return row | _nothing("failed", f"{type(error).__name__}: {first_line(error)}")
    try:
        return row | _numbers(one, two, sampling, gpu, batch, run)
    except ValueError as error:
        return row | _nothing("refused", str(error))


def _prepared(model: Model, stack: Stack) -> dict[str, Path]:
    """The folders of what a stack was prepared for; ValueError where one is absent, as all are of
    full-size models."""
    from ditbench.method.needs import resolve

    if model.group == "tiny":
        return {name: made.folder for name, made in resolve(model, stack, "bundled").items()}
    for m in stack.methods:
        if m.recipe() is not None:
            raise ValueError(
                f"{m.name} has to be prepared, and what it is prepared with cannot be simulated"
            )
    return {}


def _rehearsed(
    stand: Stand, stack: Stack, sampling: Sampling, batch: int, prepared: dict[str, Path]
) -> tuple[Rehearsal, Rehearsal]:
    """A generation of `batch` samples, and one of twice as many as far as its memory goes."""
    from ditbench.models.requests import make_requests

    requests = make_requests(stand.model, 2 * batch, 0)
    one = stand.rehearse(stack, sampling, requests[:batch], prepared=prepared)
    latents = (one.latents[0] * 2, *one.latents[1:])
    two = stand.rehearse(
        stack, sampling, requests, prepared=prepared, until=one.peak_call, latents=latents
    )
    return one, two


def _numbers(
    one: Rehearsal, two: Rehearsal, sampling: Sampling, gpu: Gpu, batch: int, run: tuple[int, int]
) -> dict[str, Any]:
    stages = one.stages
    times = {name: seconds(stage.work.kernels, gpu) for name, stage in stages.items()}
    call = sum(times.values())
    biggest = max(stages, key=lambda name: stages[name].peak)
    at_peak = stages["denoise"].at_peak
    loop = stages["denoise"].work
    fits = largest_batch(one, two, gpu, batch)
    return {
        "peak_gb": one.peak / GB,
        "peak_in": biggest,
        "weights_gb": sum(at_peak.get(part, 0) for part in ("transformer", "text encoder", "decoder")) / GB,
        "kept_gb": at_peak.get("kept outputs", 0) / GB,
        "step_ms": 1e3 * times["denoise"] / sampling.steps,
        "kernels": loop.kernels.total() // max(1, sampling.steps),
        "copies": loop.copies.total(),
        "call_s": call,
        "max_batch": fits,
        "hours": calls_of_run(*run, batch) * call / 3600 if fits >= batch else None,
        "status": "ok",
        "note": "",
        "seconds": times,
        "peaks": {name: {"bytes": s.peak, "of": s.at_peak} for name, s in stages.items()},
        "copies_by_line": dict(loop.copies),
        "syncs_by_line": {},
    }  # fmt: skip


_COLUMNS = ("peak_gb", "peak_in", "weights_gb", "kept_gb", "step_ms", "kernels", "copies", "call_s")


def _nothing(status: str, why: str) -> dict[str, Any]:
    return {
        **dict.fromkeys((*_COLUMNS, "max_batch", "hours")), "status": status, "note": why,
        **dict.fromkeys(("seconds", "peaks", "copies_by_line", "syncs_by_line")),
    }  # fmt: skip


def largest_batch(one: Rehearsal, two: Rehearsal, gpu: Gpu, batch: int) -> int:
    """The largest batch whose peak fits in the GPU's memory, 0 where none does. The peak of every
    stage is taken to grow by as much for each sample as it did from `batch` (`one`) to twice that
    (`two`)."""
    fitting = []
    for name, stage in one.stages.items():
        grows = (two.stages[name].peak - stage.peak) / batch
        fixed = stage.peak - grows * batch
        fitting.append(int((gpu.memory - fixed) // grows) if grows > 0 else 10**6)
    return max(0, min(fitting))


def calls_of_run(samples: int, rounds: int, batch: int) -> int:
    """Pipeline calls of a cell as `runner.worker` makes them: in the first round a call to warm up,
    whose samples count, and the other batches; in later rounds a call to warm up and one batch."""
    batches = -(-samples // batch)
    return 1 + max(1, batches - 1) + 2 * (rounds - 1)
