"""A diffusion transformer seen as a list of blocks that can be rerouted whole: for methods that
skip more than a sub-layer.

Streams: the tuple of what a block changes. `(image,)` [B,N,D] in DiT, PixArt and Wan, `(image,
text)` [B,N,D], [B,T,D] in FLUX.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ditbench.models.sublayers import ANATOMY, Patch, family_of

Streams = tuple[Tensor, ...]
RunBlock = Callable[[Streams], Streams]
BlockRoute = Callable[[RunBlock, Streams], Streams]
"""`route(run, streams)` returns the block's output streams; it may call `run(streams)` or not."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """One block of the transformer: norms, modulation, sub-layers, gates and residuals."""

    index: int
    module: nn.Module
    pair: bool
    """Whether it changes the text too (FLUX)."""

    @property
    def name(self) -> str:
        """Such as `block 3`."""
        return f"block {self.index}"

    def reroute(self, route: BlockRoute, patch: Patch) -> None:
        """Send every call through `route(run, streams)`."""
        original, pair = self.module.forward, self.pair

        def forward(*args: Any, **kwargs: Any) -> Any:
            image, rest = (
                (kwargs.pop("hidden_states"), args)
                if "hidden_states" in kwargs
                else (args[0], args[1:])
            )
            if not pair:
                return route(lambda streams: (original(streams[0], *rest, **kwargs),), (image,))[0]
            text = kwargs.pop("encoder_hidden_states")

            def run(streams: Streams) -> Streams:
                seen = {"hidden_states": streams[0], "encoder_hidden_states": streams[1]}
                text, image = original(*rest, **seen, **kwargs)
                return image, text

            image, text = route(run, (image, text))
            return text, image

        patch(self.module, "forward", forward)


def blocks(transformer: nn.Module) -> list[Block]:
    """The transformer's blocks in the order they run; ValueError for a class without an anatomy."""
    pair, (_, stacks) = family_of(transformer) == "flux", ANATOMY[type(transformer).__name__]
    modules = [block for name, _ in stacks for block in getattr(transformer, name)]
    return [Block(index=i, module=module, pair=pair) for i, module in enumerate(modules)]
