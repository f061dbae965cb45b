"""torch.compile below the routes: what a method decides to run is compiled, and not the deciding."""

from __future__ import annotations

from typing import Any, Literal

from ditbench.method import Attachment, Stage, method


@method(
    "compile", family="compilation", stage=Stage.COMPILE, claims={"compile"},
    paper="torch.compile; arXiv:2407.09777",
)  # fmt: skip
class Compile:
    """Compile the regions of the blocks: whole blocks where nothing is rerouted inside, else each
    sub-layer, and norm and modulation before it.

    Every shape is a graph of its own: the batch, its remainder at the end of a run, and the few
    numbers of tokens that sparse methods compute. Compiling takes seconds to minutes, which the
    record has apart (`compile_s`).
    """

    mode: Literal["default", "reduce-overhead", "max-autotune"] = "default"
    """Of torch.compile. `reduce-overhead` replays CUDA graphs, and `max-autotune` also tries kernels
    out; on a CPU there are no such graphs."""
    dynamic: bool = False
    """Whether a dimension that changes becomes a variable of one graph, instead of a graph for each
    size: fewer graphs, of slower code. For methods that choose samples or tokens freely."""

    def check(self, pipeline: Any) -> str | None:
        """A transformer without an anatomy is refused, as is a machine without a compiler."""
        from ditbench.acceleration.compiling import no_compiler
        from ditbench.acceleration.quantization import without_anatomy

        transformer = pipeline.transformer
        return without_anatomy(pipeline) or no_compiler(transformer.device)

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Compile what the methods below have left; nothing is compiled before it is called."""
        from ditbench.acceleration.compiling import Compiler

        graphs = pipeline.transformer.device.type == "cuda" and self.mode != "default"
        Compiler(at, self.mode, dynamic=self.dynamic, copies=graphs).install()
