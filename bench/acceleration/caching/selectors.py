"""How token caches rank tokens: one small class for each selector.

B batch, N rows of a stream, K chosen rows, D width, H heads, d width of a head, M keys. Scores
[B,N] have unit length over the tokens, so that what `token_cache.TokenCache` adds for waiting weighs the
same whatever the selector, but for those at random, which are from 0 to 1 (both as in the code of
arXiv:2410.05317). They are float32 whatever the
model's dtype: in bfloat16 thousands of tokens share a dozen scores, and ties decide.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ditbench.acceleration.caching import fused_ranking
from ditbench.acceleration.caching.attention_map import (
    Watch,
    entropy_of,
    own_rows,
    queries_at,
    received_by,
)
from ditbench.acceleration.caching.fused_ranking import by_kernel
from ditbench.acceleration.caching.random_orders import RandomOrders
from ditbench.acceleration.caching.token_settings import SELECTORS
from ditbench.models.token_rows import put, take

if TYPE_CHECKING:
    from ditbench.acceleration.caching.token_settings import Rules
    from ditbench.method.attachment import Attachment
    from ditbench.method.generation import Now
    from ditbench.models.sublayers import Run, Sublayer

Key = tuple[int, int]
"""(sub-layer, guidance pass)."""


class Selector:
    """Ranks the tokens of a sub-layer, by what it remembers of the generation under way."""

    def __init__(self, now: Now, rules: Rules) -> None:
        self.now, self.rules = now, rules
        self.stores: tuple[dict[Any, Any], ...] = ()
        """What it remembers: emptied before every generation, counted in the memory ledger."""
        self.own: set[Any] = set()
        """Keys of what nobody else holds, so that it may be written into."""

    def attach(self, at: Attachment) -> None:
        """Hook in what it has to see besides."""

    def looks(self, sublayer: Sublayer) -> bool:
        """Whether it has something to see when all of the sub-layer is computed, besides its output."""
        return True

    def run(self, sublayer: Sublayer, run: Run, rows: Tensor | None, *, every: bool) -> Any:
        """The sub-layer's output for all rows where `every`, else for `rows` [B,K]; notes what is
        to be seen at `rows`, None: at all."""
        return run() if every else run(rows)

    def computed(self, sublayer: Sublayer, hidden: Tensor, rows: Tensor | None) -> None:
        """`rows` [B,K] of the sub-layer have been computed from its input `hidden` [B,N,D]; None:
        all of them."""

    def forget(self, sublayer: Sublayer) -> None:
        """No ranking will ask for what is remembered of the sub-layer alone before it is computed
        again."""

    def forget_scores(self) -> None:
        """Scores that sub-layers share are worked out again."""

    def score(self, sublayer: Sublayer, hidden: Tensor, cached: Tensor) -> Tensor:
        """[B,N] float32 of the input `hidden` [B,N,D], higher first; `cached` [B,N,D] is the output
        a token keeps unless it is chosen."""
        raise NotImplementedError

    def parts(self, sublayer: Sublayer, n: int) -> list[tuple[Tensor, float]] | None:
        """Signals [B,N] whose sum is the score, once what stands beside them is added, the mean of
        guidance passes that share a ranking is taken, and they are of unit length; None: `score` works
        it out."""
        return None

    def key(self, sublayer: Sublayer) -> Key:
        """Where what is remembered of a sub-layer is kept."""
        return sublayer.index, self.now.branch

    def over_passes(self, score: Tensor) -> Tensor:
        """The mean [S,N] of the guidance passes of [B,N] where the family's rules have one ranking
        for both; else as it is."""
        if not self.rules.shared or self.now.passes == 1:
            return score
        mean: Tensor = score.unflatten(0, (self.now.passes, -1)).mean(0)
        return mean

    def for_passes(self, score: Tensor) -> Tensor:
        """[B,N] of what `over_passes` gave, the same for all of them."""
        if not self.rules.shared or self.now.passes == 1:
            return score
        return score.repeat(self.now.passes, 1)


class Attention(Selector):
    """How much a token is attended to in self-attention, and how widely it attends to the text in
    cross-attention: ToCa's s1 and s2."""

    def __init__(self, now: Now, rules: Rules) -> None:
        super().__init__(now, rules)
        self.signals: dict[tuple[str, int, int], Tensor] = {}
        """(signal, block, guidance pass) -> [B,M] for `received`, [B,N] for `entropy`."""
        self.scores: dict[tuple[int, int, str, int, int], Tensor] = {}
        """(block, guidance pass, stream, N, passes of the batch) -> the sum of the signals as they are,
        for the block's sub-layers."""
        self.stores = (self.signals, self.scores)

    def looks(self, sublayer: Sublayer) -> bool:
        """At attention alone, and at the signals of the family."""
        signal = "entropy" if sublayer.kind == "cross" else "received"
        return sublayer.kind not in ("mlp", "context_mlp") and signal in self.rules.signals

    def run(self, sublayer: Sublayer, run: Run, rows: Tensor | None, *, every: bool) -> Any:
        """Watches the attention map. Of some rows, `received` is the mean over those (one in
        `Rules.query_stride`) and `entropy` is renewed for those alone."""
        if not self.looks(sublayer):
            return super().run(sublayer, run, rows, every=every)
        signal = "entropy" if sublayer.kind == "cross" else "received"
        with Watch() as watch:
            out = super().run(sublayer, run, rows, every=every)
        if watch.seen is None:
            return out
        q, k, mask = watch.seen
        if every and rows is not None:  # what a run of these rows alone would have shown
            text = self.now.text_tokens if sublayer.kind == "joint" else 0
            q = queries_at(q, rows, text, not text or sublayer.text_first)
        at = signal, sublayer.block, self.now.branch
        for key in [key for key in self.scores if key[:2] == at[1:]]:
            del self.scores[key]
        if signal == "received":
            whole = math.prod(self.now.grid)
            whole += 0 if sublayer.stream == "image" else self.now.text_tokens
            if (seen := k.shape[-2]) != whole:
                raise ValueError(
                    f"{sublayer.name} attends to {seen} tokens in place of {whole}, so which tokens are "
                    "attended to is not known: choose another selector"
                )
            if (stride := min(self.rules.query_stride, q.shape[2])) > 1:
                # another one at every step and block, for tokens attend to themselves more than to others
                first = (self.now.step + sublayer.block) % stride
                q = q[:, :, first::stride]
                if mask is not None and mask.ndim > 1 and mask.shape[-2] > 1:
                    mask = mask[..., first::stride, :]
            by = fused_ranking.received if by_kernel(q, k, mask) else received_by
            self.signals[at] = by(q, k, mask)
        else:
            self._note_entropy(at, rows, q, k, mask)
        return out

    def _note_entropy(
        self, at: tuple[str, int, int], rows: Tensor | None, q: Tensor, k: Tensor, mask: Any
    ) -> None:
        fused = by_kernel(q, k, mask)
        if fused and rows is not None and at in self.own:
            fused_ranking.entropy_into(self.signals[at], rows, q, k, mask)
            return
        entropy = (fused_ranking.entropy if fused else entropy_of)(q, k, mask)
        self.signals[at] = entropy if rows is None else self.signals[at].scatter(1, rows, entropy)
        if torch.is_grad_enabled():
            self.own.discard(at)
        else:
            self.own.add(at)

    def forget_scores(self) -> None:
        """Scores that sub-layers share are worked out again."""
        self.scores.clear()

    def score(self, sublayer: Sublayer, hidden: Tensor, cached: Tensor) -> Tensor:
        """Sum of the block's signals; ValueError where its attention could not be watched."""
        n = hidden.shape[1]
        key = sublayer.block, self.now.branch, sublayer.stream, n, self.now.passes
        if key not in self.scores:
            self.scores[key] = self._sum(sublayer, n)
        return self.scores[key]

    def parts(self, sublayer: Sublayer, n: int) -> list[tuple[Tensor, float]] | None:
        """The block's signals."""
        return [
            (signal, 0.0 if name == "received" else 1 + self._together)
            for name, signal in self._seen(sublayer, n)
        ]

    def _sum(self, sublayer: Sublayer, n: int) -> Tensor:
        parts = [F.normalize(self._whole(*seen), dim=1) for seen in self._seen(sublayer, n)]
        return self.for_passes(sum(parts[1:], parts[0]))

    def _seen(self, sublayer: Sublayer, n: int) -> list[tuple[str, Tensor]]:
        found = [
            (name, own_rows(sublayer, signal, n))
            for name in self.rules.signals
            if (signal := self.signals.get((name, sublayer.block, self.now.branch))) is not None
        ]
        if not found:
            raise ValueError(
                f"the attention of block {sublayer.block} was not seen, for it is no call of "
                "scaled_dot_product_attention: "
                "choose another selector"
            )
        return found

    def _whole(self, name: str, signal: Tensor) -> Tensor:
        """Over guidance passes. The authors add one to an entropy."""
        mean = self.over_passes(signal)
        if name == "received":
            return mean
        return 1 + mean + self._together if self._together else 1 + mean

    @property
    def _together(self) -> float:
        """What entropies gain by guidance passes: the authors' map of a pair has both prompts' tokens,
        half of the weight on either, and the entropy of the mean of P maps that do not overlap is their
        mean entropy and log P."""
        return math.log(self.now.passes) if self.rules.shared else 0.0


class Change(Selector):
    """How far a token's input has moved since it was last recomputed: ours."""

    def __init__(self, now: Now, rules: Rules) -> None:
        super().__init__(now, rules)
        self.inputs: dict[Key, Tensor] = {}
        self.stores = (self.inputs,)

    def computed(self, sublayer: Sublayer, hidden: Tensor, rows: Tensor | None) -> None:
        """Keeps the input of the rows."""
        key, hidden = self.key(sublayer), hidden.detach()
        self.inputs[key] = (
            hidden if rows is None else put(self.inputs[key], rows, take(hidden, rows))
        )

    def forget(self, sublayer: Sublayer) -> None:
        """Drops its input."""
        self.inputs.pop(self.key(sublayer), None)

    def score(self, sublayer: Sublayer, hidden: Tensor, cached: Tensor) -> Tensor:
        """Squared distance."""
        moved = (hidden.float() - self.inputs[self.key(sublayer)].float()).square().sum(-1)
        return self.for_passes(F.normalize(self.over_passes(moved), dim=1))


class Residual(Selector):
    """Ranks by the residual stream that enters a block's norm, as the authors' code does."""

    def __init__(self, now: Now, rules: Rules) -> None:
        super().__init__(now, rules)
        self.streams: dict[int, Tensor] = {}
        """The stream that entered the last norm, by the number of the sub-layer that follows it."""
        self.stores = (self.streams,)

    def attach(self, at: Attachment) -> None:
        """Watches the norms."""
        for sublayer in at.sublayers:
            if sublayer.norm is not None:
                at.patch(
                    sublayer.norm, "forward", self._watched(sublayer.index, sublayer.norm.forward)
                )

    def stream(self, sublayer: Sublayer, hidden: Tensor) -> Tensor:
        """[B,N,D] of the sub-layer about to run, whose input is `hidden` [B,N,D]."""
        return self.streams.get(sublayer.index, hidden)

    def _watched(self, index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def watched(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.streams.clear()
            self.streams[index] = hidden.detach()
            return forward(hidden, *args, **kwargs)

        return watched


class Norm(Residual):
    """Length of a token's residual stream."""

    def score(self, sublayer: Sublayer, hidden: Tensor, cached: Tensor) -> Tensor:
        """Of every guidance pass alone."""
        return F.normalize(self.stream(sublayer, hidden).float().norm(dim=-1), dim=1)


class Similarity(Residual):
    """One minus the cosine of a token's residual stream and the output that is kept of it."""

    def score(self, sublayer: Sublayer, hidden: Tensor, cached: Tensor) -> Tensor:
        """Of every guidance pass alone."""
        stream = self.stream(sublayer, hidden).float()
        return F.normalize(1 - F.cosine_similarity(stream, cached.float(), dim=-1), dim=1)


class Shuffle(Selector):
    """One random permutation for all samples and guidance passes, another at every step and
    sub-layer.

    The authors' `random` draws one for every sample, which would make a sample depend on its place
    in the batch. They are the same in every generation.
    """

    def __init__(self, now: Now, rules: Rules) -> None:
        super().__init__(now, rules)
        self._random = RandomOrders()
        self.orders = self._random.here

    def looks(self, sublayer: Sublayer) -> bool:
        """At nothing."""
        return False

    def attach(self, at: Attachment) -> None:
        """Has them leave the device with the generation."""
        self._random.attach(at)

    def score(self, sublayer: Sublayer, hidden: Tensor, cached: Tensor) -> Tensor:
        """Uniform over 0..1."""
        key = self.now.step, sublayer.index, hidden.shape[1]
        return self._random.of(key, hidden.device).expand(len(hidden), -1)


def selector(name: str) -> Callable[[type[Selector]], type[Selector]]:
    """Declare a class as the selector of that name, for the knob `selector` of token caches;
    ValueError where another class has the name."""

    def register(cls: type[Selector]) -> type[Selector]:
        place = f"{cls.__module__}:{cls.__qualname__}"
        if SELECTORS.setdefault(name, place) != place:
            raise ValueError(f"selector {name!r} is already there, from {SELECTORS[name]}")
        return cls

    return register
