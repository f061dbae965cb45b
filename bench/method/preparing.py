"""How artefacts are made: device, number formats, and the prompts that models are asked for. Torch is
imported only where something is made."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Preparing:
    """How artefacts are made, besides what they are made of.

    An artefact is a measurement of the model, found whatever `device` and `dtype` it was made with,
    and used by runs in any: both are in its notes, and in no key. Rounding to bfloat16 changes it
    about as much as another training of the same recipe does: MagCache's ratios move by at most
    0.012 and 0.010 on flux-tiny, by 0.002 and 0.008 on wan-tiny. A student is trained in float32
    whatever its teacher's format; with `autocast`, its products and attention are in bfloat16.
    """

    device: str = "cpu"
    dtype: str = "float32"
    autocast: bool = False
    """Products and attention in bfloat16 (torch.autocast), weights and sums in `dtype`: for
    trainings, where the hardware multiplies bfloat16 faster."""
    prompts: str = ""
    """File or set that full-size text models are asked for; its content is in the key."""

    @property
    def flags(self) -> tuple[str, ...]:
        """What the command that makes the artefacts says of it."""
        pairs = (("device", "cpu"), ("dtype", "float32"), ("prompts", ""))
        values = ((name, getattr(self, name), default) for name, default in pairs)
        words = (
            w for name, value, default in values if value != default for w in (f"--{name}", value)
        )
        return (*words, *(["--autocast"] if self.autocast else []))

    @property
    def arithmetic(self) -> str:
        """Device and number formats, as half-done work is labelled by."""
        by = f"{self.device.partition(':')[0]} in {self.dtype}"
        return f"{by} with autocast" if self.autocast else by

    def context(self) -> AbstractContextManager[Any]:
        """Inside, what is computed is computed so."""
        if not self.autocast:
            return nullcontext()
        import torch

        # weights that were cast once would outlive the optimiser's steps in the cache
        kind = self.device.partition(":")[0]
        return torch.autocast(kind, torch.bfloat16, cache_enabled=False)


PLAINLY = Preparing()
"""As what comes along was made."""
