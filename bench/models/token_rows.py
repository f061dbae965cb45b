"""Some rows of a sub-layer: what diffusers cannot do by itself. Queries of the chosen rows, keys
and values of all tokens or of others. What only one family needs is in its file of `families`.

B batch, N image tokens, T text tokens, K chosen rows, M tokens of a context, H heads, D width, d
width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ditbench.models.fused_rows import normalised, taken
from ditbench.models.pending import ADD, CAST, MUL, Pending, real
from ditbench.models.regions import running_computer

Run = Callable[..., Any]
"""`run()` computes every row, `run(rows)` with rows [B,K] int64 only those; `context` [B,M,D] are
tokens that keys and values are made of in place of the sub-layer's own, `places` [B,M] int64 the
tokens whose positions they have. See `sublayers.Sublayer.reroute`."""


@dataclass(frozen=True)
class Context:
    """Tokens that keys and values are made of, in place of a sub-layer's own."""

    tokens: Tensor
    """[B,M,D], normalised and modulated."""
    places: Tensor | None = None
    """[B,M] int64: the tokens whose positions they have."""


@dataclass(frozen=True)
class Selection:
    """What a sub-layer computes: which rows, attending to what."""

    rows: Tensor | None = None
    context: Context | None = None

    @property
    def whole(self) -> bool:
        """Whether it is what the model does by itself."""
        return self.rows is None and self.context is None

    def narrowed(
        self,
        hidden: Tensor,
        rows: Tensor | None = None,
        context: Tensor | None = None,
        places: Tensor | None = None,
    ) -> Selection:
        """This, as a route asks it further of a sub-layer with the input `hidden`; ValueError where
        both choose rows, or both a context, for places of another shape, for a context without
        tokens, and for rows or a context of another batch."""
        if rows is None and context is None:
            return self
        for given, what in ((rows, "rows"), (context, "a context")):
            if given is not None and len(given) != len(hidden):
                raise ValueError(f"{what} for {len(given)} of a batch of {len(hidden)}")
        if context is not None and not context.shape[1]:
            raise ValueError("a context without tokens has nothing to attend to")
        other = None if context is None else Context(context, places)
        if other and places is not None and places.shape != other.tokens.shape[:2]:
            raise ValueError(
                f"places {list(places.shape)} are not one for each token of the context "
                f"{list(other.tokens.shape)}"
            )
        for mine, theirs, what in ((self.rows, rows, "rows"), (self.context, other, "a context")):
            if mine is not None and theirs is not None:
                raise ValueError(f"two methods choose {what} of one sub-layer")
        return Selection(self.rows if rows is None else rows, self.context or other)


WHOLE = Selection()
"""All rows, attending to all tokens."""
_COMPUTED: list[Selection] = []


@contextmanager
def computing(selection: Selection) -> Iterator[None]:
    """What runs inside computes that part of a sub-layer."""
    _COMPUTED.append(selection)
    try:
        yield
    finally:
        _COMPUTED.pop()


def selection_under_way() -> Selection:
    """What is computed of the sub-layer that runs now, for a method that replaces an operation inside
    it: whole, where nobody chose."""
    return _COMPUTED[-1] if _COMPUTED else WHOLE


def places_of(context: Context | None) -> Tensor | None:
    """The places of a context's tokens, None without one; ValueError where it has none, for an
    attention that goes by position."""
    if context is not None and context.places is None:
        raise ValueError(
            "this attention goes by position: say with places [B,M] whose positions the tokens of the "
            "context have"
        )
    return None if context is None else context.places


ROUTED: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
"""The `forward` that a route was put in as -> how a route put round it later asks it for rows or a
context."""


@dataclass(frozen=True)
class SingleRun:
    """A `Run` of a FLUX single block, with its halves."""

    attention: Callable[..., Tensor]
    """Rows [B,K], None for all, context and places -> their attention [B,K,D]."""
    project: Callable[[Tensor, Tensor | None], Tensor]
    """Attention [B,K,D] and its rows -> the output: their MLP, and the projection of both."""
    both: Callable[..., Tensor] | None = None
    """Both halves, where another route stands in between."""

    def __call__(
        self,
        rows: Tensor | None = None,
        context: Tensor | None = None,
        places: Tensor | None = None,
    ) -> Tensor:
        """The output for these rows, [B,K,D]."""
        if self.both is not None:
            return self.both(rows, context, places)
        other = () if context is None else (context, places)
        return self.project(self.attention(rows, *other), rows)


def take(x: Tensor, rows: Tensor) -> Tensor:
    """The chosen rows: [B,N,D], [B,K] -> [B,K,D]. Of a norm and a modulation that are pending they
    alone are worked out: these go row by row."""
    if (fused := taken(x, rows)) is not None:
        return fused
    if normalised(x) and (chosen := _some_rows(x, rows, x.shape[1])) is not None:
        some: Tensor = real(chosen)
        return some
    return _gathered(real(x), rows)


def _some_rows(given: Any, rows: Tensor, n: int) -> Any:
    """None where an operand has neither a row for each of `n` tokens nor one for all."""
    if not normalised(given):
        if not isinstance(given, (Pending, Tensor)):
            return given
        if given.ndim != 3 or given.shape[1] not in (1, n):
            return None
        if isinstance(given, Pending) and given.kind == CAST and given.waits:
            bare = _some_rows(given.args[0], rows, n)
            return None if bare is None else given.operation(bare, *given.args[1:])
        return real(given) if given.shape[1] == 1 else _gathered(real(given), rows)
    made = given.args if given.kind in (ADD, MUL) else given.args[:1]
    args = [_some_rows(arg, rows, n) for arg in made]
    if any(arg is None for arg in args):
        return None
    rest = given.args[len(made) :]
    if running_computer() is not None:  # all of it in one region
        return Pending(None, given.kind, given.operation, (*args, *rest))
    return given.operation(*args, *real(rest))


def every(x: Any) -> Tensor:
    """All rows [B,N,D], for keys and values of a sub-layer whose queries are some of them."""
    if (fused := taken(x, None)) is not None:
        x.settle(fused)
    whole: Tensor = real(x)
    return whole


def _gathered(x: Tensor, rows: Tensor) -> Tensor:
    if x.device.type == "cpu":  # whole rows are copied, where gather goes by elements
        some: Tensor = x.flatten(0, 1).index_select(0, _among_all(x, rows))
        return some.view(*rows.shape, x.shape[-1])
    return x.gather(1, rows.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def _among_all(x: Tensor, rows: Tensor) -> Tensor:
    """Rows [B,K] of [B,N,D] as those of [B*N,D]: [B*K]. Gathered, for that refuses a row below 0 or past
    the last, which added up would be a row of another sample."""
    every_row = torch.arange(x.shape[0] * x.shape[1], device=rows.device).view(x.shape[:2])
    return every_row.gather(1, rows).flatten()


def put(x: Tensor, rows: Tensor, value: Tensor, *, in_place: bool = False) -> Tensor:
    """A copy of `x` [B,N,D] whose `rows` [B,K] are `value` [B,K,D]; `in_place`: `x` itself, of which
    no more than those is written."""
    if x.device.type == "cpu" and x.is_contiguous():  # scatter also copies `x`, there and back
        # in place either way: index_copy promotes under autocast, and what is kept would change its dtype
        written = x if in_place else x.clone()
        written.flatten(0, 1).index_copy_(0, _among_all(x, rows), value.flatten(0, 1))
        return written
    at = rows.unsqueeze(-1).expand(-1, -1, x.shape[-1])
    return x.scatter_(1, at, value) if in_place else x.scatter(1, at, value)


def tokenwise(
    _module: nn.Module, forward: Run, rows: Tensor, hidden: Tensor, *args: Any, **kwargs: Any
) -> Any:
    """Rows of what treats every token alone: MLPs, and cross-attention, whose keys are the text."""
    return forward(take(hidden, rows), *args, **kwargs)


def self_attention(
    _module: nn.Module,
    forward: Run,
    rows: Tensor | None,
    hidden: Tensor,
    _text: None = None,
    context: Context | None = None,
    **kwargs: Any,
) -> Any:
    """Rows of self-attention without positions inside it, by diffusers' own cross-attention
    path."""
    if context is not None:
        refuse_mask(kwargs.get("attention_mask"))
    hidden = every(hidden)
    kwargs["encoder_hidden_states"] = hidden if context is None else context.tokens
    return forward(hidden if rows is None else take(hidden, rows), **kwargs)


def undeclared(family: str, kind: str) -> Callable[..., Any]:
    """What computes some rows of an attention whose family does not say how: a ValueError."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise ValueError(
            f"family {family} does not declare how some rows of {kind!r} are computed; run all of "
            "them"
        )

    return refuse


def attend(attn: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention through the same backend as the processor's own: [B,K,H,d] -> [B,K,D]."""
    from diffusers.models.attention_dispatch import dispatch_attention_fn

    out: Tensor = dispatch_attention_fn(q, k, v, backend=attn.processor._attention_backend)
    return out.flatten(2).type_as(q)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of neighbouring pairs (Su et al. 2021, eq. 34): x [B,.,H,d], cos and sin [1
    or B,.,1,d]."""
    real, imaginary = x.unflatten(-1, (-1, 2)).unbind(-1)
    return (x * cos + torch.stack([-imaginary, real], -1).flatten(-2) * sin).type_as(x)


def at_rows(rotary: tuple[Tensor, Tensor], rows: Tensor | None) -> tuple[Tensor, ...]:
    """Cosines and sines [1,N,1,d] of all tokens, at rows [B,K]: [B,K,1,d]; None: as they are."""
    return rotary if rows is None else tuple(part[0][rows] for part in rotary)


def refuse_mask(mask: Any, **more: Any) -> None:
    """ValueError unless the mask and everything else an attention is called with are None."""
    if mask is not None or any(value is not None for value in more.values()):
        raise ValueError(
            "some rows, or a context, of a masked or otherwise conditioned attention cannot be "
            "computed; run all of them"
        )
