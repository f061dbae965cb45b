"""The first-block cache that diffusers ships, after ParaAttention's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from ditbench.method import Attachment, Stage, knob, method


@method(
    "firstblock", family="cache", stage=Stage.SCHEDULE, claims={"block-schedule"}, decides_per_batch=True,
    paper="https://github.com/chengzeyi/ParaAttention",
)  # fmt: skip
class FirstBlock:
    """Run the first block; when its residual has barely moved since it was last computed, reuse what the other blocks added.

    diffusers decides by the mean over the whole batch, so a sample's result depends on its companions.
    """

    threshold: float = knob(0.08, low=0)
    """Relative change of the first block's residual (mean absolute) up to which the other blocks are skipped; 0 changes nothing."""
    off: ClassVar[dict[str, object]] = {"threshold": 0.0}

    def check(self, pipeline: Any) -> str | None:
        """diffusers caches only transformers with its cache mix-in and with blocks it has registered."""
        import diffusers
        from diffusers.hooks._helpers import TransformerBlockRegistry
        from diffusers.models.cache_utils import CacheMixin

        transformer = pipeline.transformer
        name = type(transformer).__name__
        if not isinstance(transformer, CacheMixin):
            return f"diffusers {diffusers.__version__} has no cache for {name} (it is no CacheMixin)"
        if len(blocks := _blocks(transformer)) < 2:
            return f"{name} has {len(blocks)} blocks, so there is nothing after the first to skip"
        for block in blocks:
            try:
                TransformerBlockRegistry.get(type(block))
            except ValueError:
                return (
                    f"diffusers {diffusers.__version__} does not know the inputs and outputs of {type(block).__name__}"
                )
        return None

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Enable the cache, count the passes it shortens, and leave no registry behind."""
        from diffusers.hooks.first_block_cache import FirstBlockCacheConfig

        transformer = pipeline.transformer
        blocks = _blocks(transformer)
        _drop_empty_registries(transformer)
        patched = {id(module) for module in transformer.modules() if "forward" in vars(module)}
        at.undo(_drop_leftovers, transformer, patched)
        at.patch(transformer, "_cache_config", None)
        transformer.enable_cache(FirstBlockCacheConfig(threshold=self.threshold))
        at.undo(transformer.disable_cache)
        at.on_start(transformer._reset_stateful_cache)
        at.holds(lambda: _states(blocks[0]))
        self._count(transformer, at)

    def _count(self, transformer: Any, at: Attachment) -> None:
        """A pass in which the last block's modules did not run was a shortened one."""
        ran: list[bool] = []
        at.on_start(ran.clear)
        last = at.sublayers[-1].modules[0]
        at.undo(last.register_forward_pre_hook(lambda *_: ran.append(True)).remove)

        def after(*_: Any) -> None:
            at.count("passes_computed" if ran else "passes_reused", idle=bool(ran))
            ran.clear()

        at.undo(transformer.register_forward_hook(after).remove)


def _blocks(transformer: Any) -> list[Any]:
    """The blocks the cache covers, as diffusers finds them."""
    from diffusers.hooks._common import _ALL_TRANSFORMER_BLOCK_IDENTIFIERS as known
    from torch import nn

    lists = [part for name, part in transformer.named_children() if name in known and isinstance(part, nn.ModuleList)]
    return [block for part in lists for block in part]


def _states(head: Any) -> Iterator[Any]:
    """What the cache keeps, for each guidance pass (diffusers keeps it on the hooks)."""
    for hook in head._diffusers_hook.hooks.values():
        for state in hook.state_manager._state_cache.values():
            for kept in vars(state).values():
                if not isinstance(kept, bool):
                    yield tuple(kept) if isinstance(kept, list) else (kept,)


def _drop_empty_registries(transformer: Any) -> None:
    """A registry without hooks remembers a list of children that hooks added later are not in: forget it."""
    for module in transformer.modules():
        registry = vars(module).get("_diffusers_hook")
        if registry is not None and not registry.hooks:
            del module._diffusers_hook


def _drop_leftovers(transformer: Any, patched: set[int]) -> None:
    """diffusers puts a module's forward back by assignment; where there was none of its own, there shall be none."""
    _drop_empty_registries(transformer)
    for module in transformer.modules():
        if id(module) not in patched:
            vars(module).pop("forward", None)
