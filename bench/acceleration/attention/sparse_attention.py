"""Where sparse attention is put in: every self-, joint and single-stream attention of a family, on
its way into `scaled_dot_product_attention`, whoever computes which rows of it.

B batch, H heads, K queries, M keys, d width of a head, N image tokens, T tiles.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ditbench.acceleration.attention.operator import BY_VALUES, block_attention, flops_of
from ditbench.models.token_rows import selection_under_way
from ditbench.profiling.flop_counter import aside

if TYPE_CHECKING:
    from ditbench.method.attachment import Attachment
    from ditbench.models.sublayers import Route, Run, Sublayer

SHARE = "share_of_attention_computed"
"""Note in the record: pairs of a query and a key that masks keep, of all, over the attentions of the
generation that is counted."""


@dataclass(frozen=True)
class Mask:
    """Which tiles of keys are kept for each tile of queries."""

    kept: Tensor
    """[b,h,T,T] bool; b and h are B and H, or 1."""
    pairs: int = BY_VALUES
    """Pairs of tokens of one head of one sample where all tokens ask and all masks are alike."""


@dataclass(frozen=True)
class Layout:
    """Tokens of an attention in tiles; the text, where there is any, is the last tile."""

    image: np.ndarray[Any, np.dtype[np.int64]]
    """[N] tile of each image token."""
    text: int
    """Tokens of text."""
    text_first: bool
    tiles: int
    """T, the text's included."""
    of_tokens: Tensor
    """[M] int64."""
    sizes: Tensor
    """[T] tokens of each tile, float32."""

    def everything(self) -> Mask:
        """The mask that keeps all."""
        device = self.of_tokens.device
        whole = torch.ones(1, 1, self.tiles, self.tiles, dtype=torch.bool, device=device)
        return Mask(whole, len(self.of_tokens) ** 2)

    def mask(self, kept: np.ndarray[Any, np.dtype[np.bool_]]) -> Mask | None:
        """A mask [T,T] over image tiles, the text always kept; None where it keeps everything."""
        if kept.all():
            return None
        count, sizes = len(kept), np.bincount(self.image, minlength=len(kept))
        pairs = int(sizes @ kept @ sizes) + self.text * (2 * len(self.image) + self.text)
        whole = np.ones((self.tiles, self.tiles), bool)
        whole[:count, :count] = kept
        return Mask(torch.from_numpy(whole).to(self.of_tokens.device)[None, None], pairs)


class Call:
    """One attention that is about to be computed."""

    def __init__(
        self, owner: SparseAttention, sublayer: Sublayer, q: Tensor, k: Tensor, v: Tensor
    ) -> None:
        self.sublayer, self.q, self.k, self.v = sublayer, q, k, v
        """q [B,H,K,d], k, v [B,H,M,d], normalised and rotated."""
        self.rows = selection_under_way().rows
        """[B,K] the image tokens (of single blocks: tokens) whose queries are asked for; None: all
        tokens, in their order."""
        self._owner = owner
        if selection_under_way().context is not None:
            raise ValueError("sparse attention goes by tiles, and a context's tokens lie in none")

    def layout(self, key: Any, image: Callable[[], np.ndarray[Any, Any]]) -> Layout:
        """Its tokens in tiles: `image()` [N], made once for each `key`; ValueError for another
        number of tokens than there are."""
        return self._owner.layout(self, key, image)

    def queries(self, layout: Layout) -> Tensor:
        """[b,K] the tiles of the queries."""
        if self.rows is None:
            return layout.of_tokens[None]
        rows, text = self.rows, layout.text
        if self.sublayer.kind == "joint" and text:  # rows of the image, the text beside it whole
            whole = layout.of_tokens.new_full((len(rows), text), layout.tiles - 1)
            first = text if layout.text_first else 0
            own = layout.of_tokens[rows + first]
            return torch.cat([whole, own] if layout.text_first else [own, whole], 1)
        return layout.of_tokens[rows]

    def fixed(
        self, key: Any, layout: Layout, kept: Callable[[], np.ndarray[Any, Any]]
    ) -> Mask | None:
        """The mask of `kept()` [T,T] over image tiles, made once for each `key` and layout."""
        masks = self._owner.masks
        grid, device = self._owner.at.now.grid, layout.of_tokens.device
        at = key, grid, layout.text, layout.text_first, len(layout.image), device
        if at not in masks:
            with torch.inference_mode(False):  # generations with gradients may follow
                masks[at] = layout.mask(kept())
        made: Mask | None = masks[at]
        return made

    def dense(self) -> Tensor:
        """[B,H,K,d] as the model computes it by itself."""
        self._owner.note_whole()
        return F.scaled_dot_product_attention(self.q, self.k, self.v)

    def attend(
        self, layout: Layout, mask: Mask, *, rounded: bool = False, kernel: str = "", **other: Any
    ) -> Tensor:
        """[B,H,K,d] under the mask; `rounded`: weights in E4M3; `kernel`: in place of the method's own;
        `other`: other q, k, v, or tiles of queries."""
        q, k, v = (other.get(name, getattr(self, name)) for name in "qkv")
        asking = other.get("queries")
        whole = asking is None and self.rows is None
        asking = self.queries(layout) if asking is None else asking
        pairs = mask.pairs if whole else BY_VALUES
        flex = self._owner.flex_on(q) and len(asking) == 1
        kernel = kernel or ("flex" if flex else "dense")
        arguments = q, k, v, mask.kept, asking, layout.of_tokens
        self._owner.note(arguments, pairs, self.q.shape[2])
        return block_attention(*arguments, pairs=pairs, kernel=kernel, rounded=rounded)


Attend = Callable[[Call], Tensor | None]
"""f(call) -> its output [B,H,K,d]; None: as the model computes it by itself."""


class SparseAttention:
    """Sparse attention on one pipeline."""

    def __init__(self, at: Attachment, kernel: str, attend: Attend) -> None:
        self.at, self.kernel, self._attend = at, kernel, attend
        self.masks: dict[Any, Any] = {}
        """Of this generation, by key; where calls are captured, of all, as layouts are."""
        self._layouts: dict[Any, Layout] = {}
        self._shares: list[float] | None = None
        """Shares of pairs computed, while they are looked at."""

    def _begin(self) -> None:
        if not self.at.is_captured:
            self.masks.clear()
            self._layouts.clear()

    def install(self) -> None:
        """Reroute every attention of image tokens to themselves."""
        self.at.on_start(self._begin)
        self.at.holds(self._tensors)
        self.at.on_inspection(self._inspect)
        for sublayer in self.at.sublayers:
            if sublayer.spec.keys in ("own", "both"):
                self.at.reroute(sublayer, self._route_of(sublayer))

    def flex_on(self, q: Tensor) -> bool:
        """Whether flex_attention computes it."""
        on_gpu = q.device.type not in ("cpu", "meta")
        return self.kernel == "flex" or (self.kernel == "auto" and on_gpu)

    def layout(self, call: Call, key: Any, image: Callable[[], Any]) -> Layout:
        """See `Call.layout`."""
        spec, now = call.sublayer.spec, self.at.now
        text = now.text_tokens if "both" in (spec.stream, spec.keys) else 0
        device = call.k.device
        at = key, now.grid, text, call.sublayer.text_first, device
        if at not in self._layouts:
            tiles = image()
            if len(tiles) + text != call.k.shape[2]:
                raise ValueError(
                    f"attention to {call.k.shape[2]} tokens, where {len(tiles)} of the image and "
                    f"{text} of text were expected"
                )
            count = int(tiles.max()) + 1
            lots = [tiles, np.full(text, count)]
            of_tokens = np.concatenate(lots[::-1] if call.sublayer.text_first else lots)
            total = count + bool(text)
            sizes = np.bincount(of_tokens, minlength=total).astype(np.float32)
            with torch.inference_mode(False):  # generations with gradients may follow
                self._layouts[at] = Layout(
                    tiles, text, call.sublayer.text_first, total,
                    torch.from_numpy(of_tokens).to(device), torch.from_numpy(sizes).to(device),
                )  # fmt: skip
        return self._layouts[at]

    def note(self, arguments: tuple[Tensor, ...], pairs: int, queries: int) -> None:
        """Count an attention under a mask; in the generation that is looked at, its share of what
        all `queries` would compute, too."""
        self.at.count("attentions_sparse")
        if self._shares is not None and not arguments[0].is_meta:
            q, k, *_ = arguments
            batch, heads, _, width = q.shape
            with aside():
                computed = flops_of(*arguments, pairs)  # type: ignore[call-arg, arg-type]
            self._shares.append(computed / (4 * batch * heads * queries * width * k.shape[2]))

    def note_whole(self) -> None:
        """An attention that is computed whole, in the generation that is looked at."""
        if self._shares is not None:
            self._shares.append(1.0)

    def _tensors(self) -> list[Tensor]:
        held = [mask.kept for mask in self.masks.values() if mask is not None]
        return held + [t for made in self._layouts.values() for t in (made.of_tokens, made.sizes)]

    def _inspect(self, undo: Any) -> None:
        shares: list[float] = []
        self._shares = shares

        def done() -> None:
            self._shares = None
            if shares:
                self.at.notes[SHARE] = sum(shares) / len(shares)

        undo.callback(done)

    def _route_of(self, sublayer: Sublayer) -> Route:
        def attend(*args: Any, **kwargs: Any) -> Tensor:
            names = "query", "key", "value", "attn_mask"
            given = dict(zip(names, args, strict=False)) | kwargs
            if given.get("attn_mask") is not None:
                raise ValueError(f"{sublayer.name}: sparse attention under a mask of the model's")
            call = Call(self, sublayer, *(given[name] for name in names[:3]))
            out = self._attend(call)
            if out is None:
                self.note_whole()
                out = F.scaled_dot_product_attention(*args, **kwargs)
            return out

        def route(run: Run, _hidden: Tensor) -> Any:
            with _Replaced(attend):
                return run()

        return route


class _Replaced(TorchFunctionMode):
    """Sends attention elsewhere."""

    def __init__(self, attend: Callable[..., Tensor]) -> None:
        super().__init__()
        self.attend = attend

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return self.attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))
