"""The least time kernels take on a GPU: that of its peak rate, of its memory, or of a launch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ditbench.profiling.gpus import Gpu
    from ditbench.simulation.costs import Kernel


def seconds(kernels: Mapping[Kernel, int], gpu: Gpu) -> float:
    """Of kernels, each as often as it ran, one after the other (Williams et al. 2009,
    doi:10.1145/1498765.1498785, with a floor for launches). No GPU is faster with these kernels; how
    much slower it is, this does not say.

    ValueError for a product in a number format that the GPU has no rate for.
    """
    return sum(n * _one(kernel, gpu) for kernel, n in kernels.items())


def _one(kernel: Kernel, gpu: Gpu) -> float:
    computing = kernel.flops / gpu.rate(kernel.dtype) if kernel.flops else 0.0
    return max(computing, kernel.moved / gpu.bandwidth, gpu.launch)
