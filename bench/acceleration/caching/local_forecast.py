"""Forecasts fitted to one dense generation, in closed form: least-squares coefficients, and the steps
between which forecasts are off least. All that is asked of the outputs is their inner products
between steps.

T steps, L sub-layers, P guidance passes, O order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ditbench.acceleration.caching.forecast import parts_of, passes_of
from ditbench.acceleration.caching.whole_rows import Mask
from ditbench.method.generation import conditional_rows
from ditbench.method.probe import Trainee

if TYPE_CHECKING:
    from torch import Tensor

    from ditbench.method.attachment import Attachment
    from ditbench.method.prepare import Workroom
    from ditbench.models.sublayers import Route, Run, Sublayer

REQUESTS = 8
"""Training requests of the generation."""
VALUES = 1 << 15
"""Of each output that are kept of every step, at places drawn once."""
RIDGE = 1e-6
"""Share of the squared length of a change that is added to it, so that outputs which do not move
have coefficients too."""
Grams = NDArray[np.float64]
"""[P,L,T,T]: inner products of a sub-layer's outputs of any two steps."""


class _Watched(Trainee):
    """Computes everything, and keeps some values of each output of every step, by guidance pass."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.values: dict[tuple[int, int], list[Tensor]] = {}
        """By guidance pass (0: conditional) and sub-layer, a row for each step."""

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Watch every sub-layer."""
        places: dict[int, Tensor] = {}
        self.names = [s.name for s in at.sublayers]

        def values_of(output: Tensor) -> Tensor:
            flat = output.detach().flatten()
            if (size := flat.numel()) <= VALUES:
                return flat.float()
            if size not in places:
                drawn = torch.randint(size, (VALUES,), generator=torch.Generator().manual_seed(0))
                places[size] = drawn.to(flat.device)
            return flat[places[size]].float()

        def at_sublayer(sublayer: Sublayer) -> Route:
            def route(run: Run, hidden: Any) -> Any:
                output, now = run(), at.now
                parts = parts_of(output)
                rows = len(parts[0])
                passes = {now.branch: slice(0, rows)}
                if now.passes == 2:
                    conditional = conditional_rows(now.guidance, rows, 2)
                    other = slice(rows // 2, rows) if conditional.start == 0 else slice(rows // 2)
                    passes = {0: conditional, 1: other}
                for number, of in passes.items():
                    seen = torch.cat([values_of(part[of]) for part in parts])
                    self.values.setdefault((number, sublayer.index), []).append(seen)
                self.passes = passes_of(now.guidance, now.branch + 1, now.passes)
                return output

            return route

        for sublayer in at.sublayers:
            at.reroute(sublayer, at_sublayer(sublayer))


def grams_of(room: Workroom) -> tuple[list[str], Grams]:
    """Names of the sub-layers, and the inner products of their outputs between steps, of one dense
    generation of training requests."""
    watched = _Watched()
    room.generate(watched, room.at_once(REQUESTS))
    passes = 1 + max(number for number, _ in watched.values)
    layers = len(watched.names)
    grams = np.zeros((passes, layers, room.calls, room.calls))
    for (number, index), rows in watched.values.items():
        stacked = torch.stack(rows).double()
        grams[number, index] = (stacked @ stacked.T).cpu().numpy()
    return watched.names, grams


def computed_before(mask: NDArray[np.bool_], step: int) -> list[int]:
    """Of a column [T] the computed steps before `step`, the latest first."""
    return [t for t in range(step - 1, -1, -1) if mask[t]]


def _terms(steps: list[int], at: int, order: int, size: int) -> tuple[Any, Any]:
    """The forecast at `at` as weights over outputs [T]: those of the last output, and [O,T] what
    each coefficient adds."""
    basis = np.eye(size)
    last, added = basis[steps[0]], np.zeros((order, size))
    if order >= 1 and len(steps) > 1:
        t0, t1 = steps[:2]
        first = (basis[t0] - basis[t1]) / (t0 - t1)
        added[0] = (at - t0) * first
        if order >= 2 and len(steps) > 2:
            t2 = steps[2]
            before = (basis[t1] - basis[t2]) / (t1 - t2)
            added[1] = (at - t0) * (at - t1) * (first - before) / (t0 - t2)
    return last, added


def fit(gram: NDArray[np.float64], steps: list[int], at: int, order: int) -> tuple[Any, float]:
    """Least-squares coefficients [O] of the forecast of step `at` from the computed `steps` (latest
    first), and the squared error that they leave over the squared length of the output."""
    last, added = _terms(steps, at, order, len(gram))
    target = np.eye(len(gram))[at] - last
    usable = [i for i in range(order) if added[i].any()]
    coefficients = np.zeros(order)
    if usable:
        a = added[usable]
        normal = a @ gram @ a.T
        normal[np.diag_indices(len(usable))] *= 1 + RIDGE
        normal[np.diag_indices(len(usable))] += 1e-12
        coefficients[usable] = np.linalg.solve(normal, a @ gram @ target)
    left = target - coefficients @ added
    return coefficients, float(max(left @ gram @ left, 0.0) / (gram[at, at] + 1e-12))


def local_coefficients(grams: Grams, mask: Mask, order: int, passes: int) -> NDArray[np.float64]:
    """[T,L,P,O]: the least-squares coefficients of every step and sub-layer under a mask [T,L];
    zero at the first step, and where less than two outputs were computed. With one pass, those of
    both guidance passes together."""
    steps, layers = mask.shape
    grams = grams if passes == len(grams) else grams.sum(0, keepdims=True)
    table = np.zeros((steps, layers, len(grams), order))
    for t in range(1, steps):
        for i in range(layers):
            before = computed_before(mask[:, i], t)
            for p in range(len(grams)):
                table[t, i, p], _ = fit(grams[p, i], before, t, order)
    return table


def local_errors(grams: Grams, mask: Mask, order: int) -> NDArray[np.float64]:
    """[T,L]: the share of an output's squared length that its forecast is off by, were it skipped,
    summed over guidance passes."""
    steps, layers = mask.shape
    errors = np.zeros((steps, layers))
    for t in range(1, steps):
        for i in range(layers):
            before = computed_before(mask[:, i], t)
            errors[t, i] = sum(fit(gram[i], before, t, order)[1] for gram in grams)
    return errors


def best_common_steps(grams: Grams, count: int, order: int) -> list[int]:
    """The `count` steps, the first among them, at which computing everything leaves the least sum of
    forecast errors (relative, of at most order 1) at the others: exact, by dynamic programming over
    the last two."""
    steps = grams.shape[-1]
    flat = grams.reshape(-1, steps, steps)
    lengths = flat[:, range(steps), range(steps)] + 1e-12

    def moved(s: Any, r: int, q: int, u: int) -> Any:
        """Inner products of (y_s - y_r) and (y_q - y_u)."""
        return flat[:, s, q] - flat[:, s, u] - flat[:, r, q, None] + flat[:, r, u, None]

    error = np.zeros((steps, steps, steps))  # [q,r,s]; q = r: nothing before r
    for r in range(steps):
        later = np.arange(r + 1, steps)
        target = flat[:, later, later] - 2 * flat[:, r, later] + flat[:, r, r, None]
        for q in range(r + 1):
            left = target
            if q < r and order:
                cross = moved(later, r, r, q)
                length = flat[:, r, r] - 2 * flat[:, r, q] + flat[:, q, q]
                left = target - cross**2 / (length[:, None] + 1e-12)
            error[q, r, r + 1 :] = (left.clip(0) / lengths[:, later]).sum(0)
    segment = np.zeros((steps, steps, steps + 1))  # [q,r,e]: steps r+1 to e-1 forecast
    segment[:, :, 1:] = np.cumsum(error, 2)
    best, following = segment[:, :, steps].copy(), []
    for _ in range(count - 1):
        after = np.full((steps, steps), np.inf)
        choice = np.zeros((steps, steps), int)
        for r in range(steps - 1):
            sums = segment[:, r, r + 1 : steps] + best[r, r + 1 :]
            choice[:, r] = r + 1 + sums.argmin(1)
            after[:, r] = sums.min(1)
        best = after
        following.append(choice)
    chosen, q, r = [0], 0, 0
    for choice in reversed(following):
        q, r = r, int(choice[q, r])
        chosen.append(r)
    return chosen
