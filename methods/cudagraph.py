"""Every call of the transformer as one CUDA graph, which the host launches with one operation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ditbench.method import Attachment, Stage, method


@method(
    "cudagraph", family="compilation", stage=Stage.COMPILE, claims={"launches"}, needs={"cuda"},
    paper="CUDA graphs, https://docs.nvidia.com/cuda/cuda-programming-guide/",
)  # fmt: skip
class CudaGraph:
    """Capture the transformer's calls of a generation, each with all that the other methods do in it,
    and replay them: the host launches each with one operation, whatever is computed in it. The
    counters are of calls `captured` and `replayed`.

    The first generation of a batch size runs without capture, the second is captured, which takes as
    long again, and the following are replayed. Every step keeps a graph, and the memory that it
    computes in stays allocated. Refused are methods that choose by computed values what to compute,
    and those that use what the sampler makes between the calls.
    """

    first_calls = 2

    def lacks(self, beside: Sequence[Any]) -> str | None:
        """The others must compute the same in every generation."""
        for other in beside:
            if reason := other.uncapturable():
                return f"{other.name} {reason}"
            if other.traits.family != "control" and (
                other.traits.decides_per_batch or other.traits.cost_by_sample
            ):
                return f"{other.name} chooses by computed values what to compute, and a captured CUDA graph cannot"
        return None

    def check(self, pipeline: Any) -> str | None:
        """Weights that are moved between calls are where no graph looks for them."""
        if any(hasattr(part, "_hf_hook") for part in pipeline.transformer.modules()):
            return (
                "the transformer's weights wait in host memory between calls; leave --offload out"
            )
        return None

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Put the graphs round all that changes the transformer's forward."""
        from ditbench.acceleration.call_graphs import CudaCapture, capture_calls

        capture_calls(pipeline, at, CudaCapture)
