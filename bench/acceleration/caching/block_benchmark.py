"""The block benchmark (`blocks`): one block of each kind at its real size, at every level, and what
whole schedules would take by these times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ditbench.acceleration.caching.block_times import Times, Work, spent_share
from ditbench.acceleration.caching.budget import DENSE, row_weights, untrained
from ditbench.acceleration.caching.knapsack import Weights
from ditbench.acceleration.caching.level_times import LevelProbe, lists_of, measure
from ditbench.acceleration.caching.schedule import LEVELS
from ditbench.acceleration.caching.transfer import sources, transferred
from ditbench.acceleration.caching.whole_rows import evenly
from ditbench.method.stack import Stack
from ditbench.models.family import family_named
from ditbench.models.sampling import Sampling, sampling_of
from ditbench.records.allocator import keep_freed_memory

if TYPE_CHECKING:
    from ditbench.models.sublayers import Sublayer
    from ditbench.models.table import Model

BLOCKS = 2
"""Blocks of each list that are built of a full-size model: the last of a list may be of another
form."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A pipeline whose blocks are timed, and the whole model's list of sub-layers."""

    model: Model
    pipe: Any
    sampling: Sampling
    call: tuple[Any, Any]
    """Arguments of a call of its transformer."""
    names: tuple[str, ...]
    lists: tuple[str, ...]
    weights: Weights
    """[L,S] multiply-accumulates of the whole model's sub-layers at its own size."""
    whole: bool
    """Whether the pipeline is the whole model, with its weights."""

    @property
    def calls(self) -> int:
        """Calls of the transformer in a step."""
        two = family_named(self.model.family).guidance == "two calls" and self.sampling.guidance > 1
        return 2 if two else 1


def subject_of(model: Model, device: str, dtype: str, batch: int) -> Subject:
    """A tiny model with its weights; of a full-size one a transformer of `BLOCKS` random blocks of
    each kind, at the width and the number of tokens that it has. ValueError as `load`."""
    from ditbench.models.encoderless import build_encoderless, call_encoderless
    from ditbench.models.loading import load
    from ditbench.models.requests import call_arguments, make_requests
    from ditbench.models.sublayers import call_sizes

    if not device.startswith("cuda"):
        keep_freed_memory()
    sampling, of = sampling_of(model), _listed(model)
    if whole := model.group == "tiny":
        pipe = load(model, weights="bundled", device=device, dtype=dtype)
        arguments = call_arguments(model, sampling, make_requests(model, num=batch, seed=0))
    else:
        pipe = build_encoderless(model, device, dtype, BLOCKS)
        two = replace(sampling, steps=max(2, sampling.steps))
        arguments = call_encoderless(model, pipe, two, batch)
    call = _captured(pipe, arguments)
    _, _, text = call_sizes(pipe.transformer, *call, of.grid)
    return Subject(
        model=model, pipe=pipe, sampling=sampling, call=call, whole=whole,
        names=tuple(s.name for s in of.sublayers), lists=of.lists,
        weights=row_weights(of.sublayers, int(np.prod(of.grid)), text),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Listed:
    """The whole model's sub-layers at its own size, without weights."""

    grid: tuple[int, int, int]
    sublayers: Sequence[Sublayer]
    lists: tuple[str, ...]
    """Of blocks, that each sub-layer is in."""


def _listed(model: Model) -> _Listed:
    from ditbench.models.architecture import build, describe
    from ditbench.models.encoderless import changes_of
    from ditbench.models.sublayers import sublayers
    from ditbench.quiet import quiet

    family, sampling, parts = family_named(model.family), sampling_of(model), describe(model)
    with quiet():
        meta = build(
            model, device="meta", parts=("transformer",), changes=changes_of(model)
        ).transformer
    listed = sublayers(meta)
    return _Listed(
        grid=family.grid(model.name, parts, sampling), sublayers=listed, lists=tuple(lists_of(meta, listed)),
    )  # fmt: skip


class _Called(Exception):
    """Ends a pipeline's call at its first transformer call."""


def _captured(pipe: Any, arguments: Mapping[str, Any]) -> tuple[Any, Any]:
    import torch

    given: list[tuple[Any, Any]] = []

    def stop(_: Any, args: Any, kwargs: Any) -> None:
        given.append((args, dict(kwargs)))
        raise _Called

    hook = pipe.transformer.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with torch.inference_mode():
            pipe(**arguments)
    except _Called:
        pass
    finally:
        hook.remove()
    return given[0]


def least_seconds(model: Model, batch: int, repeats: int, rate: float) -> float:
    """Seconds that the products of `times_of` take at `rate` FLOPs a second, without building them: a
    block of each list plain and dense, its sub-layers at every level, `repeats` times and twice."""
    listed = _listed(model)
    numbers = [s.block for s in listed.sublayers]
    first = dict(reversed(list(zip(listed.lists, numbers, strict=True))))
    own = [n == first[where] for n, where in zip(numbers, listed.lists, strict=True)]
    sampling = sampling_of(model)
    macs = row_weights(listed.sublayers, int(np.prod(listed.grid)), sampling.text_tokens)[own]
    both = family_named(model.family).guidance.startswith("batched") and sampling.guidance > 1
    rows = batch * (2 if both else 1)
    once = 2 * rows * int(2 * macs[:, DENSE].sum() + macs[:, 1:].sum())
    return (repeats + 2) * once / rate


def times_of(
    subject: Subject, batch: int, repeats: int, selector: str, *, compiled: bool = False
) -> Times:
    """Measured on the device that the pipeline is on; what computed rows is noted."""
    import torch

    from ditbench.models.fused_rows import kernel_of

    transformer = subject.pipe.transformer
    with torch.no_grad():
        rows = kernel_of(transformer.device)
    about = {
        "model": subject.model.name, "device": str(transformer.device),
        "dtype": str(transformer.dtype).removeprefix("torch."), "batch": batch, "selector": selector,
        "repeats": repeats, "rows": rows,
    }  # fmt: skip
    return measure(subject.pipe, subject.call, batch, selector, repeats, about, compiled=compiled)


def block_rows(times: Times, ceilings: Mapping[str, float | None]) -> list[dict[str, Any]]:
    """A row for each way of running a block, and for what each sub-layer adds at each level.

    `ceilings`: `flops` and `copied` of `profiling.probe`. `realised`: the speed-up over the dense
    block, or the dense sub-layer, by the ratio of FLOPs.
    """
    rows = []
    for block in times.blocks:
        dense = block.whole["plain"]
        for how, work in block.whole.items():
            rows.append(_row(times, block.name, "block", how, work, dense, ceilings))
        for (kind, level), work in block.levels.items():
            full = block.levels[kind, LEVELS[DENSE]]
            rows.append(_row(times, block.name, kind, f"{level:g}", work, full, ceilings))
    return rows


def _row(
    times: Times, block: str, part: str, how: str, work: Work, dense: Work,
    ceilings: Mapping[str, float | None],
) -> dict[str, Any]:  # fmt: skip
    def share(amount: float, ceiling: float | None) -> float | None:
        return amount / work.seconds / ceiling if ceiling and work.seconds > 0 else None

    faster = dense.seconds / work.seconds if work.seconds > 0 else None
    fewer = dense.flops / work.flops if work.flops > 0 else None
    apart = {
        f"{of}_ms": 1e3 * t for of in ("host", "device") if (t := getattr(work, of)) is not None
    }
    return {
        "model": times.about["model"], "block": f"{block} {part} {how}",
        "ms": 1e3 * work.seconds, **apart, "gflop": work.flops / 1e9, "moved_mb": work.moved / 1e6,
        "of_flops": share(work.flops, ceilings["flops"]),
        "of_bandwidth": share(work.moved, ceilings["copied"]),
        "speedup": faster, "flops_ratio": fewer,
        "realised": faster / fewer if faster and fewer else None,
    }  # fmt: skip


def schedules_of(subject: Subject, times: Times, keep: float) -> dict[str, NDArray[np.int64]]:
    """Levels [T,L] by name, each spending `keep`: of multiply-accumulates, or of measured time where
    the name says so."""
    steps, names, weights = subject.sampling.steps, subject.names, subject.weights
    table = times.table(names, subject.lists)
    mask = evenly(steps, weights[:, DENSE], keep)
    result = {
        "dense": np.full((steps, len(names)), DENSE),
        "evenly": np.where(mask, DENSE, 0),
        "uniform": untrained("uniform", names, weights, steps, keep).chosen,
        "uniform, by time": untrained("uniform", names, table, steps, keep).chosen,
    }
    if sources(subject.model.family):
        for name, costs in (("transferred", weights), ("transferred, by time", table)):
            result[name] = transferred(subject.model.family, names, costs, steps, keep).chosen
    return result


def schedule_rows(
    subject: Subject, times: Times, schedules: Mapping[str, NDArray[np.int64]],
    measured: Mapping[str, float],
) -> list[dict[str, Any]]:  # fmt: skip
    """A row for each schedule: what the sub-layers' FLOPs and the predicted time of the transformer's
    calls come down by, from that of plain blocks (`dense`), and the time of the whole where it ran."""
    names, lists, calls = subject.names, subject.lists, subject.calls
    dense = times.plain(names, lists) * calls * subject.sampling.steps
    rows = []
    for name, chosen in schedules.items():
        seconds = dense if name == "dense" else times.predicted(chosen, names, lists, calls)
        fewer = 1 / spent_share(chosen, subject.weights)
        run = measured.get(name)
        faster = measured["dense"] / run if run else None
        partial = (chosen > 0) & (chosen < DENSE)
        rows.append(
            {
                "model": subject.model.name, "schedule": name, "partial": float(partial.mean()),
                "flops_ratio": fewer, "predicted_s": seconds, "predicted_speedup": dense / seconds,
                "predicted_realised": dense / seconds / fewer, "measured_s": run,
                "measured_speedup": faster, "realised": faster / fewer if faster else None,
            }
        )  # fmt: skip
    return rows


def run_schedules(
    subject: Subject, schedules: Mapping[str, NDArray[np.int64]], batch: int, repeats: int,
    selector: str,
) -> dict[str, float]:  # fmt: skip
    """Seconds of the transformer's calls in whole generations under each schedule: the least of
    `repeats`, in turn. Of the un-accelerated model where it is `dense`."""
    import torch

    from ditbench.acceleration.caching.schedule import looked_at
    from ditbench.acceleration.caching.timing import now
    from ditbench.models.requests import call_arguments, make_requests

    pipe, blocks = subject.pipe, [int(name.partition(".")[0]) for name in subject.names]
    requests = make_requests(subject.model, num=batch, seed=0)
    best: dict[str, float] = {}

    def one(name: str, chosen: NDArray[np.int64]) -> float:
        probe, spent, began = LevelProbe(selector), 0.0, 0.0
        keep = np.asarray(LEVELS)[chosen]
        looked = looked_at(keep, blocks)
        stack = Stack() if name == "dense" else Stack((probe,))

        def before(*_: Any) -> None:
            nonlocal began
            began = now(str(pipe.transformer.device))

        def after(*_: Any) -> None:
            nonlocal spent
            spent += now(str(pipe.transformer.device)) - began

        with stack.attached(pipe) as attached, torch.inference_mode():
            if stack.methods:
                at = attached.attachments[probe.name]
                probe.level = lambda step, i: float(keep[min(step, len(keep) - 1), i])
                probe.cache.notes = lambda s: bool(looked[min(at.now.step, len(keep) - 1), s.index])
            attached.start(subject.sampling.steps, batch)
            hooks = [
                pipe.transformer.register_forward_pre_hook(before),
                pipe.transformer.register_forward_hook(after),
            ]
            try:
                pipe(**call_arguments(subject.model, subject.sampling, requests), output_type="np")
            finally:
                for hook in hooks:
                    hook.remove()
        return spent

    for i in range(repeats + 1):
        for name, chosen in schedules.items():
            seconds = one(name, chosen)
            if i:
                best[name] = min(seconds, best.get(name, seconds))
    return best


def summary_line(rows: Sequence[Mapping[str, Any]]) -> str:
    """How far predictions are from what was measured, in one sentence; "" where nothing was."""
    errors = [abs(r["predicted_s"] / r["measured_s"] - 1) for r in rows if r["measured_s"]]
    return f"predicted times are within {max(errors):.0%} of the measured" if errors else ""
