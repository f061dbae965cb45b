"""Errors as the status and reason of a record, with what memory held where it ran out. No torch."""

from __future__ import annotations

import traceback
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ditbench.method.plugins import line_in_plugin
from ditbench.models.sampling import PER_VIDEO
from ditbench.records.files import read_json
from ditbench.records.text import clean, one_line
from ditbench.runner.spec import Spec

if TYPE_CHECKING:
    from ditbench.records.run_folder import RunFolder
    from ditbench.runner.plan import Cell

NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")
"""What errors of other types say where memory ran out: torch's of its CPU allocator is a
RuntimeError."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error is that memory ran out, on whatever device."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(text in _text(error) for text in NO_MEMORY)


def advice(spec: Spec, batch: int, ledger: dict[str, Any]) -> str:
    """What was held where memory ran out, and which settings hold less."""
    parts = (
        ("weights", ledger.get("weights_bytes")),
        ("kept by methods", ledger.get("cache_bytes")),
        ("peak", ledger.get("peak_bytes")),
    )
    sizes = ", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in parts if size)
    less = [
        *([f"--batch-size below {batch}"] if batch > 1 else []),
        *(["--dtype bfloat16"] if spec.dtype == "float32" else []),
        *(["--offload text"] if spec.offload == "none" and spec.device != "cpu" else []),
        *(["--vae slicing+tiling"] if spec.vae == "whole" else []),
    ]
    return "; ".join([*([sizes] if sizes else []), *([f"try {' or '.join(less)}"] if less else [])])


def with_batch(cell: Cell, batch: int) -> Cell:
    """The cell with so many samples a call; as it is where that is 0."""
    if not batch:
        return cell
    unit = 1 if cell.model.frames == 1 else PER_VIDEO
    return replace(cell, spec=replace(cell.spec, batches=(f"{cell.model.name}={batch * unit}",)))


def halved_to(batch: int, result: dict[str, Any]) -> dict[str, Any]:
    """What the record of a cell says whose batch was halved until its memory was enough."""
    why = f"{batch}: memory ran out with the planned one, so times are paired with no other stack's"
    return {"batch": batch, "notes": result.get("notes", {}) | {"batch": why}}


def halved_before(folder: RunFolder, job: Any) -> int:
    """The batch that a cell's first round came down to, for a `worker.Job`; 0 where it is the planned
    one."""
    first = folder.round(job.key, 0)
    if not (job.round or job.again) or not first.exists():
        return 0
    return int(read_json(first).get("batch", 0))


def failure(error: BaseException, why: str = "") -> dict[str, Any]:
    """Status, reason and traceback of an error."""
    try:
        trace = traceback.format_exc()[-6000:]
    except Exception:  # an error that cannot be shown
        trace = ""
    status = "oom" if out_of_memory(error) else "failed"
    return {"status": status, "reason": why + _sentence(error), "traceback": clean(trace)}


def _sentence(error: BaseException) -> str:
    """The first line of an error, with its type unless it was written for people, and where in a
    plug-in it was raised; not longer than a table bears."""
    text = _text(error).strip().splitlines()
    line = one_line(text[0]) if text else ""
    if isinstance(error, ValueError) and line:
        return line
    return f"{type(error).__name__}: {line}".rstrip(": ") + line_in_plugin(error)


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "its text is not available"
