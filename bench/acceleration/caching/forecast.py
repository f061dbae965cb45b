"""Sub-layer outputs forecast from their last computed values, with a coefficient for every step,
sub-layer and guidance pass: output = last + c1 (t - t0) d1 + c2 (t - t0) (t - t1) d2.

t0 and t1 are the steps at which a sub-layer was computed last and before, d1 and d2 its divided
differences (Newton's form). All c = 0 is reuse; order 1 with c1 = 1 is TaylorSeer of order 1
(arXiv:2503.06923), order 2 with all c = 1 the parabola through the last three outputs.

B batch, N tokens, D width; T steps, L sub-layers, P guidance passes, O order, G groups of channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ditbench.method.generation import conditional_rows

if TYPE_CHECKING:
    from ditbench.method.attachment import Attachment
    from ditbench.method.generation import Now
    from ditbench.models.sublayers import Run, Sublayer

Parts = tuple[Tensor, ...]
"""A sub-layer's output: one tensor [B,N,D], or the pair of a joint sub-layer (image, text)."""
Differences = list[Parts]
"""The last output and its divided differences, of orders 0, 1, ..."""


class ForecastCache:
    """Of every sub-layer and guidance call the last computed output and its differences, in one
    generation, and what they forecast."""

    def __init__(
        self,
        at: Attachment,
        order: int,
        coefficients: Callable[[Sublayer, torch.device], Tensor | None],
        extends: Callable[[Sublayer], bool] = lambda sublayer: True,
    ) -> None:
        """`coefficients(sublayer, device)` are those of the step under way, [P,O,G], on the device
        of the sub-layer's outputs; None where all are zero; `extends(sublayer)` says whether differences of an output computed now will be
        used."""
        self.at, self.order, self.coefficients = at, order, coefficients
        self.extends = extends
        self.outputs: dict[tuple[int, int], Differences] = {}
        self.times: dict[tuple[int, int], tuple[Any, Any, Any]] = {}
        """Steps t0 and t1, and whether there were two computed outputs, 0 or 1. Numbers, or in
        training tensors, for a sub-layer may be computed by halves there."""
        at.keeps(self.outputs)
        at.on_start(self.times.clear)

    def key(self, sublayer: Sublayer) -> tuple[int, int]:
        """(sub-layer, guidance call)."""
        return sublayer.index, self.at.now.branch

    def __contains__(self, sublayer: Sublayer) -> bool:
        return self.key(sublayer) in self.outputs

    def compute(self, sublayer: Sublayer, run: Run) -> Any:
        """Run the sub-layer on all tokens, and keep the output and its differences."""
        output = run()
        key = self.key(sublayer)
        order = self.order if self.extends(sublayer) else 0
        self.outputs[key], self.times[key] = self._after(key, parts_of(output), order)
        self.at.computes(sublayer, 1.0)
        self.at.count("computed", idle=True)
        return output

    def forecast(self, sublayer: Sublayer) -> Any:
        """What stands for the sub-layer's output at the step under way."""
        self.at.computes(sublayer, 0.0)
        self.at.count("forecast")
        return whole(self._forecast(sublayer))

    def blend(self, sublayer: Sublayer, run: Run, share: Tensor) -> Any:
        """For training: `share` of the computed output and the rest of the forecast, and as much of
        either's differences kept; `share` 0 or 1 is `forecast` or `compute` with a gradient for the
        other."""
        key = self.key(sublayer)
        new = parts_of(run())
        before, times = self.outputs[key], self.times[key]
        expected = self._forecast(sublayer)
        after, later = self._after(key, new, self.order)
        absent = tuple(torch.zeros_like(part) for part in new)
        before = before + [absent] * (len(after) - len(before))
        self.outputs[key] = [
            _mixed(old, latest, share) for old, latest in zip(before, after, strict=True)
        ]
        self.times[key] = tuple(  # type: ignore[assignment]
            a + share.float() * (b - a) for a, b in zip(times, later, strict=True)
        )
        return whole(_mixed(expected, new, share))

    def state(self) -> tuple[dict[Any, Any], ...]:
        """Everything it holds, for a later `restore`."""
        return dict(self.outputs), dict(self.times)

    def restore(self, state: tuple[dict[Any, Any], ...]) -> None:
        """Hold what `state` gave, and nothing else."""
        stores: tuple[dict[Any, Any], ...] = (self.outputs, self.times)
        for store, before in zip(stores, state, strict=True):
            store.clear()
            store.update(before)

    def _forecast(self, sublayer: Sublayer) -> Parts:
        key, now = self.key(sublayer), self.at.now
        last, *slopes = self.outputs[key]
        coefficients = self.coefficients(sublayer, last[0].device) if slopes else None
        if coefficients is None:
            return last
        t0, t1, _ = self.times[key]
        by_row = of_rows(coefficients, now, len(last[0]))
        output, factor = last, 1.0
        for i, (slope, time) in enumerate(zip(slopes, (t0, t1), strict=False)):
            factor = factor * (now.step - time)
            output = tuple(
                torch.addcmul(part, spread(factor * by_row[:, i], change), change)
                for part, change in zip(output, slope, strict=True)
            )
        return output

    def _after(
        self, key: tuple[int, int], new: Parts, order: int
    ) -> tuple[Differences, tuple[Any, Any, Any]]:
        """Differences and times when the step under way is computed."""
        step = float(self.at.now.step)
        if key not in self.outputs:
            return [new], (step, step, 0.0)
        before, (t0, t1, two) = self.outputs[key], self.times[key]
        differences = [new]
        if order >= 1:
            differences.append(_divided(new, before[0], step - t0))
        if order >= 2 and len(before) > 1:
            second = _divided(differences[1], before[1], step - t1)
            if isinstance(two, Tensor):  # of training, where the first difference may be in part
                second = tuple(two.to(part.dtype) * part for part in second)
            differences.append(second)
        return differences, (step, t0, 1.0)


def _divided(new: Parts, old: Parts, gap: Any) -> Parts:
    changes = [a - b for a, b in zip(new, old, strict=True)]
    if isinstance(gap, Tensor):  # of training
        return tuple(change / gap for change in changes)
    return tuple(change if gap == 1 else change.div_(gap) for change in changes)


def _mixed(old: Parts, new: Parts, share: Tensor) -> Parts:
    return tuple(a + share.to(a.dtype) * (b - a) for a, b in zip(old, new, strict=True))


def parts_of(output: Any) -> Parts:
    """A sub-layer's output as a tuple."""
    return output if isinstance(output, tuple) else (output,)


def whole(parts: Parts) -> Any:
    """A sub-layer's output from its parts."""
    return parts if len(parts) > 1 else parts[0]


def of_rows(coefficients: Tensor, now: Now, rows: int) -> Tensor:
    """Of coefficients [P,O,G] those of each row of a batch, [rows,O,G] or [1,O,G] where all are
    alike. Pass 0 is the conditional one; a table of one pass serves both."""
    if len(coefficients) == 1:
        return coefficients
    if now.guidance == "two calls":
        return coefficients[now.branch : now.branch + 1]
    if now.passes == 1:
        return coefficients[:1]
    conditional = conditional_rows(now.guidance, rows, now.passes)
    order = coefficients[:2] if conditional.start == 0 else coefficients[:2].flip(0)
    return order.repeat_interleave(rows // now.passes, 0)


def spread(factor: Tensor, change: Tensor) -> Tensor:
    """A factor [B or 1, G] for each of G groups of channels as [B or 1, 1, 1 or D], to be multiplied
    with `change` [B,N,D], in its type."""
    groups, width = factor.shape[1], change.shape[-1]
    factor = factor.to(change.dtype)
    if groups == 1:
        return factor[..., None]
    if width % groups:
        raise ValueError(f"{groups} groups do not divide {width} channels")
    return factor.repeat_interleave(width // groups, 1)[:, None]


def passes_of(guidance: str, calls: int, passes: int) -> int:
    """Guidance passes of a step that coefficients are apart for: those that share a batch, or the
    transformer's calls."""
    return calls if guidance == "two calls" else passes
