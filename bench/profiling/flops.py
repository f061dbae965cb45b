"""What a count of floating-point operations consists of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ditbench.method.stack import Stack

TRANSFORMER, TEXT, DECODER, ELSEWHERE = "transformer", "text", "decoder", "elsewhere"
SAME_EVERY_CALL = frozenset(
    {"weights", "linear-precision", "num-steps", "guidance", "scheduler", "compile"}
)
"""Claims of methods that may leave every transformer call of a generation alike; whether they do is
looked at (`repeated_calls`)."""

COUNTED = 64
"""Samples, at most, that the FLOPs of a stack are averaged over whose work depends on what it
samples: counting takes as long as sampling."""


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

    def divided(self, by: int, batches: int = 1) -> Flops:
        """What one of `by` samples costs on average, and the transformer calls of a generation, of
        so many `batches` that were generated."""
        each = {
            f.name: getattr(self, f.name) // by
            for f in fields(self)
            if f.name not in ("forwards", "uncounted")
        }
        return replace(self, **each, forwards=self.forwards // batches)


def counted_parts(stack: Stack, parts: Sequence[Sequence[Any]]) -> list[Sequence[Any]]:
    """The batches that a stack's FLOPs are counted over: one sample where all cost the same, else
    whole batches, the first ones that hold an eighth of the samples, or `COUNTED`."""
    if not decides_per_batch(stack) and not any(m.traits.cost_by_sample for m in stack.methods):
        return [parts[0][:1]]
    enough = min(COUNTED, sum(map(len, parts)) // 8)
    chosen: list[Sequence[Any]] = [parts[0]]
    while sum(map(len, chosen)) < enough:
        chosen.append(parts[len(chosen)])
    return chosen


def decides_per_batch(stack: Stack) -> bool:
    """Whether a method decides once for the whole batch, so that a sample alone may cost something
    else."""
    return any(m.traits.decides_per_batch for m in stack.methods)


def alike_every_call(stack: Stack) -> bool:
    """Whether calls of the transformer may all do the same work, as far as the methods' claims
    tell; one that claims nothing tells nothing. A claim decides only whether it is worth looking: a
    call is left out of a count where it is seen to do what another did."""
    return all(m.traits.claims and m.traits.claims <= SAME_EVERY_CALL for m in stack.methods)
