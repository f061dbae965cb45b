"""Every call of the transformer as one CUDA graph: the host launches a step at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ditbench.method import Attachment, Stage, method


@method(
    "cudagraph", family="compilation", stage=Stage.COMPILE, claims={"launches"}, needs={"cuda"},
    conflicts={"meancache"},
    paper="CUDA graphs, https://docs.nvidia.com/cuda/cuda-programming-guide/",
)  # fmt: skip
class CudaGraph:
    """Capture the transformer's calls of a generation, each with all that the other methods do in it,
    and replay them: a step costs the host one launch, whatever is computed in it. The counters are
    of calls `captured` and `replayed`.

    The first generation of a batch size runs as it is, the second is captured, which takes as long
    again, and the following are replayed. Every step keeps a graph, and what it computes with stays
    allocated. Methods that decide by numbers are refused: a graph waits for none; so is `meancache`,
    which goes by what the sampler made between the calls.
    """

    first_calls = 2

    def lacks(self, beside: Sequence[Any]) -> str | None:
        """The others must compute the same in every generation."""
        for other in beside:
            if getattr(other, "mode", "default") != "default":
                return f"{other.name} captures its regions itself; leave its mode out"
            if other.traits.decides_per_batch or other.traits.cost_by_sample:
                return f"{other.name} decides by numbers what is computed, and a CUDA graph waits for none"
            if getattr(other, "target", "residual") not in ("residual", "auto"):
                return f"{other.name} reads the noise level of a step, and a CUDA graph waits for no number; leave its target out"
            if getattr(other, "_between", getattr(other, "between", "")) == "meanvelocity":
                return f"{other.name} goes by what the sampler made between the calls, which no graph would read anew"
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
        from ditbench.acceleration.call_graphs import CallGraphs, CudaCapture

        transformer = pipeline.transformer
        graphs = CallGraphs(
            at, transformer.forward, CudaCapture,
            lambda: getattr(pipeline, "do_classifier_free_guidance", None),
            [part for part in transformer.modules() if part is not transformer],
        )  # fmt: skip
        at.on_start(graphs.start)
        at.on_end(graphs.end)
        at.held.append(graphs.held)
        at.undo(graphs.forget)
        at.patch(transformer, "forward", graphs)
