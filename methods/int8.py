"""Eight-bit integer weights and activations by torchao: per-row weights, activations quantised per
token as they come."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ditbench.method import Attachment, Stage, method
from ditbench.method.prepare import unprepared
from ditbench.quiet import quiet

if TYPE_CHECKING:
    from ditbench.method.prepare import Workroom


@method(
    "int8", family="quantisation", stage=Stage.PRECISION, claims={"linear-precision"}, needs={"package:torchao>=0.17"},
    paper="torchao Int8DynamicActivationInt8WeightConfig, arXiv:2211.10438",
)  # fmt: skip
class Int8:
    """Multiply in eight-bit integers: dynamic W8A8 on every linear layer of attention and MLP.

    Embedders, modulation and the last projection keep their format.
    """

    down: Literal["same", "spared", "smoothed"] = "same"
    """The MLPs' down-projections, whose inputs have outliers: as the others, left in their format,
    or with the outliers moved into the weights by calibrated factors (SmoothQuant)."""

    def check(self, pipeline: Any) -> str | None:
        """A transformer without an anatomy is refused."""
        from ditbench.acceleration.quantization import without_anatomy

        return without_anatomy(pipeline)

    def recipe(self) -> dict[str, Any] | None:
        """The calibration, where there is one."""
        return {"version": 1} if self.down == "smoothed" else None

    def prepare(self, folder: Path, room: Workroom) -> dict[str, Any]:
        """Find the reach of the down-projections' inputs; returns notes for the manifest."""
        from ditbench.acceleration.quantization import prepare_ranges

        return prepare_ranges(folder, room)

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Quantise in place."""
        from ditbench.acceleration.quantization import down_projections, quantize, smooth, unread

        with quiet():  # torchao remarks on kernels it does not find; none of them is about int8
            from torchao.kernel import intmm
            from torchao.quantization import Int8DynamicActivationInt8WeightConfig
        at.patch(intmm, "safe_int_mm", unread(intmm.safe_int_mm))
        if self.down == "smoothed":
            if at.artifact is None:
                raise unprepared(self)
            smooth(at, at.artifact)
        spared = down_projections(at.sublayers) if self.down == "spared" else ()
        # torchao's recommended inductor settings would also change the precision of float32
        # products, everywhere in the process
        quantize(
            pipeline, at, Int8DynamicActivationInt8WeightConfig(set_inductor_config=False), spared
        )
