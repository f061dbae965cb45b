"""What a count of floating-point operations consists of."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ditbench.method.stack import Stack

TRANSFORMER, TEXT, DECODER, ELSEWHERE = "transformer", "text", "decoder", "elsewhere"
SAME_EVERY_CALL = frozenset(
    {"weights", "linear-precision", "num-steps", "guidance", "scheduler", "compile"}
)
"""Claims of methods that may leave every transformer call of a generation alike; whether they do is
looked at (`repeated_calls`)."""


@dataclass(frozen=True, kw_only=True)
class Flops:
    """What one generation costs: all steps and guidance passes of the transformer, and the parts
    around it beside it."""

    flops: int
    """Of the transformer: 2 x (linear + attention + conv MACs)."""
    linear_macs: int
    attention_macs: int
    """Attention products alone; the projections around them are linear."""
    conv_macs: int
    forwards: int
    """Transformer calls that computed anything."""
    passes: int
    """Rows of the batch summed over those calls: two for a call with both guidance passes of one
    sample."""
    text_flops: int
    """Of the text encoders; not in `flops`."""
    decoder_flops: int
    """Of the autoencoder; not in `flops`."""
    uncounted: dict[str, int]
    """Product-like operations without a formula, by name: how often they ran. Prefixed with the
    part when not the transformer's."""

    def divided(self, by: int) -> Flops:
        """What one of `by` samples costs on average, of a generation of that many."""
        return replace(
            self,
            **{
                f.name: getattr(self, f.name) // by
                for f in fields(self)
                if f.name not in ("forwards", "uncounted")
            },
        )


def decides_per_batch(stack: Stack) -> bool:
    """Whether a method decides once for the whole batch, so that a sample alone may cost something
    else."""
    return any(m.traits.decides_per_batch for m in stack.methods)


def alike_every_call(stack: Stack) -> bool:
    """Whether calls of the transformer may all do the same work, as far as the methods' claims
    tell; one that claims nothing tells nothing. A claim decides only whether it is worth looking: a
    call is left out of a count where it is seen to do what another did."""
    return all(m.traits.claims and m.traits.claims <= SAME_EVERY_CALL for m in stack.methods)
