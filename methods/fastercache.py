"""FasterCache as diffusers ships it (Lv et al. 2024, arXiv:2410.19355)."""

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
    "fastercache",
    family="cache",
    stage=Stage.SCHEDULE,
    claims={"block-schedule"},
    paper="arXiv:2410.19355",
)
class FasterCache:
    """Late in sampling compute attention at every few steps only; in between extrapolate from its
    last two outputs.

    The paper's other half, guessing the unconditional pass, needs a batch of unconditional before
    conditional halves handed over by keyword, which of our pipelines SD3's alone does, and it is not
    built here; so what can be measured is FLUX, whose guidance is one pass.
    """

    interval: int = knob(2, low=1)
    """Steps from one computation of attention to the next (diffusers' default); 1 changes
    nothing."""
    first: int = knob(681, low=0, high=999)
    """Timestep, 1000 noise to 0 picture, below which outputs are extrapolated (diffusers'
    default)."""
    weight: float = knob(0.5, low=0)
    """How far: last + weight * (last - one before) (diffusers' default; the paper lets it grow from
    0 to 1)."""
    off: ClassVar[dict[str, object]] = {"interval": 1}

    def check(self, pipeline: Any) -> str | None:
        """Guidance in one pass only."""
        from ditbench.models.family import family_of

        family = family_of(pipeline.transformer)
        if family.guidance == "batched, conditional last" and family.hidden_by_keyword:
            return (
                "fastercache would guess the unconditional half of a batch, which is not built here: "
                f"it runs where guidance is one pass, and {family.title}'s is two"
            )
        if family.guidance != "embedded":
            return (
                "diffusers' fastercache needs unconditional and conditional halves of a batch, in "
                "this order and by keyword, or "
                f"guidance in one pass; {type(pipeline).__name__} has neither"
            )
        return None

    def relies_on(self, family: str) -> dict[str, str]:
        """FLUX's single blocks are rerouted whole, attention and all."""
        return WHOLE_SINGLE_BLOCKS if family == "flux" and self.interval > 1 else {}

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Hook the cache in, and count the attentions it spares."""
        from diffusers.hooks.faster_cache import FasterCacheConfig, apply_faster_cache

        transformer = pipeline.transformer
        config = FasterCacheConfig(  # type: ignore[arg-type]
            spatial_attention_block_skip_range=self.interval,
            spatial_attention_timestep_skip_range=(-1, self.first),
            attention_weight_callback=lambda _: self.weight,
            is_guidance_distilled=True,
            current_timestep_callback=timestep_of(transformer, at),  # type: ignore[arg-type]
        )

        def apply() -> None:
            apply_faster_cache(transformer, config)
            # there is no pass to guess
            transformer._diffusers_hook.remove_hook("faster_cache_denoiser", recurse=False)

        put_on(transformer, at, apply)
        count_attention(transformer, at)
