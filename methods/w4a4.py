"""Four-bit weights and activations beside a low-rank branch in the model's format (after SVDQuant,
Li et al. 2024, arXiv:2411.05007); simulated."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ditbench.method import Attachment, Stage, knob, method
from ditbench.method.prepare import unprepared

if TYPE_CHECKING:
    from ditbench.method.prepare import Workroom

SMOOTHING = 0.5
"""How much of the activations' range moves into the weights. SVDQuant searches it for each layer;
ours is SmoothQuant's default for all."""


@method(
    "w4a4",
    family="quantisation",
    stage=Stage.PRECISION,
    claims={"linear-precision"},
    paper="arXiv:2411.05007",
)
class W4A4:
    """Split the weight of every linear layer of attention and MLP into a matrix of low rank, kept
    in the model's format, and a rest in four bits, which multiplies activations in four bits.

    The format is simulated: values are rounded to it and multiplied in the model's own, so that
    quality is shown, and neither a speed-up nor a saving of memory is to be expected; the branch
    adds work. The low-rank part is the weight's singular value decomposition; SVDQuant's rounding
    by GPTQ and its search of smoothing factors are not built here.
    """

    rank: int = knob(32, low=0, high=512)
    """Of the branch (the paper's 32); 0: none, plain W4A4."""
    form: Literal["int4", "nvfp4"] = "int4"
    """Integers with a scale for each group of inputs, or E2M1 with a scale in E4M3 for each 16,
    under an outer one for a weight and for each token."""
    group: int = knob(64, low=16)
    """Inputs that share a scale, of `int4` (the paper's 64)."""
    smoothed: bool = False
    """Divide inputs by factors that multiply the weights, as calibrated by `prepare`: the paper's
    first step."""

    def check(self, pipeline: Any) -> str | None:
        """Without an anatomy, and where groups do not divide a layer: refused."""
        from ditbench.acceleration.quantization import undivided

        return undivided(pipeline, self.group if self.form == "int4" else 16)

    def recipe(self) -> dict[str, Any] | None:
        """The calibration, where there is one."""
        return {"version": 1, "ranges": "inputs of all linear layers"} if self.smoothed else None

    def prepare(self, folder: Path, room: Workroom) -> dict[str, Any]:
        """Find the largest input of every channel of every layer; returns notes for the
        manifest."""
        from ditbench.acceleration.quantization import linears_of, prepare_ranges

        return prepare_ranges(folder, room, linears_of)

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Split and round in place."""
        from ditbench.acceleration.fake_formats import CAUTION, smoothing_factors, w4a4
        from ditbench.acceleration.quantization import linears_of, quantize, read_ranges

        if self.smoothed and at.artifact is None:
            raise unprepared(self)
        places = {id(linear): i for i, linear in enumerate(linears_of(at.sublayers))}
        ranges = read_ranges(at.artifact, len(places)) if self.smoothed and at.artifact else None

        def change(linear: Any) -> None:
            factors = None
            if ranges is not None:
                factors = smoothing_factors(ranges[places[id(linear)]], linear.weight, SMOOTHING)
            w4a4(linear, at, rank=self.rank, form=self.form, group=self.group, factors=factors)

        at.notes["caution"] = CAUTION
        quantize(pipeline, at, change)
