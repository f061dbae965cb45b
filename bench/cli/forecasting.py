"""What a run of full-size models needs of a GPU, said before it begins, and the batch size that is
chosen where none was requested."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ditbench.profiling.gpus import Gpu
    from ditbench.runner.plan import Cell
    from ditbench.runner.spec import Spec

BUDGET = 30.0
"""Seconds that a plan may take to simulate what was not simulated before."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What is known of a plan before it is run."""

    cells: list[Cell]
    """The plan, with the batch sizes that were chosen."""
    needs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By the key of a cell: peak in 10^9 bytes, hours, and a note; empty without full-size models."""
    batches: list[str] = field(default_factory=list)
    """The batch of each model with its reason, a sentence each."""
    too_large: list[str] = field(default_factory=list)
    """What does not fit, and what to do about it, a sentence each."""
    caption: str = ""

    @property
    def peak_bytes(self) -> dict[str, float]:
        """Peak memory of cells by key, where it was estimated."""
        return {key: 1e9 * n["peak_gb"] for key, n in self.needs.items() if n.get("peak_gb")}

    def begin(self, say: Callable[[list[str]], None]) -> list[Cell]:
        """The cells, after what is known of them was said."""
        say([*self.batches, *self.too_large])
        return self.cells


def requested_batch(args: argparse.Namespace) -> bool:
    """Whether the command, or the file it names, asks for a batch size."""
    from ditbench.runner.spec import states

    return args.batch_size is not None or bool(args.spec and states(args.spec, "batch_size"))


def gpu_for(name: str | None, device: str) -> Gpu:
    """The GPU of that name; without one the GPU of the device, else an H100. ValueError for a name
    there is not."""
    from ditbench.profiling.gpus import gpu_called, gpu_named

    if name is not None:
        return gpu_named(name)
    other = gpu_named("h100")
    if not device.startswith("cuda"):
        return other
    from ditbench.runner.plan import missing_device

    if missing_device(device):
        return other
    import torch

    try:
        there = torch.cuda.get_device_properties(torch.device(device))
    except (AssertionError, RuntimeError):  # torch says there is one, and there is not
        return other
    memory = float(there.total_memory)
    known = gpu_called(there.name)
    if known:
        return replace(known, memory=min(memory, known.memory))
    return replace(other, title=f"{there.name} (at the rates of an H100)", memory=memory)


def forecast(cells: Sequence[Cell], gpu_name: str | None, requested: bool) -> Forecast:
    """What the cells of full-size models need of a GPU (`gpu_for`); a batch size of each model, the
    one its run folder was begun with where there is one, unless one was `requested`."""
    spec = cells[0].spec
    named = gpu_for(gpu_name, spec.device) if gpu_name is not None else None
    models = {cell.model.name: cell.model for cell in cells if cell.model.group == "full"}
    if not models or spec.offload == "sequential":
        return Forecast(cells=list(cells))
    from ditbench.models.sampling import sampling_of
    from ditbench.simulation.estimate import Clock, Source
    from ditbench.simulation.forecast import DOES_NOT_FIT, Conditions, choose_batch, row
    from ditbench.simulation.simulate import at_once

    gpu, clock = named or gpu_for(None, spec.device), Clock(BUDGET)
    conditions = Conditions(
        dtype=spec.dtype if spec.device != "cpu" else "bfloat16",
        text_encoding=spec.text_encoding, offload=spec.offload, vae=spec.vae,
        row_kernels=spec.row_kernels,
    )  # fmt: skip
    costs, batches, sentences, too_large = {}, [], [], []
    begun = {} if requested else _begun_with(spec)
    for name, model in models.items():
        source = Source(model, conditions)
        mine = [cell for cell in cells if cell.model.name == name]
        for cell in mine:
            stack = at_once(model, cell.stack)
            costs[cell.key] = source.costs(stack, sampling_of(model), clock.left)
        if requested:
            continue
        rows = {str(cell.stack): c for cell in mine if (c := costs[cell.key])}
        chosen = choose_batch(model, rows, gpu, conditions, mine[0].num_samples)
        batch, reason = begun.get(name, (chosen.in_samples(model), chosen.reason))
        batches.append(f"{name}={batch}")
        sentences.append(f"{name}: batch size {batch} ({reason})")
    planned = [replace(cell, spec=replace(spec, batches=tuple(batches))) for cell in cells]
    needs, hours, missing, fitting = {}, 0.0, 0, 0
    for before, cell in zip(cells, planned, strict=True):
        entry: dict[str, Any] = {"peak_gb": None, "hours": None, "note": ""}
        needs[cell.key] = entry
        if before.key not in costs:
            continue
        added = not _refused_anywhere(cell)  # else it is said what it would take, and not added up
        if (its := costs[before.key]) is None:
            if not added:
                continue
            missing += 1
            methods = shlex.quote(str(cell.stack))
            entry["note"] = (
                "not estimated: python run_bench.py estimate "
                f"--models {cell.model.name} --methods {methods}"
            )
            continue
        of_gpu = row(
            cell.model, str(cell.stack), its, gpu, conditions,
            batch=cell.batch_size, samples=cell.num_samples, rounds=spec.rounds,
        )  # fmt: skip
        status, note = of_gpu["status"], of_gpu["note"]
        if (peak := of_gpu["peak_gb"]) is not None:
            entry["peak_gb"] = round(peak, 1 if peak >= 1 else 2)
        if of_gpu["hours"] is not None:
            entry["hours"] = float(f"{of_gpu['hours']:.2g}")
        hours += (of_gpu["hours"] or 0.0) * added
        fitting += of_gpu["hours"] is not None and added
        if status == DOES_NOT_FIT:
            too_large.append(f"{cell.label} {status}: {note}")
            entry["note"] = f"{status}: {note}"
        elif status == "at most":
            entry["note"] = "hours at most: values decide what it skips"
        elif status == "ok" and note:
            entry["note"] = note
        elif status == "refused":
            entry |= {"status": "refused", "note": f"refused there: {note}"}
        elif status != "ok":
            missing += 1
            entry["note"] = f"not estimated: {note}"
    left_out = f", {missing} cells not estimated" if missing else ""
    total = f"{hours:.2g} hours at the least" if fitting else "nothing fits"
    caption = f"on {gpu.title} in {conditions.dtype}, simulated: {total}{left_out}"
    if fitting:
        caption += (
            "; a GPU takes longer than the peaks it is published with, and loading and scoring come "
            "on top"
        )
    return Forecast(
        cells=planned, needs=needs, batches=sentences, too_large=too_large, caption=caption
    )


def _refused_anywhere(cell: Cell) -> bool:
    """Whether a cell is refused for another reason than that this machine has no GPU."""
    return bool(cell.refusal) and not cell.wants_device


def _begun_with(spec: Spec) -> dict[str, tuple[int, str]]:
    """Model -> batch size and reason, of the run that lies in the run folder."""
    from ditbench.records.record import read_spec
    from ditbench.records.run_folder import RunFolder

    if not RunFolder(spec.folder).spec.exists():
        return {}
    try:
        texts = read_spec(spec.folder).get("spec", {}).get("batches") or []
    except ValueError:
        return {}
    pairs = [text.rsplit("=", 1) for text in texts]
    return {name: (int(n), "that of the run that lies there") for name, n in pairs}
