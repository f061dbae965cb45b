"""Eight-bit floating-point weights and activations: by torchao with a scale per row and per token,
or with calibrated scales."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ditbench.method import Attachment, Stage, method
from ditbench.method.prepare import unprepared
from ditbench.quiet import quiet

if TYPE_CHECKING:
    from ditbench.method.prepare import Workroom


@method(
    "fp8", family="quantisation", stage=Stage.PRECISION, claims={"linear-precision"},
    needs={"sm>=89", "package:torchao>=0.17"}, paper="torchao Float8DynamicActivationFloat8WeightConfig",
)  # fmt: skip
class Fp8:
    """Multiply in E4M3 on every linear layer of attention and MLP. Needs compute capability 8.9 and
    bfloat16.

    Without compilation the conversions eat the gain (diffusers' own tables say the same).
    """

    scales: Literal["token", "layer", "step"] = "token"
    """Of activations: one per token, found as they come (weights have one per row); or calibrated
    beforehand, one for each layer, or for each layer and sampler step (weights have one each)."""

    def check(self, pipeline: Any) -> str | None:
        """Without an anatomy, or in another format than bfloat16: refused."""
        import torch

        from ditbench.acceleration.quantization import without_anatomy

        if pipeline.transformer.dtype != torch.bfloat16:
            return f"fp8 products give bfloat16, and the model is in {str(pipeline.transformer.dtype).removeprefix('torch.')}"
        return without_anatomy(pipeline)

    def recipe(self) -> dict[str, Any] | None:
        """The calibration, where there is one: the same for layers and for steps."""
        return {"version": 1, "scales": "largest"} if self.scales != "token" else None

    def prepare(self, folder: Path, room: Workroom) -> dict[str, Any]:
        """Find the largest inputs by step and layer; returns notes for the manifest."""
        from ditbench.acceleration.static_fp8 import prepare_ranges

        return prepare_ranges(folder, room)

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Quantise in place."""
        from ditbench.acceleration.quantization import quantize
        from ditbench.acceleration.static_fp8 import quantize_calibrated

        if self.scales != "token":
            if at.artifact is None:
                raise unprepared(self)
            quantize_calibrated(pipeline, at, at.artifact, self.scales == "step")
            return
        with quiet():
            from torchao.quantization import Float8DynamicActivationFloat8WeightConfig
            from torchao.quantization.granularity import PerRow
        quantize(
            pipeline,
            at,
            Float8DynamicActivationFloat8WeightConfig(
                granularity=PerRow(), set_inductor_config=False
            ),
        )
