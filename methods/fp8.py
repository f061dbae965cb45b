"""Eight-bit floating-point weights and activations by torchao, a scale per row and per token."""

from __future__ import annotations

from typing import Any

from ditbench.method import Attachment, Stage, method
from ditbench.quiet import quiet


@method(
    "fp8", family="quantisation", stage=Stage.PRECISION, claims={"linear-precision"},
    needs={"sm>=89", "package:torchao>=0.17"}, paper="torchao Float8DynamicActivationFloat8WeightConfig",
)  # fmt: skip
class Fp8:
    """Multiply in E4M3: dynamic, rowwise scales on every linear layer of attention and MLP. Needs
    compute capability 8.9 and bfloat16.

    Without compilation the conversions eat the gain (diffusers' own tables say the same).
    """

    def check(self, pipeline: Any) -> str | None:
        """Without an anatomy, or in another format than bfloat16: refused."""
        import torch

        from ditbench.acceleration.quantization import without_anatomy

        if pipeline.transformer.dtype != torch.bfloat16:
            return f"rowwise fp8 products give bfloat16, and the model is in {str(pipeline.transformer.dtype).removeprefix('torch.')}"
        return without_anatomy(pipeline)

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Quantise in place."""
        from ditbench.acceleration.quantization import quantize

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
