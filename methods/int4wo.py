"""Four-bit integer weights in groups by torchao; multiplications stay in the model's format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ditbench.method import Attachment, Stage, knob, method
from ditbench.quiet import quiet

PADDED_TO = 1024
"""Inputs of a layer that the packed kernel reads at once (torchao's tile_packed_to_4d)."""


def padding(linears: Sequence[Any]) -> float:
    """The share of multiplications that padding adds to linear layers of the same rows: 0.78 of a
    layer of 1152 inputs, which becomes one of 2048."""
    plain = sum(m.in_features * m.out_features for m in linears)
    padded = sum(-(-m.in_features // PADDED_TO) * PADDED_TO * m.out_features for m in linears)
    return round(float(padded / plain) - 1, 4)


@method(
    "int4wo", family="quantisation", stage=Stage.PRECISION, claims={"linear-precision"}, needs={"package:torchao>=0.17"},
    paper="torchao Int4WeightOnlyConfig, IntxWeightOnlyConfig",
)  # fmt: skip
class Int4Wo:
    """Keep the linear layers' weights in four bits, a scale per group of inputs.

    On CUDA packed, with torchao's kernel (bfloat16), which pads the inputs of a layer to a multiple
    of 1024: the note `padding` says how much more is multiplied, and FLOPs count it. Elsewhere the
    same numbers one to a byte, so that memory is that of `int8wo`.
    """

    group: int = knob(32, low=16)
    """Inputs that share a scale."""

    def check(self, pipeline: Any) -> str | None:
        """Without an anatomy, on CUDA in another format than bfloat16, and where groups do not
        divide a layer: refused."""
        import torch

        from ditbench.acceleration.quantization import without_anatomy
        from ditbench.models.sublayers import sublayers

        if reason := without_anatomy(pipeline):
            return reason
        transformer = pipeline.transformer
        if transformer.device.type == "cuda" and transformer.dtype != torch.bfloat16:
            return f"torchao's int4 kernel is for bfloat16, and the model is in {str(transformer.dtype).removeprefix('torch.')}"
        widths = {linear.in_features for part in sublayers(transformer) for linear in part.linears}
        if odd := [width for width in sorted(widths) if width % self.group]:
            return f"groups of {self.group} do not divide a layer of {odd[0]} inputs"
        return None

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Quantise in place."""
        import torch

        from ditbench.acceleration.quantization import quantize
        from ditbench.models.sublayers import sublayers

        with quiet():
            from torchao.quantization import Int4WeightOnlyConfig, IntxWeightOnlyConfig
            from torchao.quantization.granularity import PerGroup
        if pipeline.transformer.device.type == "cuda":
            scheme: Any = Int4WeightOnlyConfig(
                group_size=self.group,
                set_inductor_config=False,
                int4_packing_format="tile_packed_to_4d",
            )
            at.notes["padding"] = padding(
                [m for part in sublayers(pipeline.transformer) for m in part.linears]
            )
        else:
            scheme = IntxWeightOnlyConfig(
                weight_dtype=torch.int4,  # type: ignore[attr-defined]
                granularity=PerGroup(self.group),
            )
        quantize(pipeline, at, scheme)
