"""How token caches rank tokens: one small class for each selector.

B batch, N rows of a stream, K chosen rows, D width, H heads, d width of a head, M keys. Scores
[B,N] have unit length over the tokens, so that what `token_cache.TokenCache` adds for waiting weighs the
same whatever the selector (as in the code of arXiv:2410.05317). They are float32 whatever the
model's dtype: in bfloat16 thousands of tokens share a dozen scores, and ties decide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ditbench.acceleration.caching.token_settings import SELECTORS
from ditbench.models.token_rows import put, take
from ditbench.suggest import suggest

if TYPE_CHECKING:
    from ditbench.acceleration.caching.token_settings import Rules
    from ditbench.method.attachment import Attachment
    from ditbench.method.generation import Now
    from ditbench.models.sublayers import Run, Sublayer

Key = tuple[int, int]
"""(sub-layer, guidance pass)."""


MAP = 1 << 27
"""Numbers of an attention map, all heads and samples, above which it is made in pieces: of FLUX at
1024x1024 the whole has 510 million, of Wan at 480p and 81 frames 13 billion."""


class Selector:
    """Ranks the tokens of a sub-layer, by what it remembers of the generation under way."""

    def __init__(self, now: Now, rules: Rules) -> None:
        self.now, self.rules = now, rules
        self.stores: tuple[dict[Any, Any], ...] = ()
        """What it remembers: emptied before every generation, counted in the memory ledger."""

    def attach(self, at: Attachment) -> None:
        """Hook in what it has to see besides."""

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

    def score(self, sublayer: Sublayer, hidden: Tensor, cached: Tensor) -> Tensor:
        """[B,N] float32 of the input `hidden` [B,N,D], higher first; `cached` [B,N,D] is the output
        a token keeps unless it is chosen."""
        raise NotImplementedError

    def key(self, sublayer: Sublayer) -> Key:
        """Where what is remembered of a sub-layer is kept."""
        return sublayer.index, self.now.branch

    def over_passes(self, score: Tensor) -> Tensor:
        """[B,N]: the mean of the guidance passes for all of them where the family's rules have one
        ranking for both."""
        if not self.rules.shared or self.now.passes == 1:
            return score
        mean: Tensor = score.unflatten(0, (self.now.passes, -1)).mean(0)
        return mean.repeat(self.now.passes, 1)


class Attention(Selector):
    """How much a token is attended to in self-attention, and how widely it attends to the text in
    cross-attention: ToCa's s1 and s2."""

    def __init__(self, now: Now, rules: Rules) -> None:
        super().__init__(now, rules)
        self.signals: dict[tuple[str, int, int], Tensor] = {}
        """(signal, block, guidance pass) -> [B,M] for `received`, [B,N] for `entropy`."""
        self.stores = (self.signals,)

    def run(self, sublayer: Sublayer, run: Run, rows: Tensor | None, *, every: bool) -> Any:
        """Watches the attention map. Of some rows, `received` is the mean over those and `entropy`
        is renewed for those alone."""
        signal = "entropy" if sublayer.kind == "cross" else "received"
        if sublayer.kind in ("mlp", "context_mlp") or signal not in self.rules.signals:
            return super().run(sublayer, run, rows, every=every)
        with _Watch() as watch:
            out = super().run(sublayer, run, rows, every=every)
        if watch.seen is None:
            return out
        q, k, mask = watch.seen
        if every and rows is not None:  # what a run of these rows alone would have shown
            text = self.now.text_tokens if sublayer.kind == "joint" else 0
            q = _queries(q, rows, text, not text or sublayer.text_first)
        at = signal, sublayer.block, self.now.branch
        if signal == "received":
            whole = math.prod(self.now.grid)
            whole += 0 if sublayer.stream == "image" else self.now.text_tokens
            if (seen := k.shape[-2]) != whole:
                raise ValueError(
                    f"{sublayer.name} attends to {seen} tokens in place of {whole}, so which tokens are "
                    "attended to is not known: choose another selector"
                )
            self.signals[at] = _received(q, k, mask)
        else:
            entropy = _entropy(q, k, mask)
            self.signals[at] = (
                entropy if rows is None else self.signals[at].scatter(1, rows, entropy)
            )
        return out

    def score(self, sublayer: Sublayer, hidden: Tensor, cached: Tensor) -> Tensor:
        """Sum of the block's signals; ValueError where its attention could not be watched."""
        parts = []
        for name in self.rules.signals:
            signal = self.signals.get((name, sublayer.block, self.now.branch))
            if signal is not None:
                parts.append(
                    F.normalize(
                        self._whole(name, _own_rows(sublayer, signal, hidden.shape[1])), dim=1
                    )
                )
        if not parts:
            raise ValueError(
                f"the attention of block {sublayer.block} was not seen, for it is no call of "
                "scaled_dot_product_attention: "
                "choose another selector"
            )
        return torch.stack(parts).sum(0)

    def _whole(self, name: str, signal: Tensor) -> Tensor:
        """Over guidance passes. The authors' map of a pair has both prompts' tokens, half of the
        weight on either: the entropy of the mean of P maps that do not overlap is their mean
        entropy and log P. They add one to it."""
        mean = self.over_passes(signal)
        if name == "received":
            return mean
        return 1 + mean + (math.log(self.now.passes) if self.rules.shared else 0.0)


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
        return F.normalize(self.over_passes(moved), dim=1)


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
    in the batch.
    """

    def score(self, sublayer: Sublayer, hidden: Tensor, cached: Tensor) -> Tensor:
        """Uniform over 0..1."""
        g = torch.Generator().manual_seed(1_000_003 * self.now.step + sublayer.index)
        # not waited for: the host's copy is taken before the call returns, pinned or not
        order = torch.rand(hidden.shape[1], generator=g).to(hidden.device, non_blocking=True)
        return order.expand(len(hidden), -1)


def selector(name: str) -> Callable[[type[Selector]], type[Selector]]:
    """Declare a class as the selector of that name, for the knob `selector` of token caches;
    ValueError where another class has the name."""

    def register(cls: type[Selector]) -> type[Selector]:
        place = f"{cls.__module__}:{cls.__qualname__}"
        if SELECTORS.setdefault(name, place) != place:
            raise ValueError(f"selector {name!r} is already there, from {SELECTORS[name]}")
        return cls

    return register


def selector_class(name: str) -> type[Selector]:
    """The class of that name; ValueError with the nearest names when there is none."""
    if name not in SELECTORS:
        raise ValueError(f"no selector {name!r}; {suggest(name, SELECTORS)}")
    module, _, cls = SELECTORS[name].partition(":")
    selector_type: type[Selector] = getattr(import_module(module), cls)
    return selector_type


class _Watch(TorchFunctionMode):
    """Sees queries [B,H,K,d] and keys [B,H,M,d] on their way into attention, rotated and
    normalised."""

    seen: tuple[Tensor, Tensor, Tensor | None] | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            q, k = (
                args[i] if len(args) > i else kwargs[name]
                for i, name in enumerate(("query", "key"))
            )
            mask = args[3] if len(args) > 3 else kwargs.get("attn_mask")
            self.seen = q.detach(), k.detach(), mask
        return func(*args, **kwargs)


def _maps(q: Tensor, k: Tensor, mask: Tensor | None) -> Iterator[Tensor]:
    """The attention map of q [B,H,K,d] and k [B,H,M,d], [B,K,M] float32, the mean over heads:
    whole, or a run of queries at a time where it would have more than `MAP` numbers by head. The
    products are made in the model's dtype, as it attends."""
    batch, heads, count, width = q.shape
    size = max(1, MAP // (batch * heads * k.shape[2]))
    if size >= count:
        yield _mean_map((q @ k.transpose(-1, -2)) * width**-0.5, mask)
        return
    q = q * width**-0.5  # the queries, which are smaller than the map
    for first in range(0, count, size):
        rows = slice(first, first + size)
        part = mask if mask is None or mask.shape[-2] == 1 else mask[..., rows, :]
        yield _mean_map(q[:, :, rows] @ k.transpose(-1, -2), part)


def _mean_map(scores: Tensor, mask: Tensor | None) -> Tensor:
    scores = scores if mask is None else scores + _additive(mask, scores)
    return scores.softmax(-1, dtype=torch.float32).mean(1)


def _received(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """How much the keys are attended to, [B,M] float32: the mean over queries."""
    first, *others = (
        probability.mean(1) if probability.shape[1] == q.shape[2] else probability.sum(1)
        for probability in _maps(q, k, mask)
    )
    return sum(others, first) / q.shape[2] if others else first


def _entropy(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """How widely the queries attend, [B,K] float32."""
    parts = [-(p * p.clamp(min=1e-12).log()).sum(-1) for p in _maps(q, k, mask)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _queries(q: Tensor, rows: Tensor, text: int, text_first: bool) -> Tensor:
    """Queries [B,H,T+K,d] of the `text` tokens, all of them, and of the chosen `rows` [B,K] of the
    others, in the order of `q`."""
    whole = torch.arange(text, device=rows.device).expand(len(rows), -1)
    if text_first:
        at = torch.cat([whole, rows + text], 1)[:, None, :, None]
    else:
        at = torch.cat([rows, whole + q.shape[2] - text], 1)[:, None, :, None]
    return q.gather(2, at.expand(-1, q.shape[1], -1, q.shape[3]))


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    return (
        torch.zeros_like(like).masked_fill(~mask, float("-inf"))
        if mask.dtype == torch.bool
        else mask
    )


def _own_rows(sublayer: Sublayer, signal: Tensor, n: int) -> Tensor:
    """The part [B,N] of a signal over text and image that belongs to this sub-layer's stream."""
    if signal.shape[1] == n:
        return signal
    at_start = (sublayer.stream == "text") == sublayer.text_first
    return signal[:, :n] if at_start else signal[:, signal.shape[1] - n :]
