"""Six-bit weights and eight-bit activations (the widths of Q-DiT, Chen et al. 2024,
arXiv:2406.17343); simulated."""

from __future__ import annotations

from typing import Any

from ditbench.method import Attachment, Stage, knob, method


@method(
    "w6a8",
    family="quantisation",
    stage=Stage.PRECISION,
    claims={"linear-precision"},
    paper="arXiv:2406.17343",
)
class W6A8:
    """Round the weights of every linear layer of attention and MLP to six-bit integers, a scale for
    each group of inputs, and its inputs to eight, a scale for each token.

    The format is simulated: values are rounded to it and multiplied in the model's own, so that
    quality is shown, and neither a speed-up nor a saving of memory is to be expected. Q-DiT has
    these widths with zero points and a searched group size for each layer; here scales are
    symmetric and the group is one.
    """

    group: int = knob(64, low=16)
    """Inputs that share a scale of the weights."""

    def check(self, pipeline: Any) -> str | None:
        """Without an anatomy, and where groups do not divide a layer: refused."""
        from ditbench.acceleration.quantization import undivided

        return undivided(pipeline, self.group)

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Round in place."""
        from ditbench.acceleration.fake_formats import CAUTION, w6a8
        from ditbench.acceleration.quantization import quantize

        at.notes["caution"] = CAUTION
        quantize(pipeline, at, lambda linear: w6a8(linear, at, group=self.group))
