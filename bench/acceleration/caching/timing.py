"""Least times of calls that are taken in turn, and what a call computes and moves."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Key = TypeVar("Key")
Prepared = Callable[[], Callable[[], Any]]
"""f() -> the call, after what has to be done beforehand and is not timed."""


def least_times(runs: Mapping[Key, Prepared], repeats: int, device: str) -> dict[Key, float]:
    """Seconds of each call: the least of `repeats`, one of each in turn, after one that warms up. On
    a GPU by events on its stream."""
    best: dict[Key, float] = {}
    for i in range(repeats + 1):
        for key, prepared in runs.items():
            seconds = _seconds(prepared(), device)
            if i:
                best[key] = min(seconds, best.get(key, seconds))
    return best


def _seconds(run: Callable[[], Any], device: str) -> float:
    if device.startswith("cuda"):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        first.record()
        run()
        last.record()
        torch.cuda.synchronize(device)
        return float(first.elapsed_time(last) / 1000)
    began = now(device)
    run()
    return now(device) - began


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
