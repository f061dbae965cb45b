"""ParaAttention (github.com/chengzeyi/ParaAttention) as a method: its first-block cache, with its
TaylorSeer. A plug-in: `pip install --no-deps para-attn==0.3.38`, then `--plugin
peers/paraattention.py --methods paraattention`.

Nothing of it is re-implemented: this file turns it on and off, and counts what it does.
"""

from __future__ import annotations

from typing import Any, ClassVar

from ditbench.acceleration.caching.diffusers_caches import count_shortened
from ditbench.method import Attachment, Stage, knob, method


@method(
    "paraattention", family="cache", stage=Stage.SCHEDULE, claims={"block-schedule"},
    needs={"package:para-attn", "model:wan"}, decides_per_batch=True,
    paper="https://github.com/chengzeyi/ParaAttention",
)  # fmt: skip
class ParaAttention:
    """Run the first block; when what it adds has barely moved since it was last computed, reuse or
    forecast what the others add.

    It decides by the mean over the whole batch, so that a sample's result depends on its
    companions. Of the families here it fits Wan alone: version 0.3.38 was written for diffusers
    whose single blocks of FLUX took one stream. `firstblock`, which diffusers ships after it, runs on
    FLUX too.
    """

    threshold: float = knob(0.08, low=0)
    """Relative change of the first block's residual (mean absolute) up to which the others are
    skipped (`residual_diff_threshold`); the value of its examples."""
    warm_up: int = knob(0, low=0)
    """First steps, which are computed (`warmup_steps`)."""
    order: int = knob(0, low=0, high=4)
    """Of a Taylor forecast of the residual; 0: the residual itself."""
    dial: ClassVar[tuple[str, float, float]] = ("threshold", 0, 2)

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Enable it on this pipeline, and count the calls it shortens."""
        from para_attn.first_block_cache import utils
        from para_attn.first_block_cache.diffusers_adapters import apply_cache_on_pipe

        at.guard(type(pipeline), pipeline.transformer)
        contexts: list[Any] = []

        def created(**how: Any) -> Any:
            contexts[:] = [create(**how)]
            return contexts[0]

        create = at.patch(utils, "create_cache_context", created)
        apply_cache_on_pipe(
            pipeline, residual_diff_threshold=self.threshold, warmup_steps=self.warm_up,
            enable_taylorseer=self.order > 0,
            taylorseer_kwargs={"n_derivatives": self.order} if self.order else {},
        )  # fmt: skip
        at.holds(lambda: _tensors(contexts))
        at.on_start(lambda: _forget(contexts))
        count_shortened(at, pipeline.transformer, at.blocks[1].module, "passes")


def _forecasts(contexts: list[Any]) -> list[Any]:
    """TaylorSeers of the context of the generation under way, one for each guidance pass."""
    pairs = [(context.taylorseer, context.alter_taylorseer) for context in contexts]
    return [forecast for pair in pairs for forecast in pair if forecast is not None]


def _tensors(contexts: list[Any]) -> list[Any]:
    """What is kept: residuals, and their differences."""
    tensors = [tensor for context in contexts for tensor in context.buffers.values()]
    for forecast in _forecasts(contexts):
        tensors += [t for step in forecast.state.values() for t in step if t is not None]
    return tensors


def _forget(contexts: list[Any]) -> None:
    """Let go of the tensors: the library keeps them until the next generation."""
    for context in contexts:
        context.clear_buffers()
    for forecast in _forecasts(contexts):
        forecast.reset_cache()
