"""torch.compile below the routes: what a method decides to run is compiled, and not the deciding."""

from __future__ import annotations

from typing import Any, Literal

from ditbench.method import Attachment, Stage, method


@method(
    "compile", family="compilation", stage=Stage.COMPILE, claims={"compile"},
    paper="torch.compile, doi:10.1145/3620665.3640366",
)  # fmt: skip
class Compile:
    """Compile the regions of the blocks: whole blocks where nothing is rerouted inside, or where each
    sub-layer is computed for all tokens or not at all and no method looks at more than outputs, else
    each sub-layer, and norm and modulation before it. The counter `regions` counts their calls.

    Every shape is a graph of its own: the batch, its remainder at the end of a run, and the few
    numbers of tokens that sparse methods compute. Compiling takes seconds to minutes, which the
    record has apart (`compile_s`).
    """

    mode: Literal["default", "reduce-overhead", "max-autotune"] = "default"
    """Of torch.compile. `reduce-overhead` replays CUDA graphs, and `max-autotune` also tries kernels
    out; on a CPU there are no such graphs."""
    backend: Literal["inductor", "aot_eager", "eager"] = "inductor"
    """What torch.compile hands its graphs to. The other two generate no code: they show what it
    sees, in a tenth of the time, and save none."""
    dynamic: bool = False
    """Whether a dimension that changes becomes a variable of one graph, instead of a graph for each
    size: fewer graphs, of slower code. For methods that choose samples or tokens freely."""

    def uncapturable(self) -> str | None:
        """A mode with graphs of its own."""
        if self.mode == "default":
            return None
        return f"has CUDA graphs of its own with mode={self.mode!r}; leave its mode out"

    def check(self, pipeline: Any) -> str | None:
        """A transformer without an anatomy is refused, as is a machine without a compiler."""
        from ditbench.acceleration.compiling import no_compiler
        from ditbench.acceleration.quantization import without_anatomy

        lacking = no_compiler(pipeline.transformer.device) if self.backend == "inductor" else None
        return without_anatomy(pipeline) or lacking

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Compile what the methods below have left; nothing is compiled before it is called."""
        from ditbench.acceleration.compiling import Compiler

        on_gpu = pipeline.transformer.device.type == "cuda"
        options: dict[str, Any] = {
            "backend": self.backend, "fullgraph": True, "dynamic": None if self.dynamic else False,
        }  # fmt: skip
        if self.backend == "inductor":
            options["mode"] = self.mode
        Compiler(
            at, options, copies=on_gpu and "mode" in options and self.mode != "default"
        ).install()
