"""How artefacts are made: device, number format, and the prompts that models are asked for. No
torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Preparing:
    """How artefacts are made, besides what they are made of.

    An artefact is a measurement of the model, found whatever `device` and `dtype` it was made with,
    and used by runs in any: both are in its notes, and in no key. Rounding to bfloat16 changes it
    about as much as another training of the same recipe does: MagCache's ratios move by at most
    0.012 and 0.010 on flux-tiny, by 0.002 and 0.008 on wan-tiny. A student is trained in float32
    whatever its teacher's format.
    """

    device: str = "cpu"
    dtype: str = "float32"
    prompts: str = ""
    """File or set that full-size text models are asked for; its content is in the key."""

    @property
    def flags(self) -> tuple[str, ...]:
        """What the command that makes the artefacts says of it."""
        pairs = (("device", "cpu"), ("dtype", "float32"), ("prompts", ""))
        values = ((name, getattr(self, name), default) for name, default in pairs)
        return tuple(
            w for name, value, default in values if value != default for w in (f"--{name}", value)
        )


PLAINLY = Preparing()
"""As what comes along was made."""
