"""T-Stitch: a small model of the family samples the first steps, the large one the rest (Pan et al.
2024, arXiv:2402.14167); and, after R-Stitch (Chen et al. 2025, arXiv:2507.17307), each sample goes
over where the small model is no longer sure."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ditbench.method import Attachment, Stage, knob, method
from ditbench.method.prepare import unprepared

if TYPE_CHECKING:
    from ditbench.method.prepare import Workroom
    from ditbench.models.table import Model

FILE = "threshold.json"
SAMPLES = 16
"""Training requests that a threshold is calibrated on."""
FURTHEST = 4.0
"""Upper end of thresholds: over the whole sampling dit-tiny's and flux-tiny's predictions go about 3."""
BESIDE = "runs the samples that went over as a sub-batch, {}; decide='share' has one switch for all"


class _Dial:
    """What `match` turns: the share of the steps, or the threshold where one is given."""

    def __get__(self, made: Stitch | None, cls: type) -> tuple[str, float, float]:
        by_threshold = made is not None and made.threshold is not None
        return ("threshold", 0, FURTHEST) if by_threshold else ("share", 0, 1)


# fastercache and magcache count steps from their own first one; lazy_queries keeps attention of a
# whole batch, and samples may go over one by one
@method(
    "stitch", family="stitching", stage=Stage.MODEL, claims={"weights", "model-schedule"},
    conflicts={"fastercache", "magcache", "lazy_queries"}, cost_by_sample=True, paper="arXiv:2402.14167, after arXiv:2507.17307",
)  # fmt: skip
class Stitch:
    """Run a smaller transformer of the same latents at some of the steps, in the place of the model's
    own, with guidance by its own two passes; nothing is trained.

    `share` counts sampler steps, rounded to whole ones. T-Stitch counts the noise schedule's
    timesteps, which is the same where a sampler's are evenly spaced, as DDIM's are.

    R-Stitch has a small language model write, and the large one a token whose entropy under the
    small one exceeds a threshold. Diffusion models have no such entropy. Ours, with
    `decide='confidence'`: the way that a sample's prediction has gone, the sum over steps of |p_t -
    p_(t-1)| / |p_t|, p_t the small model's conditional prediction (of noise, or velocity) at step
    t; a sum, because the change of one step is largest at the end where noise is predicted, and at
    the beginning where velocity is. From the first step on at which it exceeds the threshold, which
    the large model takes again as R-Stitch does, the sample is the large model's; unlike in R-Stitch
    it does not come back. Samples that went over run as a sub-batch.
    """

    share: float = knob(0.4, low=0, high=1)
    """Share of the steps that the small model takes; 0.4 is what T-Stitch finds to cost DiT-XL/2
    nothing with DiT-S/2. 0: none, 1: all. With `decide='confidence'` the mean share that `prepare`
    looks for."""
    first: Literal["small", "large"] = "small"
    """Which model takes the first steps: `large` is the order of SRDiffusion (arXiv:2505.19151)."""
    decide: Literal["share", "confidence"] = "share"
    """What decides when the large model takes over."""
    threshold: float | None = knob(None, low=0)
    """With `confidence`: the way after which a sample goes over; None: the one that `prepare` found
    for `share`."""
    small: str = ""
    """The smaller model: a folder with its transformer (or the whole pipeline), or the name of a
    model; empty: the one that the table of models names for this model. Autoencoder, text encoders
    and noise levels have to be the large one's."""
    training: int = knob(0, low=0, high=15)
    """Which calibration: every number has requests and noise of its own."""
    off: ClassVar[dict[str, object]] = {"share": 0.0}
    dial = _Dial()

    def __post_init__(self) -> None:
        if self.decide == "share":
            for name in ("threshold", "training"):
                if getattr(self, name) != getattr(type(self), name):
                    raise ValueError(f"stitch: with decide='share' {name} has no meaning")
        elif self.first == "large":
            raise ValueError(
                "stitch: with decide='confidence' the small model is asked first; first='large' "
                "goes with decide='share'"
            )

    def recipe(self) -> dict[str, Any] | None:
        """What a calibrated threshold depends on."""
        if self.decide == "share" or self.threshold is not None or not 0 < self.share < 1:
            return None
        return {"version": 1, "share": self.share, "small": self.small}

    def relies_on(self, family: str) -> dict[str, str]:
        """Samples that go over one by one leave caches no batch to keep, and a guidance pass that
        comes back would ask the small model again."""
        if self.decide == "share":
            return {}
        return {
            "block-schedule": BESIDE.format("of which a cache keeps what changes with every step"),
            "guidance": BESIDE.format(
                "which does not begin again where a guidance pass comes back"
            ),
        }

    def other_models(self, model: Model) -> list[Model]:
        """The small one, where it is in the table."""
        from ditbench.acceleration.small_model import row_of

        row = row_of(self.small, model)
        return [row] if row is not None else []

    def inputs(self) -> list[Path]:
        """The transformer's files where `small` is a folder."""
        from ditbench.acceleration.small_model import in_folder

        if not self.small or not Path(self.small).is_dir():
            return []
        folder = in_folder(Path(self.small)).folder
        assert folder is not None
        return [folder / "config.json", *sorted(folder.glob("*.safetensors"))]

    def check(self, pipeline: Any) -> str | None:
        """There has to be a smaller model that can be called as this one is."""
        from ditbench.acceleration.small_model import find_small, why_unfit

        try:
            return why_unfit(pipeline, find_small(pipeline, self.small))
        except ValueError as error:
            return str(error)

    def prepare(self, folder: Path, room: Workroom) -> dict[str, Any]:
        """Look for the threshold under which the small model takes `share` of the steps, in the mean
        over training requests; returns it and that share."""
        from ditbench.method.dial import dialled

        num = room.at_once(SAMPLES)

        def taken(threshold: float) -> float:
            counters = room.generate(replace(self, threshold=threshold), num).counters()
            small, large = (
                counters.get(f"stitch.{which}_steps", 0) for which in ("small", "large")
            )
            return small / (small + large)

        threshold, share = dialled(taken, self.share, 0.0, FURTHEST)
        room.tell({"done": 1, "of": 1})
        (folder / FILE).write_text(json.dumps({"threshold": threshold}) + "\n", encoding="utf-8")
        return {"threshold": threshold, "share": round(share, 4), "samples": num}

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Patch the transformer's forward, round all that other methods do to it."""
        from ditbench.acceleration.small_model import find_small, let_go, load_transformer
        from ditbench.acceleration.stitching import by_confidence, by_step

        if not self.share:
            return
        threshold = self.threshold
        if self.recipe() is not None:
            if at.artifact is None:
                raise unprepared(self)
            threshold = json.loads((at.artifact / FILE).read_text(encoding="utf-8"))["threshold"]
        small = load_transformer(pipeline, find_small(pipeline, self.small))
        at.undo(let_go, small)
        at.runs(small)
        if self.decide == "share" or threshold is None:
            by_step(pipeline, at, small, self.share, self.first == "small")
        else:
            by_confidence(pipeline, at, small, threshold)
