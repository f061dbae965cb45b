"""A diffusion transformer seen as a list of sub-layers that can be rerouted: write a method once,
run it on every family of `families`.

Rerouting patches the `forward` of the sub-layer's own modules; the block's code still does norm,
modulation, gate and residual, and no forward of diffusers is copied. Norm and modulation of what is
not run need not be worked out (`pending.py`).

B batch, N image tokens, T text tokens, K chosen rows, M tokens of a context, H heads, D width, d
width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from ditbench.models.deferred import defer
from ditbench.models.family import Family, Grid, Kind
from ditbench.models.family import family_of as _family_of
from ditbench.models.fused_sums import not_run
from ditbench.models.pending import Pending, real
from ditbench.models.regions import computer_of, own_forward, rows_region, run_forward
from ditbench.models.standing import Dense, Idle, OutputsOnly, Standing, entered_by
from ditbench.models.token_rows import (
    ROUTED,
    WHOLE,
    Run,
    Selection,
    computing,
    put,
    take,
    tokenwise,
    undeclared,
)

__all__ = [
    "Kind",
    "Macs",
    "Patch",
    "Route",
    "Run",
    "Sublayer",
    "call_sizes",
    "put",
    "sublayers",
    "take",
]

Route = Callable[[Run, Tensor], Any]
"""`route(run, hidden)` returns the sub-layer's output for all rows; it may call `run` once, several
times, or not at all."""
Patch = Callable[[Any, str, Any], Any]
"""`patch(owner, name, value)` sets an attribute in a way somebody takes back later
(`Attachment.patch`)."""


@dataclass(frozen=True, kw_only=True)
class Macs:
    """Multiply-accumulates of one sample; a FLOP count is twice the total."""

    linear: int = 0
    attention: int = 0
    """Queries times keys, and weights times values."""

    @property
    def total(self) -> int:
        """Both together."""
        return self.linear + self.attention


@dataclass(frozen=True, kw_only=True, eq=False)
class Sublayer:
    """One piece of a block whose output is gated and added to the residual stream."""

    index: int
    """Place in the list of sub-layers."""
    block: int
    kind: str
    """`self`, `cross`, `mlp`, `context_mlp`, `joint` (image and text attend together), `single`
    (FLUX single block, whole), or one its family declares."""
    spec: Kind
    """Which of its linear layers see which tokens."""
    stream: str
    """Tokens its output is for: `image`, `text`, or `both`: a pair (image, text) for `joint`, text
    before image for `single`."""
    module: nn.Module
    """What is rerouted; for `single` the block itself."""
    norm: nn.Module | None
    """Called right before it with the residual stream [B,rows,D] of its tokens; None where it is
    given that itself."""
    text_first: bool
    """Whether text stands before the image where both attend together."""
    run_rows: Callable[..., Any]
    """How some rows are computed (`Family.rows`)."""
    takes_context: bool = False
    """Whether keys and values may be made of other tokens (`Family.contexts`)."""
    owner: nn.Module
    """The block it is a piece of."""
    deferred: tuple[str, ...] = ()
    """Arguments of the block that may be pending (`Family.deferred`)."""
    siblings: int = 0
    """Sub-layers of the block, itself among them; 0 where nobody counted."""
    casts: bool = False
    """Whether the block casts in between (`Family.casts`)."""
    reroute_whole: Callable[..., None] | None = None
    """How it is rerouted, where not by its module's `forward` (`Family.reroute`)."""

    @property
    def name(self) -> str:
        """Such as `3.cross`."""
        return f"{self.block}.{self.kind}"

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The modules it is made of; norms and modulation belong to the block."""
        if not self.spec.modules:
            return (self.module,)
        return tuple(self.module.get_submodule(name) for name in self.spec.modules)

    @property
    def giving(self) -> nn.Module | None:
        """The module whose output is the sub-layer's; None where its family does not say which."""
        if self.spec.giving:
            return self.module.get_submodule(self.spec.giving)
        return self.module if self.reroute_whole is None else None

    @property
    def linears(self) -> tuple[nn.Linear, ...]:
        """The linear layers it is made of."""
        return tuple(m for part in self.modules for m in part.modules() if isinstance(m, nn.Linear))

    def macs(self, tokens: int, rows: int | None = None, text_tokens: int = 0) -> Macs:
        """Multiply-accumulates of one sample with `tokens` image tokens when `rows` of its stream
        are computed (None: all; 0: not run).

        Raises ValueError when more rows are computed than there are.
        """
        kind = self.spec
        own = {"image": tokens, "text": text_tokens, "both": tokens + text_tokens}[kind.stream]
        rows = own if rows is None else rows
        if not 0 <= rows <= own:
            raise ValueError(f"{self.name} has {own} rows, so {rows} cannot be kept")
        if rows == 0:
            return Macs()
        linear = sum(
            count * layer.in_features * layer.out_features
            for count, layers in ((rows, kind.rows), (own, kind.all), (text_tokens, kind.text))
            for name in layers
            if (layer := self._linear(name)) is not None
        )
        if not kind.keys:
            return Macs(linear=linear)
        keys = {"own": own, "text": text_tokens, "both": tokens + text_tokens}[kind.keys]
        queries = rows + (text_tokens if kind.keys == "both" else 0)
        width = self._linear(kind.rows[0]).out_features
        return Macs(linear=linear, attention=2 * queries * keys * width)

    def reroute(
        self,
        route: Route,
        patch: Patch,
        *,
        deferred: bool = False,
        dense: Dense | None = None,
        idle: Idle | None = None,
        outputs_only: OutputsOnly | None = None,
    ) -> bool:
        """Send every call through `route(run, hidden)`, with hidden [B,rows,D] the normalised and
        modulated input.

        `run()` returns the output before gate and residual: [B,N,D], or for `joint` the pair
        ([B,N,D], [B,T,D]). `run(rows)` returns the chosen rows [B,K,D]; queries of those rows, keys
        and values of all tokens; for `joint` rows of the image, text whole. For `single` it is a
        `token_rows.SingleRun`, whose halves can be run apart.

        `run(rows, context=tokens, places=at)` makes keys and values of other tokens [B,M,D], merged
        ones say, in place of `hidden`; `at` [B,M] int64 are the rows of `hidden` whose positions
        they have, which rotary embeddings need. For `joint` they stand for the image, and the text
        is there besides. ValueError where `takes_context` is false.

        What is rerouted twice goes through the later route first; what that asks of `run`, the
        earlier route's `run()` computes.

        `deferred`: the block runs on pending tensors (`pending.Pending`), and `hidden` may be one:
        norm and modulation are worked out when `run` is called or something else looks at its
        values, and else never. `dense`: whether the call of the block that begins computes the
        sub-layer in full, and the route then returns what one `run()` gave; where that is so of all,
        nothing waits. `idle`: whether it computes nothing of it, and the route then looks neither at
        `run` nor at `hidden`, and is asked before the block begins; what the block does round the
        others is repeated (`recorded.py`). `outputs_only`: whether the route of what is dense goes by
        what `run()` gave alone (`block_region.py`). Returns whether they wait.
        """
        known = idle or outputs_only
        standing = Standing(route, idle, dense, outputs_only, self.giving) if known else None
        waits = deferred and bool(self.deferred)
        if waits:
            waits = defer(
                self.owner, self.deferred, patch, dense, casts=self.casts, standing=standing,
                part=self.module, parts=self.siblings,
            )  # fmt: skip
        if standing is not None:
            route, patch = standing.asked, standing.patching(patch)
        if not deferred and self.deferred:
            route = _given_tensors(route)
        if self.reroute_whole is not None:
            self.reroute_whole(self.module, route, patch)
            return waits
        original = self.module.forward
        inner = ROUTED.get(original)

        def routed(
            selection: Selection, hidden: Tensor, rest: Any, kwargs: Any, outermost: bool = False
        ) -> Any:
            ran = False

            def run(
                rows: Tensor | None = None,
                context: Tensor | None = None,
                places: Tensor | None = None,
            ) -> Any:
                nonlocal ran
                ran = True
                if context is not None and not self.takes_context:
                    raise ValueError(f"{self.name} cannot attend to other tokens than its own")
                now = selection.narrowed(hidden, rows, context, places)
                if inner is not None:
                    return inner(now, hidden, rest, kwargs)
                others, named = real(rest), real(kwargs)
                if now.whole:
                    return run_forward(self.owner, original, real(hidden), *others, **named)
                with computing(now):
                    return self._some_rows(original, now, hidden, others, named)

            output = route(run, hidden)
            own = outermost and not ran and isinstance(hidden, Pending)  # else another route's
            return not_run(output) if own else output

        def enter(hidden: Any, rest: Any, kwargs: Any) -> Any:
            return routed(WHOLE, hidden, rest, kwargs, outermost=True)

        entered = entered_by(enter, route, alone=inner is None)

        def forward(*args: Any, **kwargs: Any) -> Any:
            # blocks call their modules either way
            hidden, *rest = args or (kwargs.pop("hidden_states"),)
            return entered(hidden, rest, kwargs)

        patch(self.module, "forward", forward)
        ROUTED[forward] = routed
        return waits

    def _some_rows(
        self, forward: Callable[..., Any], now: Selection, hidden: Any, args: Any, kwargs: Any
    ) -> Any:
        """What it computes of that selection, by its regions where those are somebody's."""
        if now.context is not None:
            kwargs = {**kwargs, "context": now.context}
        elif self.run_rows is tokenwise:
            forward = partial(run_forward, self.owner, forward)
        elif (own := own_forward(forward)) and (computer := computer_of(self.owner)):
            region = rows_region(self.run_rows, own)
            return computer(region, self.module, now.rows, real(hidden), *args, **kwargs)
        return self.run_rows(self.module, forward, now.rows, hidden, *args, **kwargs)

    def _linear(self, name: str) -> Any:
        return _submodule(self.module, name)


def sublayers(transformer: nn.Module) -> list[Sublayer]:
    """The transformer's sub-layers in the order they run; ValueError for a class of no family."""
    family = _family_of(transformer)
    rows, reroutes = family.rows(), family.reroute()
    result: list[Sublayer] = []
    first = 0
    for blocks, parts in family.stacks:
        modules = list(getattr(transformer, blocks))
        for i, block in enumerate(modules):
            there = [
                (name, module, norm)
                for name, path, norm in parts
                if (module := _submodule(block, path)) is not None
            ]
            for name, module, norm in there:
                kind = family.kind(name)
                result.append(
                    Sublayer(
                        index=len(result), block=first + i, kind=name, spec=kind,
                        stream="both" if kind.pair else kind.stream, module=module,
                        norm=block.get_submodule(norm) if norm else None,
                        text_first=family.text_first,
                        run_rows=rows.get(name) or _rows_of(family, name, kind),
                        takes_context=name in family.contexts,
                        reroute_whole=reroutes.get(name), siblings=len(there),
                        owner=block, deferred=family.deferred, casts=family.casts,
                    )
                )  # fmt: skip
        first += len(modules)
    return result


def call_sizes(
    transformer: nn.Module, args: Any, kwargs: Any, grid: Grid | None = None
) -> tuple[int, Grid, int]:
    """Rows of the batch, (frames, rows, columns) of image tokens, and text tokens of a call of the
    transformer with these arguments.

    `grid`: what the image tokens are where that is known. It is believed where the call tells it by
    values alone (FLUX: the places of its tokens) and has as many tokens: on the meta device there
    are no values, and a GPU is waited for. ValueError where neither tells it.
    """
    hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    text = kwargs.get("encoder_hidden_states")
    family = _family_of(transformer)
    if not (family.grid_by_value and grid and math.prod(grid) == hidden.shape[1]):
        grid = family.call_grid(transformer, hidden, kwargs) or grid
    if grid is None:
        raise ValueError(
            "rows and columns of the picture cannot be read from a call on the meta device"
        )
    return len(hidden), grid, 0 if text is None else text.shape[1]


def _given_tensors(route: Route) -> Route:
    """A route that knows nothing of pending tensors, where another has them made."""

    def given_tensors(run: Run, hidden: Any) -> Any:
        return route(run, real(hidden))

    return given_tensors


def _rows_of(family: Family, name: str, kind: Kind) -> Callable[..., Any]:
    return undeclared(family.name, name) if kind.keys in ("own", "both") else tokenwise


def _submodule(module: nn.Module, path: str) -> nn.Module | None:
    """A module by its path, "" for the module itself; None where it is None there."""
    owner, _, name = path.rpartition(".")
    return getattr(module.get_submodule(owner), name) if name else module
