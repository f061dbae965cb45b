"""What a device does now: the rate of one large product of matrices and of one large copy, to be held
against what its kind can do. A GPU that is slowed down, shared or cut in parts does less.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

ROWS = {"cuda": 8192, "cpu": 512}
"""Rows and columns of the matrices: 0.4 GB of bfloat16 in three of them on a GPU."""
COPIED = {"cuda": 2**30, "cpu": 2**22}
"""Bytes of the copy."""
REPEATS = 5


def probe(device: str, dtype: str) -> dict[str, float | None]:
    """`flops`: floating-point operations a second of a product of square matrices of `dtype`;
    `copied`: bytes a second read and written by a copy. Each the median of `REPEATS`, after one
    that warms up; None where the clock gave no time.
    """
    import torch

    kind = torch.device(device).type
    rates = {
        "flops": _rate(2 * ROWS[kind] ** 3, _product(ROWS[kind], device, dtype)),
        "copied": _rate(2 * COPIED[kind], _copy(COPIED[kind], device)),
    }
    if kind == "cuda":
        torch.cuda.empty_cache()
    return rates


def _rate(work: float, seconds: float) -> float | None:
    return work / seconds if 0 < seconds < math.inf else None


def _product(n: int, device: str, dtype: str) -> float:
    import torch

    matrix = torch.rand(n, n, device=device, dtype=getattr(torch, dtype))
    product = torch.empty_like(matrix)
    return _median(lambda: torch.mm(matrix, matrix, out=product), device)


def _copy(size: int, device: str) -> float:
    import torch

    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return _median(lambda: target.copy_(source), device)


def _median(work: Callable[[], Any], device: str) -> float:
    import torch

    def once() -> float:
        if device.startswith("cuda"):
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            work()
            last.record()
            torch.cuda.synchronize(device)
            return float(first.elapsed_time(last) / 1000)
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    once()
    return statistics.median(once() for _ in range(REPEATS))
