"""Sub-layer outputs kept from step to step and refreshed for some tokens: what token caches and
learned token sparsity share.

B batch, N rows of a stream, K chosen rows, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ditbench.acceleration.caching import fused_ranking
from ditbench.acceleration.caching.budget import kept_rows
from ditbench.acceleration.caching.selectors import Key, Selector
from ditbench.acceleration.caching.token_settings import selector_class
from ditbench.models.fused_rows import PutRows, kernel_of
from ditbench.models.pending import Pending
from ditbench.models.token_rows import SingleRun, put, take

if TYPE_CHECKING:
    from ditbench.acceleration.caching.token_settings import Rules
    from ditbench.method.attachment import Attachment
    from ditbench.models.sublayers import Run, Sublayer

Output = Any
"""[B,N,D], or for `joint` sub-layers the pair (image [B,N,D], text [B,T,D])."""


class TokenCache:
    """The kept outputs of one generation, and how to bring them up to date: wholly, for some
    tokens, or not at all."""

    def __init__(
        self,
        at: Attachment,
        selector: str,
        rules: Rules,
        interval: int | None = None,
        *,
        attend: bool = True,
    ) -> None:
        """Tokens are ranked by `selector` under the family's `rules`: to a score of unit length
        `rules.soft` is added for every `interval` steps (None: the rules') that a token has waited,
        then the best token of every window of the picture gets the rules' bonus.

        `attend`: whether a token that is recomputed in a FLUX single block attends anew; else what
        its attention gave when all tokens were computed last is used again."""
        self.at, self.rules = at, rules
        self.selector: Selector = selector_class(selector)(at.now, rules)
        self.selector.attach(at)
        self.reuse_weight = rules.soft / (interval or rules.interval)
        self.notes: Callable[[Sublayer], bool] = lambda sublayer: True
        """Whether what a sub-layer shows when it runs is worth noting: a schedule knows when no
        ranking will look at it."""
        self.attend = attend
        self.kept: dict[Key, Output] = {}
        self._clock: dict[Key, int] = {}
        """Steps since all tokens were computed."""
        self._computed: dict[Key, Tensor] = {}
        """When a token was computed last, by that clock: [B,N] float32 whatever the model's dtype;
        absent where all tokens were at its beginning."""
        self._mixed: dict[Key, Tensor] = {}
        self._own: set[Key] = set()
        """Sub-layers whose tensors nobody else holds, so that rows are written into them."""
        self._unwritten: dict[Key, PutRows] = {}
        """Rows that a block has been given to write, and has not: none once all blocks have run."""
        at.on_start(self._unwritten.clear)
        self._rows_by: set[str] = set()
        self._stores: tuple[dict[Any, Any], ...] = (
            self.kept,
            self._clock,
            self._computed,
            self._mixed,
            *self.selector.stores,
        )
        for store in self._stores:
            at.keeps(store)

    def __contains__(self, sublayer: Sublayer) -> bool:
        return self.selector.key(sublayer) in self.kept

    def goes_by_output(self, sublayer: Sublayer) -> bool:
        """Whether `compute` looks at nothing but the sub-layer's output."""
        if not self.attend and sublayer.kind == "single":
            return False
        return not self.notes(sublayer) or not self.selector.looks(sublayer)

    def compute(self, sublayer: Sublayer, run: Run, hidden: Tensor) -> Output:
        """All tokens, kept for later; `hidden` is only looked at where a ranking does."""
        key, run = self.selector.key(sublayer), self._attending(sublayer, run)
        if self.notes(sublayer):
            out = self.selector.run(sublayer, run, None, every=True)
            self.selector.computed(sublayer, hidden, None)
        else:
            out = run()
            self.selector.forget(sublayer)
        self.kept[key] = out
        self._unwritten.pop(key, None)
        self._computed.pop(key, None)
        self._clock[key] = 0
        self._owned(key)
        rows = out[0] if isinstance(out, tuple) else out
        self._count(sublayer, len(rows) * rows.shape[1], 0)
        return out

    def reuse(self, sublayer: Sublayer) -> Output:
        """What is kept, as it is."""
        key = self.selector.key(sublayer)
        self._write(key)
        self._clock[key] += 1
        out = self.kept[key]
        rows = out[0] if isinstance(out, tuple) else out
        self._count(sublayer, 0, len(rows) * rows.shape[1])
        return out

    def refresh(self, sublayer: Sublayer, run: Run, hidden: Tensor, num: int) -> Output:
        """What is kept, with the `num` highest ranking tokens of every sample recomputed."""
        if num <= 0:
            return self.reuse(sublayer)
        key, n = self.selector.key(sublayer), hidden.shape[1]
        if num >= n and (self.attend or sublayer.kind != "single"):
            return self.compute(sublayer, run, hidden)
        order, run = self.order(sublayer, hidden), self._attending(sublayer, run)
        rows = order[:, :num]
        if self.notes(sublayer):
            new = self.selector.run(sublayer, run, rows, every=False)
            self.selector.computed(sublayer, hidden, rows)
        else:
            new = run(rows)
        out = self._updated(key, order, new, fused=isinstance(hidden, Pending))
        self._count(sublayer, len(hidden) * num, len(hidden) * (n - num))
        return out

    def blend(
        self, sublayer: Sublayer, run: Run, hidden: Tensor, share: Tensor, levels: Sequence[float]
    ) -> Output:
        """As `refresh` at the level that `share` chooses, for training: all tokens are computed,
        and mixed with what is kept by a mask.

        `share` [S], one-hot over `levels`, gets a gradient for the levels it did not choose too.
        What the selector sees is what it would see in `refresh`, so that later rankings are the
        same.
        """
        key, n, seen = self.selector.key(sublayer), hidden.shape[1], hidden.detach()
        order = self.order(sublayer, seen)
        num = kept_rows(levels[int(share.argmax())], n)
        rows = None if num == n else order[:, :num]
        new = self.selector.run(sublayer, run, rows, every=True) if num else run()
        cached, place = self.kept[key], order.argsort(1)  # [B,N]
        keep = sum(
            (share[i] * (place < kept_rows(level, n)) for i, level in enumerate(levels)),
            torch.zeros(()),
        ).to(hidden.dtype)
        whole = share[0].to(hidden.dtype)
        if isinstance(
            cached, tuple
        ):  # the text of a joint sub-layer is computed whole or not at all
            text = cached[1] + (1 - whole) * (new[1] - cached[1])
            out: Output = (cached[0] + keep[..., None] * (new[0] - cached[0]), text)
        else:
            out = cached + keep[..., None] * (new - cached)
        self.kept[key] = out
        self._owned(key)
        if num:
            self.selector.computed(sublayer, seen, rows)
        self._clock[key] += 1
        self._computed[key] = self._times(key, hidden).masked_fill(
            place < num, float(self._clock[key])
        )
        return out

    def by_sample(self) -> None:
        """Hold nothing that is one for all samples, so that `state` can be divided by them: clocks
        that begin now, and no scores of blocks."""
        for key, out in self.kept.items():
            self._write(key)
            times = self._times(key, out[0] if isinstance(out, tuple) else out)
            self._computed[key], self._clock[key] = times - self._clock[key], 0
        self.selector.forget_scores()

    def state(self) -> tuple[dict[Any, Any], ...]:
        """Everything it holds, for a later `restore`."""
        for key in [*self._unwritten]:
            self._write(key)
        self._own.clear()
        self.selector.own.clear()
        return tuple(dict(store) for store in self._stores)

    def restore(self, state: tuple[dict[Any, Any], ...]) -> None:
        """Hold what `state` gave, and nothing else."""
        self._unwritten.clear()
        self._own.clear()
        self.selector.own.clear()
        for store, before in zip(self._stores, state, strict=True):
            store.clear()
            store.update(before)

    def order(self, sublayer: Sublayer, hidden: Tensor) -> Tensor:
        """Tokens [B,N] int64 from the one to recompute first to the last; of equal ones the first
        in the picture comes first."""
        key = self.selector.key(sublayer)
        self._write(key)
        score = self._fused_score(sublayer, key, hidden.shape[1]) if _by_kernel(hidden) else None
        if score is None:
            score = self._score(sublayer, key, hidden)
        return score.argsort(dim=1, descending=True, stable=True)

    def _score(self, sublayer: Sublayer, key: Key, hidden: Tensor) -> Tensor:
        """[B,N] float32, higher first."""
        cached = self.kept[key]
        score = self.selector.score(
            sublayer, hidden, (cached[0] if isinstance(cached, tuple) else cached).detach()
        )
        score, waited = score.float(), self._clock[key]
        if key in self._computed:
            score = score + self.reuse_weight * (waited - self._computed[key])
        elif waited:
            score = score + float(np.float32(self.reuse_weight) * np.float32(waited))
        if window := self._window(sublayer):
            score = _with_bonus(score, self.at.now.grid, window, self.rules.bonus)
        return score

    def _fused_score(self, sublayer: Sublayer, key: Key, n: int) -> Tensor | None:
        """The same by one kernel; None where the selector has no signals for it."""
        if (parts := self.selector.parts(sublayer, n)) is None:
            return None
        grid, window = self.at.now.grid, self._window(sublayer)
        return fused_ranking.scores(
            [signal for signal, _ in parts], [raised for _, raised in parts],
            self.at.now.passes if self.rules.shared else 1,
            self._computed.get(key), float(self._clock[key]), self.reuse_weight, grid,
            window if n >= math.prod(grid) and _windows(grid, window) else 0, self.rules.bonus,
        )  # fmt: skip

    def _window(self, sublayer: Sublayer) -> int:
        """Side of the windows whose best token gets a bonus; 0 for none."""
        if sublayer.stream == "text" or not self.rules.bonus:
            return 0
        self.at.notes["windows"] = _windows(self.at.now.grid, self.rules.window)
        return self.rules.window

    def _times(self, key: Key, hidden: Tensor, *, written: bool = False) -> Tensor:
        """When tokens were computed last, [B,N] float32; `written`: no values where all are about to
        be."""
        if key in self._computed:
            return self._computed[key]
        make = torch.empty if written else torch.zeros
        return make(tuple(hidden.shape[:2]), dtype=torch.float32, device=hidden.device)

    def _updated(self, key: Key, order: Tensor, new: Output, *, fused: bool) -> Output:
        """The output with `new` in the rows order[:, :K], which is kept; `fused`: the block runs on
        pending tensors, and may be given one that is written when the block adds it."""
        before = self.kept[key]
        kept, some = (before[0], new[0]) if isinstance(before, tuple) else (before, new)
        self._clock[key] += 1
        now, first = float(self._clock[key]), key not in self._computed
        fused = fused and _by_kernel(kept)
        self._rows_by.add("triton" if fused else "torch")
        self.at.notes["rows"] = " and ".join(sorted(self._rows_by))
        times = self._times(key, kept, written=fused)
        if key not in self._own or torch.is_grad_enabled():
            kept, times = kept.clone(), times if first else times.clone()
            self._owned(key)
        out: Any = kept
        if fused:
            written = partial(self._unwritten.pop, key, None)
            out = PutRows(kept, times, order, some, now, first, unwritten=[written])
            self._unwritten[key] = out
        else:
            rows = order[:, : some.shape[1]]
            put(kept, rows, some, in_place=True)
            times.scatter_(1, rows, now)
        self.kept[key] = (kept, new[1]) if isinstance(before, tuple) else kept
        self._computed[key] = times
        return (out, new[1]) if isinstance(before, tuple) else out

    def _write(self, key: Key) -> None:
        """What a block was given to write, and has not added, is written."""
        if (unwritten := self._unwritten.get(key)) is not None:
            unwritten.write()

    def _owned(self, key: Key) -> None:
        """What was made now is nobody else's: a block has used it before the next step. Gradients
        want every value as it was."""
        if torch.is_grad_enabled():
            self._own.discard(key)
        else:
            self._own.add(key)

    def _attending(self, sublayer: Sublayer, run: Run) -> Run:
        """`run`, whose attention is kept and used again where that is wanted."""
        if self.attend or not isinstance(run, SingleRun):
            return run
        key = self.selector.key(sublayer)

        def attention(rows: Tensor | None) -> Tensor:
            if rows is not None:
                return take(self._mixed[key], rows)
            mixed = self._mixed[key] = run.attention(None)
            return mixed

        return SingleRun(attention, run.project)

    def _count(self, sublayer: Sublayer, recomputed: int, reused: int) -> None:
        self.at.computes(sublayer, recomputed / (recomputed + reused))
        self.at.count(f"{sublayer.kind}_tokens_recomputed", recomputed, idle=True)
        self.at.count(f"{sublayer.kind}_tokens_reused", reused)


def _by_kernel(hidden: Tensor) -> bool:
    return kernel_of(hidden.device) == "triton"


def _windows(grid: tuple[int, int, int], window: int) -> int:
    """Windows whose best token gets a bonus: none where they do not divide the picture, as Wan's of
    30 x 52 tokens at 480p."""
    frames, height, width = grid
    divided = window > 1 and height % window == width % window == 0
    return frames * (height // window) * (width // window) if divided else 0


def _with_bonus(score: Tensor, grid: tuple[int, int, int], window: int, bonus: float) -> Tensor:
    """Scores [B,N] with the best of every window of the last `frames x height x width` tokens
    raised by `bonus` times itself."""
    frames, height, width = grid
    n = frames * height * width
    if score.shape[1] < n or not _windows(grid, window):
        return score
    text, image = score.split([score.shape[1] - n, n], dim=1)
    tiles = (
        image.unflatten(1, (frames, height // window, window, width // window, window))
        .transpose(3, 4)
        .flatten(4)
    )
    best = tiles.argmax(-1, keepdim=True)
    tiles = tiles.scatter_add(-1, best, bonus * tiles.gather(-1, best))
    image = tiles.unflatten(4, (window, window)).transpose(3, 4).flatten(1)
    return torch.cat([text, image], 1) if text.shape[1] else image
