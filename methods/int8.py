"""Eight-bit integer weights and activations by torchao: per-row weights, activations quantised per token as they come."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from ditbench.method import Attachment, Stage, method
from ditbench.quiet import quiet

if TYPE_CHECKING:
    from torch import nn


@method(
    "int8", family="quantisation", stage=Stage.PRECISION, claims={"linear-precision"}, needs={"package:torchao>=0.17"},
    paper="torchao Int8DynamicActivationInt8WeightConfig",
)  # fmt: skip
class Int8:
    """Multiply in eight-bit integers: dynamic W8A8 on every linear layer of attention and MLP.

    Embedders, modulation and the last projection keep their format: they are few of the multiplications and most of the damage.
    """

    def check(self, pipeline: Any) -> str | None:
        """A transformer without an anatomy is refused: nobody has said which of its linear layers are safe."""
        from ditbench.anatomy import sublayers

        try:
            sublayers(pipeline.transformer)
        except ValueError as error:
            return str(error)
        return None

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Quantise in place; on detach the very parameters that were there before go back.

        Away from the CPU they wait in host memory meanwhile, so that the device's memory is what it would be without them.
        """
        with quiet():  # torchao remarks on kernels it does not find; none of them is about int8
            from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
        # torchao's recommended inductor settings would also change the precision of float32 products, everywhere in the process
        scheme = Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
        for sublayer in at.sublayers:
            for linear in sublayer.linears:
                original = linear.weight
                at.undo(_put_back, linear, original, original.device, "extra_repr" in vars(linear))
                quantize_(linear, scheme)
                if original.device.type not in ("cpu", "meta"):
                    original.data = original.data.cpu()
                at.count("linears")


def share_of_linear_macs(pipeline: Any, generate: Callable[[], object]) -> float:
    """The share (0..1) of the multiplications in the transformer's linear layers that `int8` does in integers.

    Counted over `generate()`, which runs the pipeline; it may be attached or not.
    """
    from torch import nn

    from ditbench.anatomy import sublayers

    chosen = {id(linear) for sublayer in sublayers(pipeline.transformer) for linear in sublayer.linears}
    macs = {True: 0, False: 0}

    def count(linear: nn.Linear, inputs: tuple[Any, ...]) -> None:
        macs[id(linear) in chosen] += inputs[0].numel() * linear.out_features

    with ExitStack() as undo:
        for module in pipeline.transformer.modules():
            if isinstance(module, nn.Linear):
                undo.callback(module.register_forward_pre_hook(count).remove)
        generate()
    return macs[True] / (macs[True] + macs[False])


def _put_back(linear: Any, original: Any, device: Any, had_repr: bool) -> None:
    original.data = original.data.to(device)
    linear.weight = original
    if not had_repr:
        vars(linear).pop("extra_repr", None)
