"""What full-size models need of GPUs, as a table for people: simulated, not measured. No torch."""

from __future__ import annotations

import tomllib

from ditbench.models.table import select
from ditbench.profiling.gpus import TABLE, gpu_named
from ditbench.reports.sections.format import DASH
from ditbench.simulation.costs import Costs
from ditbench.simulation.forecast import DOES_NOT_FIT, Conditions, batch_unit, choose_batch, row
from ditbench.simulation.rebuild import rows_of


def needs_table(name: str) -> str:
    """A model's stacks: kernels a step, reads of the device's values a generation, the peak of one
    sample, and on each GPU the least seconds a sample with the batch that `run` would choose, which
    stands above. What is refused stands below with its reason. ValueError for a model of which
    nothing was simulated."""
    (model,) = select(name)
    there = rows_of(model)
    if not there:
        raise ValueError(f"nothing of {name} was simulated; `ditbench.simulation.rebuild` does it")
    conditions, gpus = Conditions(), {key: gpu_named(key) for key in _gpus()}
    batches = {key: choose_batch(model, there, gpu, conditions).batch for key, gpu in gpus.items()}
    unit = "s a video" if model.frames > 1 else "s a sample"
    heads = [f"{key}, batch {batches[key] * batch_unit(model)}" for key in gpus]
    lines = [
        f"| {model.name}, {unit} | kernels | reads | GB | {' | '.join(heads)} |",
        "|---|" + "---:|" * (3 + len(gpus)),
    ]
    refused: list[str] = []
    for stack, costs in there.items():
        if not costs.stages:
            refused.append(f"| `{stack}` | {_short(stack, costs.note)} |")
            continue
        of_gpu = {
            key: row(
                model, stack, costs, gpu, conditions,
                batch=batches[key], samples=batches[key], rounds=1,
            )
            for key, gpu in gpus.items()
        }  # fmt: skip
        cells = [_cell(of_gpu[key], costs) for key in gpus]
        one = costs.peak(1, **conditions.placement(model)) / 1e9
        kernels = next(iter(of_gpu.values()))["kernels"]
        reads = sum(costs.syncs.values()) or DASH
        lines.append(f"| `{stack}` | {kernels} | {reads} | {one:.1f} | {' | '.join(cells)} |")
    reasons = ["", "| refused | reason |", "|---|---|", *refused] if refused else []
    return "\n".join([*lines, *reasons, ""])


def _gpus() -> list[str]:
    return list(tomllib.loads(TABLE.read_text(encoding="utf-8")))


def _cell(of_gpu: dict[str, object], costs: Costs) -> str:
    seconds, status = of_gpu["call_s"], of_gpu["status"]
    if status == "refused":
        return "no float8"
    if status == DOES_NOT_FIT:
        return DOES_NOT_FIT
    assert isinstance(seconds, float) and isinstance(of_gpu["batch"], int)
    mark = "≤ " if costs.status != "ok" else ""
    return f"{mark}{seconds / of_gpu['batch']:.3g}"


def _short(stack: str, note: str) -> str:
    return note.removeprefix(f"{stack}: ").removeprefix(f"{stack} ").partition("; ")[0]
