"""Eight-bit integer weights by torchao; multiplications stay in the model's format."""

from __future__ import annotations

from typing import Any

from ditbench.method import Attachment, Stage, method
from ditbench.quiet import quiet


@method(
    "int8wo", family="quantisation", stage=Stage.PRECISION, claims={"linear-precision"}, needs={"package:torchao>=0.17"},
    paper="torchao Int8WeightOnlyConfig",
)  # fmt: skip
class Int8Wo:
    """Keep the linear layers' weights in eight bits, a scale per row: a quarter or half of the
    memory, no fewer multiplications."""

    def check(self, pipeline: Any) -> str | None:
        """A transformer without an anatomy is refused."""
        from ditbench.acceleration.quantization import without_anatomy

        return without_anatomy(pipeline)

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Quantise in place."""
        from ditbench.acceleration.quantization import quantize

        with quiet():
            from torchao.quantization import Int8WeightOnlyConfig
        quantize(pipeline, at, Int8WeightOnlyConfig(set_inductor_config=False))
