"""A pipeline call as a differentiable function: from call arguments to pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


class _Decoded(Exception):
    """Carries what the autoencoder decoded out of a pipeline call."""


def paint(pipe: Any, arguments: dict[str, Any]) -> Tensor:
    """Pixels 0..1, [B,3,H,W] or [B,3,T,H,W], with gradients where they are enabled.

    Noise generators are spent by a call: draw the arguments anew for the next.
    """
    kind: Any = type(pipe)
    call: Callable[..., Any] = kind.__call__.__wrapped__  # without its no_grad
    decode = pipe.vae.decode

    def decoded(latents: Tensor, *_: Any, **__: Any) -> Any:
        raise _Decoded(decode(latents).sample)

    pipe.vae.decode = decoded
    try:
        call(pipe, **arguments | {"output_type": "pt"})
    except _Decoded as carrier:
        pixels: Tensor = (carrier.args[0] / 2 + 0.5).clamp(0, 1)
        return pixels
    finally:
        del pipe.vae.decode
    raise AssertionError(f"{kind.__name__} did not decode")
