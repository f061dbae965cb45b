"""Sub-layer outputs kept from step to step and refreshed for some tokens: what token caches and learned token sparsity share.

B batch, N rows of a stream, K chosen rows, D width, H heads, d width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ditbench.anatomy import put, take
from ditbench.budget import kept_rows
from ditbench.rules import SIGNALS, Selector

if TYPE_CHECKING:
    from ditbench.anatomy import Run, Sublayer
    from ditbench.method import Attachment

Output = Any
"""[B,N,D], or for `joint` sub-layers the pair (image [B,N,D], text [B,T,D])."""
Key = tuple[int, int]
"""(sub-layer, guidance pass)."""


class TokenCache:
    """The kept outputs of one generation, and how to bring them up to date: wholly, for some tokens, or not at all."""

    def __init__(
        self,
        at: Attachment,
        selector: Selector,
        *,
        reuse_weight: float = 0.0,
        bonus: float = 0.0,
        window: int = 0,
        signals: tuple[str, ...] = SIGNALS,
    ) -> None:
        """`reuse_weight` x (steps since a token was recomputed) is added to its score; then the best token of every `window` x `window`
        tokens of the picture gets `bonus` times its score more. `signals`: which ones the selector `attention` adds up."""
        self.at, self.selector, self.signals = at, selector, signals
        self.reuse_weight, self.bonus, self.window = reuse_weight, bonus, window
        self.notes: Callable[[Sublayer], bool] = lambda sublayer: True
        """Whether what a sub-layer shows when it runs is worth noting: a schedule knows when no ranking will look at it."""
        self.kept: dict[Key, Output] = {}
        self._input: dict[Key, Tensor] = {}
        self._age: dict[Key, Tensor] = {}
        self._signal: dict[tuple[str, int, int], Tensor] = {}
        self._stores: tuple[dict[Any, Any], ...] = (self.kept, self._input, self._age, self._signal)
        for store in self._stores:
            at.on_start(store.clear)
            at.holds(store.values)

    @classmethod
    def of_schedule(cls, at: Attachment, selector: Selector) -> TokenCache:
        """As DiffSparse ranks, with ToCa's values for PixArt where the paper gives none: the same in training and in use."""
        return cls(at, selector, reuse_weight=0.08, bonus=0.4, window=4)

    def __contains__(self, sublayer: Sublayer) -> bool:
        return (sublayer.index, self.at.now.branch) in self.kept

    def compute(self, sublayer: Sublayer, run: Run, hidden: Tensor) -> Output:
        """All tokens, kept for later."""
        key = sublayer.index, self.at.now.branch
        out = self.kept[key] = self._watched(sublayer, run, None)
        rows, notes = hidden.shape[1], self.notes(sublayer)
        self._input.pop(key, None)
        self._age.pop(key, None)
        if notes and self.selector in ("change", "similarity"):
            self._input[key] = hidden.detach()
        if notes and self.reuse_weight:
            self._age[key] = hidden.new_zeros(hidden.shape[:2])
        self._count(sublayer, len(hidden) * rows, 0)
        return out

    def reuse(self, sublayer: Sublayer, hidden: Tensor) -> Output:
        """What is kept, as it is."""
        key = sublayer.index, self.at.now.branch
        if key in self._age:
            self._age[key] += 1
        self._count(sublayer, 0, len(hidden) * hidden.shape[1])
        return self.kept[key]

    def refresh(self, sublayer: Sublayer, run: Run, hidden: Tensor, num: int) -> Output:
        """What is kept, with the `num` highest ranking tokens of every sample recomputed."""
        key, n = (sublayer.index, self.at.now.branch), hidden.shape[1]
        if num <= 0:
            return self.reuse(sublayer, hidden)
        if num >= n:
            return self.compute(sublayer, run, hidden)
        rows = self.rank(sublayer, hidden).topk(num, dim=1, sorted=False).indices
        new, kept = self._watched(sublayer, run, rows), self.kept[key]
        out = (put(kept[0], rows, new[0]), new[1]) if isinstance(kept, tuple) else put(kept, rows, new)
        self.kept[key] = out
        if key in self._input:
            self._input[key] = put(self._input[key], rows, take(hidden, rows))
        if self.reuse_weight:
            self._age[key] = (self._age[key] + 1).scatter(1, rows, 0.0)
        self._count(sublayer, len(hidden) * num, len(hidden) * (n - num))
        return out

    def blend(self, sublayer: Sublayer, run: Run, hidden: Tensor, share: Tensor, levels: Sequence[float]) -> Output:
        """As `refresh`, for training: all tokens are computed, and mixed with what is kept by the mask that `share` chooses.

        `share` [S], one-hot over `levels`, gets a gradient for the levels it did not choose too.
        """
        key, n, before = (sublayer.index, self.at.now.branch), hidden.shape[1], dict(self._signal)
        place = self.rank(sublayer, hidden.detach()).argsort(1, descending=True).argsort(1)  # [B,N]
        new, kept = self._watched(sublayer, run, None), self.kept[key]
        keep = sum((share[i] * (place < kept_rows(level, n)) for i, level in enumerate(levels)), torch.zeros(()))
        if isinstance(kept, tuple):  # the text of a joint sub-layer is computed whole or not at all
            text = kept[1] + (1 - share[0]) * (new[1] - kept[1])
            out: Output = (kept[0] + keep[..., None] * (new[0] - kept[0]), text)
        else:
            out = kept + keep[..., None] * (new - kept)
        self.kept[key] = out
        chosen = keep.detach() > 0.5
        if not chosen.any():
            self._signal.clear()
            self._signal.update(before)
        if key in self._input:
            self._input[key] = torch.where(chosen[..., None], hidden.detach(), self._input[key])
        if self.reuse_weight:
            self._age[key] = torch.where(chosen, 0.0, self._age[key] + 1)
        return out

    def state(self) -> tuple[dict[Any, Any], ...]:
        """Everything it holds, for a later `restore`."""
        return tuple(dict(store) for store in self._stores)

    def restore(self, state: tuple[dict[Any, Any], ...]) -> None:
        """Hold what `state` gave, and nothing else."""
        for store, before in zip(self._stores, state, strict=True):
            store.clear()
            store.update(before)

    def rank(self, sublayer: Sublayer, hidden: Tensor) -> Tensor:
        """Scores [B,N]; the passes of a guided batch share the mean of theirs, so that their errors cancel in the guidance."""
        score = self._score(sublayer, hidden)
        if self.reuse_weight:
            score = score + self.reuse_weight * self._age[sublayer.index, self.at.now.branch]
        if self.bonus and self.selector != "random" and sublayer.stream != "text":
            score = _with_bonus(score, self.at.now.grid, self.window, self.bonus)
        if (passes := self.at.now.passes) > 1:
            mean = score.unflatten(0, (passes, -1)).mean(0)
            score = mean.repeat(passes, 1)
        return score

    def _score(self, sublayer: Sublayer, hidden: Tensor) -> Tensor:
        now = self.at.now
        if self.selector == "random":
            g = torch.Generator().manual_seed(1_000_003 * now.step + sublayer.index)
            order = torch.rand(hidden.shape[1], generator=g).to(hidden.device, hidden.dtype)
            return order.expand(len(hidden), -1)
        if self.selector == "norm":
            return hidden.norm(dim=-1)
        if self.selector == "attention":
            return self._attention(sublayer, hidden)
        before = self._input[sublayer.index, now.branch]
        if self.selector == "change":
            return (hidden - before).square().sum(-1)
        return 1 - F.cosine_similarity(hidden, before, dim=-1)

    def _attention(self, sublayer: Sublayer, hidden: Tensor) -> Tensor:
        """Sum of the block's signals, each of unit length over the tokens."""
        now, n = self.at.now, hidden.shape[1]
        found = [self._signal.get((name, sublayer.block, now.branch)) for name in self.signals]
        parts = [self._rows_of(sublayer, signal, n) for signal in found if signal is not None]
        if not parts:  # attention of this block has not been watched yet
            return hidden.norm(dim=-1)
        return sum((F.normalize(p, dim=1) for p in parts), torch.zeros_like(parts[0]))

    def _rows_of(self, sublayer: Sublayer, signal: Tensor, n: int) -> Tensor:
        """The part of a signal over text and image that belongs to this sub-layer's stream."""
        if signal.shape[1] == n:
            return signal
        return signal[:, :n] if sublayer.stream == "text" else signal[:, signal.shape[1] - n :]

    def _watched(self, sublayer: Sublayer, run: Run, rows: Tensor | None) -> Output:
        """Run, and note what the attention maps say where the selector wants them."""
        told = "entropy" if sublayer.kind == "cross" else "received"
        blind = sublayer.kind in ("mlp", "context_mlp") or told not in self.signals
        if self.selector != "attention" or blind or not self.notes(sublayer):
            return run() if rows is None else run(rows)
        with _Watch() as watch:
            out = run() if rows is None else run(rows)
        if watch.seen is not None:
            q, k, mask = watch.seen
            scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
            probability = (scores if mask is None else scores + _additive(mask, scores)).softmax(-1).mean(1)
            if told == "received":
                self._signal["received", sublayer.block, self.at.now.branch] = probability.mean(1)
            else:
                entropy = -(probability * probability.clamp(min=1e-12).log()).sum(-1)
                at = "entropy", sublayer.block, self.at.now.branch
                self._signal[at] = entropy if rows is None else self._signal[at].scatter(1, rows, entropy)
        return out

    def _count(self, sublayer: Sublayer, recomputed: int, reused: int) -> None:
        self.at.computes(sublayer, recomputed / (recomputed + reused))
        self.at.count(f"{sublayer.kind}_tokens_recomputed", recomputed, idle=True)
        self.at.count(f"{sublayer.kind}_tokens_reused", reused)


class _Watch(TorchFunctionMode):
    """Sees queries [B,H,K,d] and keys [B,H,N,d] on their way into attention, rotated and normalised."""

    seen: tuple[Tensor, Tensor, Tensor | None] | None = None

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            q, k = (args[i] if len(args) > i else kwargs[name] for i, name in enumerate(("query", "key")))
            mask = args[3] if len(args) > 3 else kwargs.get("attn_mask")
            self.seen = q.detach(), k.detach(), mask
        return func(*args, **kwargs)


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    return torch.zeros_like(like).masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else mask


def _with_bonus(score: Tensor, grid: tuple[int, int, int], window: int, bonus: float) -> Tensor:
    """Scores [B,N] with the best of every window of the last `frames x height x width` tokens raised by `bonus` times itself."""
    frames, height, width = grid
    n = frames * height * width
    if window < 2 or score.shape[1] < n or height % window or width % window:
        return score
    text, image = score.split([score.shape[1] - n, n], dim=1)
    tiles = image.unflatten(1, (frames, height // window, window, width // window, window)).transpose(3, 4).flatten(4)
    best = tiles.argmax(-1, keepdim=True)
    tiles = tiles.scatter_add(-1, best, bonus * tiles.gather(-1, best))
    image = tiles.unflatten(4, (window, window)).transpose(3, 4).flatten(1)
    return torch.cat([text, image], 1)
