"""The first-block cache that diffusers ships, after ParaAttention's."""

from __future__ import annotations

from typing import Any, ClassVar

from ditbench.acceleration.caching.diffusers_caches import count_shortened, put_on, why_not
from ditbench.method import Attachment, Stage, knob, method


@method(
    "firstblock", family="cache", stage=Stage.SCHEDULE, claims={"block-schedule"}, decides_per_batch=True,
    paper="https://github.com/chengzeyi/ParaAttention",
)  # fmt: skip
class FirstBlock:
    """Run the first block; when its residual has barely moved since it was last computed, reuse
    what the other blocks added.

    diffusers decides by the mean over the whole batch, so a sample's result depends on its
    companions.
    """

    threshold: float = knob(0.08, low=0)
    """Relative change of the first block's residual (mean absolute) up to which the other blocks
    are skipped; 0 changes nothing."""
    off: ClassVar[dict[str, object]] = {"threshold": 0.0}
    dial: ClassVar[tuple[str, float, float]] = ("threshold", 0, 2)

    def check(self, pipeline: Any) -> str | None:
        """Transformers with diffusers' cache mix-in."""
        return why_not(pipeline.transformer)

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Hook the cache in, and count the passes it shortens."""
        from diffusers.hooks.first_block_cache import FirstBlockCacheConfig, apply_first_block_cache

        transformer = pipeline.transformer
        put_on(
            transformer,
            at,
            lambda: apply_first_block_cache(transformer, FirstBlockCacheConfig(self.threshold)),
        )
        count_shortened(at, transformer, at.sublayers[-1].modules[0], "passes")
