"""Pyramid attention broadcast as diffusers ships it (Zhao et al. 2024, arXiv:2408.12588)."""

from __future__ import annotations

from typing import Any, ClassVar

from ditbench.acceleration.caching.diffusers_caches import (
    WHOLE_SINGLE_BLOCKS,
    count_attention,
    put_on,
    timestep_of,
)
from ditbench.method import Attachment, Stage, knob, method


@method(
    "pab", family="cache", stage=Stage.SCHEDULE, claims={"block-schedule"}, paper="arXiv:2408.12588"
)
class Pab:
    """In the middle of sampling compute attention at every few steps only, and reuse its output in
    between; MLPs always run.

    diffusers keeps one output per module and knows no guidance passes, so a pipeline that runs them
    one after the other is refused.
    """

    interval: int = knob(2, low=1)
    """Steps from one computation of self- or joint attention to the next (diffusers' default); 1
    changes nothing."""
    cross_interval: int = knob(3, low=1)
    """The same of cross-attention, which moves least. Ours: the paper's 6 is for long samplings."""
    first: int = knob(800, low=0, high=1000)
    """Timestep, 1000 noise to 0 picture, below which outputs are reused (diffusers' default)."""
    last: int = knob(100, low=0, high=1000)
    """Timestep below which everything is computed again (diffusers' default)."""
    off: ClassVar[dict[str, object]] = {"interval": 1, "cross_interval": 1}

    def check(self, pipeline: Any) -> str | None:
        """Not where each guidance pass is a call: the second would be given the first one's
        attention."""
        from ditbench.models.family import family_of

        if (family := family_of(pipeline.transformer)).guidance == "two calls":
            return (
                f"diffusers' pab keeps one output per module, and {family.title}'s guidance passes, "
                "run one after the other, would share it"
            )
        return None

    def relies_on(self, family: str) -> dict[str, str]:
        """FLUX's single blocks are rerouted whole, attention and all."""
        return WHOLE_SINGLE_BLOCKS if family == "flux" and self.interval > 1 else {}

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Hook the cache in, and count the attentions it spares."""
        from diffusers.hooks.pyramid_attention_broadcast import (
            PyramidAttentionBroadcastConfig,
            apply_pyramid_attention_broadcast,
        )

        transformer = pipeline.transformer
        config = PyramidAttentionBroadcastConfig(  # type: ignore[arg-type]
            spatial_attention_block_skip_range=self.interval,
            cross_attention_block_skip_range=self.cross_interval,
            spatial_attention_timestep_skip_range=(self.last, self.first),
            cross_attention_timestep_skip_range=(self.last, self.first),
            current_timestep_callback=timestep_of(transformer, at),  # type: ignore[arg-type]
        )
        put_on(transformer, at, lambda: apply_pyramid_attention_broadcast(transformer, config))
        count_attention(transformer, at)
