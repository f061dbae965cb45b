"""cache-dit (github.com/vipshop/cache-dit) as a method: its DBCache, with its calibrators. A plug-in:
`pip install --no-deps cache-dit==1.5.3`, then `--plugin peers/cachedit.py --methods cachedit`.

Nothing of it is re-implemented: this file turns it on and off, and counts what it does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from ditbench.acceleration.caching.diffusers_caches import count_shortened
from ditbench.method import Attachment, Stage, knob, method


@method(
    "cachedit", family="cache", stage=Stage.SCHEDULE, claims={"block-schedule"},
    needs={"package:cache-dit>=1.5"}, decides_per_batch=True, paper="https://github.com/vipshop/cache-dit",
)  # fmt: skip
class CacheDiT:
    """Run the first blocks; when what they add has barely moved since it was last computed, reuse or
    forecast what the others add (DBCache of cache-dit).

    Knobs have the library's own defaults. It decides by the mean over the whole batch, so that a
    sample's result depends on its companions.
    """

    threshold: float = knob(0.08, low=0)
    """Relative change of the first blocks' residual (mean absolute) up to which the others are
    skipped (`residual_diff_threshold`)."""
    front: int = knob(8, low=1)
    """First blocks, which always run (`Fn_compute_blocks`); of models with fewer, all but one."""
    back: int = knob(0, low=0)
    """Last blocks, which always run (`Bn_compute_blocks`)."""
    warm_up: int = knob(8, low=0)
    """First steps, which are computed (`max_warmup_steps`)."""
    in_a_row: int = knob(-1, low=-1)
    """Most steps that are cached one after the other (`max_continuous_cached_steps`); -1: any."""
    calibrator: Literal["", "taylorseer", "foca"] = ""
    """What stands in place of a cached residual: itself, or a forecast of it."""
    order: int = knob(1, low=1, high=4)
    """Of the `taylorseer` calibrator."""
    dial: ClassVar[tuple[str, float, float]] = ("threshold", 0, 2)

    def check(self, pipeline: Any) -> str | None:
        """Families that cache-dit has an adapter for."""
        from cache_dit.caching.block_adapters import BlockAdapterRegister

        if BlockAdapterRegister.is_supported(pipeline):
            return None
        return f"cache-dit has no adapter for {type(pipeline).__name__}"

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Enable it on this pipeline, and count the blocks that run."""
        import cache_dit

        blocks = len(at.blocks)
        front = max(1, min(self.front, blocks - 1 - self.back))
        at.notes["front"] = front
        config = cache_dit.DBCacheConfig(
            Fn_compute_blocks=front, Bn_compute_blocks=self.back,
            residual_diff_threshold=self.threshold, max_warmup_steps=self.warm_up,
            max_continuous_cached_steps=self.in_a_row,
        )  # fmt: skip
        calibrators = {
            "taylorseer": lambda: cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=self.order),
            "foca": cache_dit.FoCaCalibratorConfig,
        }
        calibrator = calibrators[self.calibrator]() if self.calibrator else None
        from torch import nn

        lists = [m for m in pipeline.transformer.children() if isinstance(m, nn.ModuleList)]
        at.guard(type(pipeline), pipeline.transformer, *lists)
        cache_dit.enable_cache(pipeline, cache_config=config, calibrator_config=calibrator)
        at.undo(cache_dit.disable_cache, pipeline)
        manager = pipeline._context_manager
        at.holds(lambda: _tensors(_kept(manager)))
        at.on_start(lambda: _forget(manager))
        count_shortened(at, pipeline.transformer, at.blocks[front].module, "passes")


CALIBRATORS = ("calibrator", "encoder_calibrator", "cfg_calibrator", "cfg_encoder_calibrator")


def _kept(manager: Any) -> list[Any]:
    """What the contexts hold: residuals by name, and the states of calibrators."""
    contexts = manager._cached_context_manager.values()
    calibrators = (getattr(context, name) for context in contexts for name in CALIBRATORS)
    return [
        *(context.buffers for context in contexts),
        *(vars(calibrator) for calibrator in calibrators if calibrator is not None),
    ]


def _forget(manager: Any) -> None:
    """Let go of the tensors: the library does so when the next generation begins."""
    for context in manager._cached_context_manager.values():
        context.clear_buffers()
        for name in CALIBRATORS:
            if (calibrator := getattr(context, name)) is not None:
                calibrator.reset_cache()


def _tensors(held: Any) -> Iterator[Any]:
    """The tensors in dictionaries, lists, and the library's own objects."""
    from torch import Tensor

    if isinstance(held, Tensor):
        yield held
    elif isinstance(held, dict):
        for value in held.values():
            yield from _tensors(value)
    elif isinstance(held, list | tuple):
        for value in held:
            yield from _tensors(value)
    elif type(held).__module__.startswith("cache_dit"):
        yield from _tensors(vars(held))
