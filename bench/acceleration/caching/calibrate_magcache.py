"""What methods measure of a model once, without training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ditbench.method.probe import Trainee

if TYPE_CHECKING:
    from ditbench.method.prepare import Workroom

BATCH = 8


class _Calibrated(Trainee):
    """diffusers' MagCache in its calibration mode: it skips nothing and notes ratios, which are
    read after every pass."""

    def __init__(self) -> None:
        self.ratios: dict[int, list[float]] = {}
        """By guidance pass."""

    def attach(self, pipeline: Any, at: Any) -> None:
        """Hook it in; it is told of one step more than there are, because after the last it would
        forget."""
        from diffusers.hooks.mag_cache import MagCacheConfig, apply_mag_cache

        from ditbench.acceleration.caching.diffusers_caches import put_on

        config = MagCacheConfig(calibrate=True)
        at.on_start(lambda: setattr(config, "num_inference_steps", at.now.num_steps + 1))
        put_on(pipeline.transformer, at, lambda: apply_mag_cache(pipeline.transformer, config))
        manager = (
            at.blocks[0]
            .module._diffusers_hook.get_hook("mag_cache_leader_block_hook")
            .state_manager
        )

        def after(*_: Any) -> None:
            self.ratios.setdefault(at.now.branch, []).append(
                manager.get_state().calibration_ratios[-1]
            )

        at.undo(pipeline.transformer.register_forward_hook(after).remove)


def magnitude_ratios(room: Workroom) -> list[float]:
    """Of the residual of all blocks at each step to that of the step before, [T]: the mean over
    tokens, samples and guidance passes."""
    calibrated = _Calibrated()
    room.generate(calibrated, room.at_once(BATCH))
    room.tell({"done": 1, "of": 1})
    return [sum(ratios) / len(ratios) for ratios in zip(*calibrated.ratios.values(), strict=True)]
