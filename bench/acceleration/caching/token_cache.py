"""Sub-layer outputs kept from step to step and refreshed for some tokens: what token caches and
learned token sparsity share.

B batch, N rows of a stream, K chosen rows, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ditbench.acceleration.caching.budget import kept_rows
from ditbench.acceleration.caching.selectors import Key, selector_class
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
        self.selector = selector_class(selector)(at.now, rules)
        self.selector.attach(at)
        self.reuse_weight = rules.soft / (interval or rules.interval)
        self.notes: Callable[[Sublayer], bool] = lambda sublayer: True
        """Whether what a sub-layer shows when it runs is worth noting: a schedule knows when no
        ranking will look at it."""
        self.attend = attend
        self.kept: dict[Key, Output] = {}
        self._age: dict[Key, Tensor] = {}
        """Steps since a token was computed, [B,N] float32 whatever the model's dtype, when some were
        last; absent where all were."""
        self._waited: dict[Key, int] = {}
        """Steps since then, the same for all tokens."""
        self._mixed: dict[Key, Tensor] = {}
        self._stores: tuple[dict[Any, Any], ...] = (
            self.kept,
            self._age,
            self._waited,
            self._mixed,
            *self.selector.stores,
        )
        for store in self._stores:
            at.keeps(store)

    def __contains__(self, sublayer: Sublayer) -> bool:
        return self.selector.key(sublayer) in self.kept

    def compute(self, sublayer: Sublayer, run: Run, hidden: Tensor) -> Output:
        """All tokens, kept for later."""
        key, run = self.selector.key(sublayer), self._attending(sublayer, run)
        if self.notes(sublayer):
            out = self.selector.run(sublayer, run, None, every=True)
            self.selector.computed(sublayer, hidden, None)
        else:
            out = run()
            self.selector.forget(sublayer)
        self.kept[key] = out
        self._age.pop(key, None)
        self._waited[key] = 0
        self._count(sublayer, len(hidden) * hidden.shape[1], 0)
        return out

    def reuse(self, sublayer: Sublayer, hidden: Tensor) -> Output:
        """What is kept, as it is."""
        key = self.selector.key(sublayer)
        self._waited[key] += 1
        self._count(sublayer, 0, len(hidden) * hidden.shape[1])
        return self.kept[key]

    def refresh(self, sublayer: Sublayer, run: Run, hidden: Tensor, num: int) -> Output:
        """What is kept, with the `num` highest ranking tokens of every sample recomputed."""
        key, n = self.selector.key(sublayer), hidden.shape[1]
        if num <= 0:
            return self.reuse(sublayer, hidden)
        if num >= n and (self.attend or sublayer.kind != "single"):
            return self.compute(sublayer, run, hidden)
        rows, run = self.order(sublayer, hidden)[:, :num], self._attending(sublayer, run)
        new, cached = self.selector.run(sublayer, run, rows, every=False), self.kept[key]
        out = (
            (put(cached[0], rows, new[0]), new[1])
            if isinstance(cached, tuple)
            else put(cached, rows, new)
        )
        self.kept[key] = out
        self.selector.computed(sublayer, hidden, rows)
        self._aged(key, self._ages(key, hidden, 1).scatter(1, rows, 0.0))
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
        if num:
            self.selector.computed(sublayer, seen, rows)
        self._aged(key, self._ages(key, hidden, 1).masked_fill(place < num, 0.0))
        return out

    def by_sample(self) -> None:
        """Hold nothing that is one for all samples, so that `state` can be divided by them: ages as
        tensors, and no scores of blocks."""
        for key, out in self.kept.items():
            self._aged(key, self._ages(key, out[0] if isinstance(out, tuple) else out))
        self.selector.forget_scores()

    def state(self) -> tuple[dict[Any, Any], ...]:
        """Everything it holds, for a later `restore`."""
        return tuple(dict(store) for store in self._stores)

    def restore(self, state: tuple[dict[Any, Any], ...]) -> None:
        """Hold what `state` gave, and nothing else."""
        for store, before in zip(self._stores, state, strict=True):
            store.clear()
            store.update(before)

    def order(self, sublayer: Sublayer, hidden: Tensor) -> Tensor:
        """Tokens [B,N] int64 from the one to recompute first to the last; of equal ones the first
        in the picture comes first."""
        key = self.selector.key(sublayer)
        cached = self.kept[key]
        score = self.selector.score(
            sublayer, hidden, (cached[0] if isinstance(cached, tuple) else cached).detach()
        )
        score = score.float()
        if key in self._age:
            score = score + self.reuse_weight * self._ages(key, hidden)
        elif waited := self._waited[key]:
            score = score + float(np.float32(self.reuse_weight) * np.float32(waited))
        if sublayer.stream != "text" and self.rules.bonus:
            self.at.notes["windows"] = _windows(self.at.now.grid, self.rules.window)
            score = _with_bonus(score, self.at.now.grid, self.rules.window, self.rules.bonus)
        return score.argsort(dim=1, descending=True, stable=True)

    def _ages(self, key: Key, hidden: Tensor, more: int = 0) -> Tensor:
        """Steps since a token was computed, and `more`: [B,N] float32."""
        waited = self._waited[key] + more
        if key in self._age:
            return self._age[key] + waited if waited else self._age[key]
        age: Tensor = torch.full(
            tuple(hidden.shape[:2]), float(waited), dtype=torch.float32, device=hidden.device
        )
        return age

    def _aged(self, key: Key, age: Tensor) -> None:
        self._age[key], self._waited[key] = age, 0

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
