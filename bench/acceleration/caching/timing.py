"""Least times of calls that are taken in turn, and what a call computes and moves."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Key = TypeVar("Key")
Prepared = Callable[[], Callable[[], Any]]
"""f() -> the call, after what has to be done beforehand and is not timed."""
of_host = time.perf_counter
CYCLES = 2e9
"""Of a GPU in a second, about: its waiting is in cycles."""
DELAYS = (2.0, 6.0)
"""How long a GPU waits for the host, in times that the host needed before."""


@dataclass(frozen=True, kw_only=True)
class Taken:
    """Seconds of a call."""

    seconds: float
    """From its first operation to its last, the host having launched nothing beforehand."""
    host: float | None = None
    """Until the host has launched it; None where the device is the host."""
    device: float | None = None
    """Of the device, where the host has launched all of it beforehand; None likewise, and where it
    could not."""

    def least(self, other: Taken) -> Taken:
        """Of each the least."""

        def less(one: float | None, another: float | None) -> float | None:
            known = [t for t in (one, another) if t is not None]
            return min(known) if known else None

        return Taken(
            seconds=min(self.seconds, other.seconds), host=less(self.host, other.host),
            device=less(self.device, other.device),
        )  # fmt: skip


def least_times(runs: Mapping[Key, Prepared], repeats: int, device: str) -> dict[Key, Taken]:
    """What each call takes: the least of `repeats`, one of each in turn, after one that warms up. On
    a GPU by events on its stream, with the host's time and the GPU's own apart."""
    best: dict[Key, Taken] = {}
    for i in range(repeats + 1):
        for key, prepared in runs.items():
            taken = _taken(prepared, device)
            if i:
                best[key] = taken.least(best[key]) if key in best else taken
    return best


def _taken(prepared: Prepared, device: str) -> Taken:
    run = prepared()
    if not device.startswith("cuda"):
        began = now(device)
        run()
        return Taken(seconds=now(device) - began)
    torch.cuda.synchronize(device)
    seconds, host, _ = _on_gpu(run, device, 0)
    for times in DELAYS:
        own, _, ahead = _on_gpu(prepared(), device, int(times * host * CYCLES))
        if ahead:
            return Taken(seconds=seconds, host=host, device=own)
    return Taken(seconds=seconds, host=host)


def _on_gpu(run: Callable[[], Any], device: str, delay: int) -> tuple[float, float, bool]:
    """Seconds between events on the stream, and of the host; whether the GPU had not yet begun when
    the host was through, since it had waited `delay` cycles."""
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    if delay:
        torch.cuda._sleep(delay)
    first.record()
    began = of_host()
    run()
    host = of_host() - began
    last.record()
    ahead = not first.query()
    torch.cuda.synchronize(device)
    return float(first.elapsed_time(last) / 1000), host, ahead


def now(device: str) -> float:
    """Seconds on a clock, when the device has done what it was given. With one thread on the CPU the
    process's own time, which other processes do not lengthen."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()


def work_of(prepared: Prepared) -> tuple[int, int]:
    """FLOPs of a call, and the bytes that its operations read and write."""
    from ditbench.profiling.flop_counter import Counter

    run = prepared()
    counter = Counter()
    with counter.counting():
        run()
    run = prepared()
    with _Moved() as moved:
        run()
    return sum(counter.flops.values()), moved.bytes


class _Moved(TorchDispatchMode):
    """Adds up the bytes of what operations are given and return; views move nothing."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and "empty" not in func._schema.name:
            touched = tree_leaves((args, kwargs, out))
            self.bytes += sum(
                t.numel() * t.element_size() for t in touched if isinstance(t, Tensor)
            )
        return out
