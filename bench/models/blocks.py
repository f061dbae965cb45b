"""A diffusion transformer seen as a list of blocks that can be rerouted whole: for methods that
skip more than a sub-layer.

Streams: the tuple of what a block changes. `(image,)` [B,N,D], or `(image, text)` [B,N,D], [B,T,D]
where blocks change the text too (FLUX, SD3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from ditbench.models.family import family_of
from ditbench.models.regions import run_forward
from ditbench.models.sublayers import Patch

Streams = tuple[Tensor, ...]
RunBlock = Callable[[Streams], Streams]
BlockRoute = Callable[[RunBlock, Streams], Streams]
"""`route(run, streams)` returns the block's output streams; it may call `run(streams)` or not."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """One block of the transformer: norms, modulation, sub-layers, gates and residuals."""

    index: int
    module: nn.Module
    outputs: tuple[str, ...]
    """The streams it returns, in its order (`Family.block_outputs`)."""

    @property
    def pair(self) -> bool:
        """Whether it changes the text too."""
        return "text" in self.outputs

    @property
    def name(self) -> str:
        """Such as `block 3`."""
        return f"block {self.index}"

    def reroute(self, route: BlockRoute, patch: Patch) -> None:
        """Send every call through `route(run, streams)`."""
        original = partial(run_forward, self.module, self.module.forward)
        pair, text_at = self.pair, 0
        if pair:
            text_at = self.outputs.index("text")

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
                inputs = {"hidden_states": streams[0], "encoder_hidden_states": streams[1]}
                out = original(*rest, **inputs, **kwargs)
                text, image = out[text_at], out[1 - text_at]
                # the last block of SD3 returns no text: nothing reads it any more
                return image, streams[1] if text is None else text

            image, text = route(run, (image, text))
            return (image, text) if text_at else (text, image)

        patch(self.module, "forward", forward)


def blocks(transformer: nn.Module) -> list[Block]:
    """The transformer's blocks in the order they run; ValueError for a class of no family."""
    family = family_of(transformer)
    modules = [block for name, _ in family.stacks for block in getattr(transformer, name)]
    return [
        Block(index=i, module=module, outputs=family.block_outputs)
        for i, module in enumerate(modules)
    ]
