"""MagCache as diffusers ships it (Ma et al. 2025, arXiv:2506.09045): skip while known magnitudes
say that little is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ditbench.acceleration.caching.diffusers_caches import count_shortened, put_on, why_not
from ditbench.acceleration.caching.schedule import refuse_other_length
from ditbench.method import Attachment, Stage, knob, method
from ditbench.method.prepare import unprepared

if TYPE_CHECKING:
    from ditbench.method.prepare import Workroom

RATIOS = "ratios.json"


@method(
    "magcache", family="cache", stage=Stage.SCHEDULE, claims={"block-schedule"}, needs={"model:flux|wan"}, paper="arXiv:2506.09045"
)  # fmt: skip
class MagCache:
    """Reuse what all blocks together added, as long as the error told by the ratios of its
    magnitude from step to step adds up to little.

    The ratios are measured once per model by `prepare`, on training requests; the decision is the
    same for every prompt.
    """

    threshold: float = knob(0.06, low=0)
    """Accumulated error up to which steps are skipped (diffusers' default); 0 changes nothing."""
    most: int = knob(3, low=1)
    """Most steps skipped in a row (diffusers' default)."""
    retain: float = knob(0.2, low=0, high=1)
    """Share of the steps at the beginning that are never skipped (diffusers' default)."""
    training: int = knob(0, low=0, high=15)
    """Which calibration: every number has requests and noise of its own, so that several show how
    far calibrations differ."""
    off: ClassVar[dict[str, object]] = {"threshold": 0.0}
    dial: ClassVar[tuple[str, float, float]] = ("threshold", 0, 2)

    def recipe(self) -> dict[str, Any] | None:
        """The ratios depend on the model alone; at threshold 0 none are needed."""
        return None if self.threshold == 0 else {"version": 2}

    def check(self, pipeline: Any) -> str | None:
        """Transformers with diffusers' cache mix-in."""
        return why_not(pipeline.transformer)

    def prepare(self, folder: Path, room: Workroom) -> dict[str, Any]:
        """Measure the ratios of one batch of training requests, by diffusers' own calibration."""
        from ditbench.acceleration.caching.calibrate_magcache import magnitude_ratios

        if reason := self.check(room.pipe):
            raise ValueError(reason)
        ratios = magnitude_ratios(room)
        (folder / RATIOS).write_text(json.dumps(ratios), encoding="utf-8")
        return {"least_ratio": min(ratios), "greatest_ratio": max(ratios)}

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Hook the cache in, and count the passes it shortens."""
        from diffusers.hooks.mag_cache import MagCacheConfig, apply_mag_cache

        if self.threshold == 0:
            return
        if at.artifact is None:
            raise unprepared(self)
        transformer, ratios = (
            pipeline.transformer,
            json.loads((at.artifact / RATIOS).read_text(encoding="utf-8")),
        )
        config = MagCacheConfig(
            threshold=self.threshold, max_skip_steps=self.most, retention_ratio=self.retain,
            num_inference_steps=len(ratios), mag_ratios=ratios,
        )  # fmt: skip

        def same_length(*_: Any) -> None:  # diffusers would stretch them
            refuse_other_length(
                "the table of ratios",
                len(ratios),
                at.now.num_steps,
                "python run_bench.py prepare magcache",
            )

        at.undo(transformer.register_forward_pre_hook(same_length).remove)
        put_on(transformer, at, lambda: apply_mag_cache(transformer, config))
        count_shortened(at, transformer, at.sublayers[-1].modules[0], "passes")
