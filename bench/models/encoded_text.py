"""What a pipeline's text encoders gave, for all cells of a process. No torch."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

AHEAD = 512
"""Requests whose text waits in host memory at once: of Wan's guided ones, 8 MB each, 4 GB."""


class EncodedText:
    """Outputs of `encode_prompt` by its arguments. Bringing the encoders of a full-size model to the GPU
    and back takes longer than many a cell."""

    def __init__(self) -> None:
        self.outputs: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        """What each took, with its share of bringing the encoders."""
        self.flops: dict[tuple[str, ...], int] = {}
        """Of encoding the text of some calls, by their arguments."""
        self._sizes: dict[str, int] = {}

    def add(self, key: str, output: Any, size: int, wanted: Collection[str]) -> None:
        """Store an output for `size` requests; above `AHEAD` requests those that are not `wanted` are
        let go of."""
        if sum(self._sizes.values()) + size > AHEAD:
            for other in [other for other in self.outputs if other not in wanted]:
                del self.outputs[other], self._sizes[other]
        self.outputs[key], self._sizes[key] = output, size

    def spent(self, seconds: float, keys: Collection[str]) -> None:
        """Note what it took to encode them, together."""
        self.seconds |= dict.fromkeys(keys, seconds / max(1, len(keys)))
