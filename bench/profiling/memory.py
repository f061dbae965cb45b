"""Peak memory of a pipeline call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditbench.records.allocator import give_back_freed_memory

if TYPE_CHECKING:
    from ditbench.method.attached import Attached


SHARED = (
    "on the CPU it is the peak of the process, which shared this one with other cells "
    "(--process cell measures it)"
)
"""Why there is no peak, as the record says it under `peak_missing`."""


def measure_memory(
    generate: Callable[[], Any], pipe: Any, attached: Attached, device: str, shared: bool = False
) -> dict[str, Any]:
    """Memory ledger of one generation, bytes: weights (on a GPU those that are there when it
    begins), what the stack's methods keep, and the peak above the state before.

    On a GPU the peak is the allocator's; on the CPU it is the process's resident set (Linux), which
    cannot go below what was resident before and counts freed pages the C library holds on to. In a
    process that other cells `shared` before, that depends on which they were: no peak then, but
    `peak_missing`, the reason.
    """
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        generate()
        torch.cuda.synchronize(device)
    else:
        give_back_freed_memory()
        before = _resident("VmRSS")
        _forget_high_water()
        generate()
    measured = ledger(pipe, attached, device) | {"before_bytes": before}
    if shared and not device.startswith("cuda"):
        del measured["peak_bytes"], measured["before_bytes"]
        measured["peak_missing"] = SHARED
    return measured


def ledger(pipe: Any, attached: Attached | None, device: str) -> dict[str, Any]:
    """What is held, bytes: weights (those of networks that methods run beside the pipeline's too),
    what the stack's methods keep, and the peak since it was last reset; wherever a generation is, or
    where it failed."""
    parts = [part for part in pipe.components.values() if hasattr(part, "parameters")]
    storages = [
        t.untyped_storage()
        for part in (*parts, *(attached.networks() if attached else ()))
        for t in tensors_of(part)
        if t.device.type == device.partition(":")[0]
    ]
    # modules may show parts of what a method keeps, as those of `modulation_ahead` do
    kept = _places(t.untyped_storage() for t in attached.method_tensors()) if attached else {}
    weights = sum(n for place, n in _places(storages).items() if place not in kept)
    if device.startswith("cuda"):
        import torch

        peak, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.memory_reserved(device)
        source = "cuda"
    else:
        peak, reserved, source = _resident("VmHWM"), 0, "rss"
    return {
        "weights_bytes": weights,
        "cache_bytes": attached.cache_bytes() if attached else 0,
        "peak_bytes": peak,
        "reserved_bytes": reserved,
        "source": source,
    }


def _places(storages: Iterable[Any]) -> dict[int, int]:
    """Their bytes, each once."""
    return {storage._cdata: storage.nbytes() for storage in storages}


def tensors_of(part: Any) -> Iterator[Any]:
    """Parameters and buffers, those of quantized tensors by their inner tensors."""
    for tensor in (*part.parameters(), *part.buffers()):
        inner = getattr(tensor, "__tensor_flatten__", None)
        if inner is None:
            yield tensor
        else:
            yield from (
                t
                for t in (getattr(tensor, name) for name in inner()[0])
                if hasattr(t, "untyped_storage")
            )


def _resident(field_name: str) -> int:
    """VmRSS or VmHWM of this process, bytes; 0 where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    lines = [line for line in status.splitlines() if line.startswith(field_name + ":")]
    return int(lines[0].split()[1]) * 1024 if lines else 0


def _forget_high_water() -> None:
    """Set the high-water mark back to what is resident now (Linux; elsewhere it stays)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return
