"""What costs mean on a GPU: times, memory, the batch to run with, and what to change where something
does not fit. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ditbench.models.placement import encodes_once
from ditbench.models.sampling import PER_VIDEO, count_for
from ditbench.profiling.gpus import Gpu
from ditbench.simulation.costs import DECODE, DENOISE, KEPT, TEXT, Costs
from ditbench.simulation.roofline import seconds

if TYPE_CHECKING:
    from ditbench.models.table import Model

GB = 1e9
USABLE = 0.9
"""Share of a GPU's memory that a batch is chosen for: the driver's own, fragments of the allocator
and workspaces of kernels are not simulated."""
GAIN = 0.05
"""A batch twice as large is chosen only where that saves this share of the time for a sample."""
LARGEST = 16
"""Largest batch that is chosen, a video counting as four: that of the default run."""
DOES_NOT_FIT = "does not fit"


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What costs depend on beside the model and the stack."""

    dtype: str = "bfloat16"
    text_encoding: str = "auto"
    offload: str = "none"
    vae: str = "whole"
    row_kernels: str = "auto"
    """As in `records.settings`."""

    def placement(self, model: Model) -> dict[str, Any]:
        """Which weights wait in host memory, as `Costs` asks for it."""
        return {"once": encodes_once(self.text_encoding, model), "offload": self.offload}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A batch that was chosen for a model."""

    batch: int
    """Samples; videos count as one."""
    reason: str

    def in_samples(self, model: Model) -> int:
        """The batch as `--batch-size` has it, a video counting as four."""
        return self.batch * batch_unit(model)


def choose_batch(
    model: Model,
    rows: Mapping[str, Costs],
    gpu: Gpu,
    conditions: Conditions,
    samples: int = LARGEST,
) -> Choice:
    """One batch for all stacks of a model, `rows` by name, so that their times can be compared: the
    largest power of two that `USABLE` of the memory has room for, as far as the baseline gains by it
    and there are so many samples. Stacks that do not fit at all are left out.
    """
    place = conditions.placement(model)
    most = {
        name: costs.largest_batch(USABLE * gpu.memory, **place)
        for name, costs in rows.items()
        if costs.stages
    }
    fitting = {name: n for name, n in most.items() if n}
    if not most:
        return Choice(batch=1, reason="no stack was simulated")
    if not fitting:
        return Choice(batch=1, reason=f"no stack fits on {gpu.title}")
    tightest = min(fitting, key=lambda name: fitting[name])
    limits = {
        f"{tightest} has room for no more on {gpu.title}": fitting[tightest],
        "the largest that is chosen unasked": count_for(model, LARGEST),
        "there are no more samples": samples,
    }
    reason = min(limits, key=lambda text: limits[text])
    batch, baseline = 1, rows.get("none")
    while 2 * batch <= limits[reason]:
        if baseline and _gain(baseline, batch, gpu) < GAIN:
            reason = f"twice as many save less than {GAIN:.0%} of the time for a sample"
            break
        batch *= 2
    return Choice(batch=batch, reason=reason)


def _gain(costs: Costs, batch: int, gpu: Gpu) -> float:
    """The share of the time for a sample that a batch twice as large saves."""
    try:
        one, two = (call_seconds(costs, n, gpu) / n for n in (batch, 2 * batch))
    except ValueError:
        return 0.0
    return 1 - two / one


def stage_seconds(costs: Costs, batch: int, gpu: Gpu) -> dict[str, float]:
    """The least seconds of each stage of a call; ValueError where the GPU lacks a format."""
    return {name: seconds(stage.kernels(batch), gpu) for name, stage in costs.of(batch).items()}


def call_seconds(costs: Costs, batch: int, gpu: Gpu) -> float:
    """The least seconds of a call."""
    return sum(stage_seconds(costs, batch, gpu).values())


def calls_of_run(samples: int, rounds: int, batch: int) -> int:
    """Pipeline calls of a cell as `runner.worker` makes them: in the first round a call to warm up,
    whose samples count, and the other batches; in later rounds a call to warm up and one batch."""
    batches = -(-samples // batch)
    return 1 + max(1, batches - 1) + 2 * (rounds - 1)


_COLUMNS = (
    "peak_gb", "peak_in", "weights_gb", "kept_gb", "step_ms", "kernels", "copies", "call_s",
    "max_batch", "hours",
)  # fmt: skip
_DETAILS = ("seconds", "peaks", "copies_by_line", "syncs_by_line")


def row(
    model: Model,
    stack: str,
    costs: Costs,
    gpu: Gpu,
    conditions: Conditions,
    *,
    batch: int,
    samples: int,
    rounds: int,
) -> dict[str, Any]:
    """A row of `estimate`: `batch` and `samples` are counted in videos where the model makes those.

    `status`: `ok`, `at most` (times of a stack that skips by values are those of skipping nothing),
    `does not fit` (then `note` says what would), `refused` or `failed`, the reason as `note`.
    `max_batch`: the largest that `USABLE` of the memory has room for.
    """
    head = {"model": model.name, "stack": stack, "batch": batch}
    if not costs.stages:
        return head | nothing(costs.status, costs.note) | {"syncs_by_line": dict(costs.syncs)}
    try:
        times = stage_seconds(costs, batch, gpu)
    except ValueError as error:
        return head | nothing("refused", str(error))
    place, call = conditions.placement(model), sum(times.values())
    peaks = costs.peaks(batch, **place)
    sizes = {name: sum(parts.values()) for name, parts in peaks.items()}
    biggest = max(sizes, key=lambda name: sizes[name])
    loop = costs.of(batch)[DENOISE].kernels(batch).total()
    fits = sizes[biggest] <= gpu.memory
    advice = "" if fits else advise(model, costs, gpu, conditions, batch)
    if fits and sizes[biggest] > USABLE * gpu.memory:
        free = (gpu.memory - sizes[biggest]) / GB
        advice = f"{free:.1f} GB to spare, CUDA's own among them: it may not fit"
    return head | {
        "peak_gb": sizes[biggest] / GB,
        "peak_in": biggest,
        "weights_gb": sum(peaks[DENOISE].get(part, 0) for part in ("transformer", "text encoder", "decoder")) / GB,
        "kept_gb": peaks[DENOISE].get(KEPT, 0) / GB,
        "step_ms": 1e3 * times[DENOISE] / costs.steps,
        "kernels": loop // max(1, costs.steps),
        "copies": sum(costs.copies.values()),
        "call_s": call,
        "max_batch": costs.largest_batch(USABLE * gpu.memory, **place),
        "hours": calls_of_run(samples, rounds, batch) * call / 3600 if fits else None,
        "status": costs.status if fits else DOES_NOT_FIT,
        "note": "; ".join(filter(None, (advice, costs.note))),
        "seconds": times,
        "peaks": {name: {"bytes": sizes[name], "of": parts} for name, parts in peaks.items()},
        "copies_by_line": dict(costs.copies),
        "syncs_by_line": dict(costs.syncs),
    }  # fmt: skip


def nothing(status: str, why: str) -> dict[str, Any]:
    """The rest of a row without numbers."""
    return {
        **dict.fromkeys(_COLUMNS), "status": status, "note": why, **dict.fromkeys(_DETAILS),
    }  # fmt: skip


def advise(model: Model, costs: Costs, gpu: Gpu, conditions: Conditions, batch: int) -> str:
    """By how much a batch does not fit, and what would: a smaller batch, or weights in host memory,
    or a decoder that works in parts; in one sentence."""
    place = conditions.placement(model)
    peaks = {n: sum(p.values()) for n, p in costs.peaks(batch, **place).items()}
    biggest = max(peaks, key=lambda name: peaks[name])
    where = {TEXT: "encoding text", DENOISE: "the sampler loop", DECODE: "the decoder"}[biggest]
    head = f"{where} needs {peaks[biggest] / GB:.1f} of {gpu.memory / GB:.1f} GB"
    ways, unit = [], batch_unit(model)

    def room(**changed: Any) -> int:
        """The largest batch, 1 where only all of the memory has room for that."""
        where = {**place, **changed}
        least = min(1, costs.largest_batch(gpu.memory, **where))
        return costs.largest_batch(USABLE * gpu.memory, **where) or least

    here = room()
    if here:
        ways.append(f"--batch-size {here * unit}")
    for offload in ("text", "model") if conditions.offload == "none" else ():
        n = min(batch, room(offload=offload))
        if n > here:
            size = f" --batch-size {n * unit}" if n < batch else ""
            at = costs.peaks(n, **{**place, "offload": offload}).values()
            free = gpu.memory - max(sum(parts.values()) for parts in at)
            spare = f" ({free / GB:.1f} GB to spare)" if free < (1 - USABLE) * gpu.memory else ""
            ways.append(f"--offload {offload}{size}{spare}")
            break
    if biggest == DECODE and conditions.vae == "whole":
        ways.append("--vae slicing+tiling (not simulated)")
    if conditions.dtype == "float32":
        ways.append("--dtype bfloat16")
    nothing = "no batch fits, nor would --offload text or model (sequential is not simulated)"
    return f"{head}; {'try ' + ' or '.join(ways) if ways else nothing}"


def batch_unit(model: Model) -> int:
    """How many samples of `--batch-size` one of the model's counts as."""
    return 1 if model.frames == 1 else PER_VIDEO
