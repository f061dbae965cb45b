"""A diffusion transformer seen as a list of sub-layers that can be rerouted: write a method once,
run it on four architectures.

Rerouting patches the `forward` of the sub-layer's own modules; the block's code still does norm,
modulation, gate and residual, and no forward of diffusers is copied.

B batch, N image tokens, T text tokens, K chosen rows, H heads, D width, d width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ditbench.models.token_rows import (
    BY_FAMILY,
    Run,
    SingleRun,
    put,
    single_attention,
    take,
    tokenwise,
)

__all__ = [
    "ANATOMY",
    "KINDS",
    "Kind",
    "Macs",
    "Patch",
    "Route",
    "Run",
    "Sublayer",
    "call_sizes",
    "family_of",
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


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a sort of sub-layer is made of: which of its linear layers see which tokens."""

    stream: str
    """Tokens whose rows can be chosen: `image`, `text`, or `both` (text first, then image)."""
    rows: tuple[str, ...]
    """Linear layers that see the chosen rows."""
    all: tuple[str, ...] = ()
    """Linear layers that see every row of the stream, whatever is chosen: keys and values."""
    text: tuple[str, ...] = ()
    """Linear layers that see the text."""
    keys: str = ""
    """What the chosen rows attend to: `own` stream, `text`, or `both`; empty where there is no
    attention."""


KINDS: dict[str, Kind] = {
    "self": Kind(stream="image", rows=("to_q", "to_out.0"), all=("to_k", "to_v"), keys="own"),
    "cross": Kind(stream="image", rows=("to_q", "to_out.0"), text=("to_k", "to_v"), keys="text"),
    "mlp": Kind(stream="image", rows=("net.0.proj", "net.2")),
    "context_mlp": Kind(stream="text", rows=("net.0.proj", "net.2")),
    "joint": Kind(
        stream="image", rows=("to_q", "to_out.0"), all=("to_k", "to_v"),
        text=("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"), keys="both",
    ),
    "single": Kind(stream="both", rows=("attn.to_q", "proj_mlp", "proj_out"), all=("attn.to_k", "attn.to_v"), keys="own"),
}  # fmt: skip

Parts = tuple[tuple[str, str, str], ...]
"""(kind, module inside the block, norm before it; empty where it sees the residual stream as it
is)."""
# Transformer class -> family, and where its sub-layers are: (list of blocks, parts of a block).
ANATOMY: dict[str, tuple[str, tuple[tuple[str, Parts], ...]]] = {
    "DiTTransformer2DModel": (
        "dit",
        (("transformer_blocks", (("self", "attn1", "norm1"), ("mlp", "ff", "norm3"))),),
    ),
    "PixArtTransformer2DModel": (
        "pixart",
        (
            (
                "transformer_blocks",
                (("self", "attn1", "norm1"), ("cross", "attn2", ""), ("mlp", "ff", "norm2")),
            ),
        ),
    ),
    "WanTransformer3DModel": (
        "wan",
        (
            (
                "blocks",
                (("self", "attn1", "norm1"), ("cross", "attn2", "norm2"), ("mlp", "ffn", "norm3")),
            ),
        ),
    ),
    "FluxTransformer2DModel": (
        "flux",
        (
            (
                "transformer_blocks",
                (
                    ("joint", "attn", "norm1"),
                    ("mlp", "ff", "norm2"),
                    ("context_mlp", "ff_context", "norm2_context"),
                ),
            ),
            ("single_transformer_blocks", (("single", "", "norm"),)),
        ),
    ),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Sublayer:
    """One piece of a block whose output is gated and added to the residual stream."""

    index: int
    """Place in the list of sub-layers."""
    block: int
    kind: str
    """`self`, `cross`, `mlp`, `context_mlp`, `joint` (FLUX double block) or `single` (FLUX single
    block, whole)."""
    stream: str
    """Tokens its output is for: `image`, `text`, or `both`: a pair (image, text) for `joint`, text
    before image for `single`."""
    module: nn.Module
    """What is rerouted; for `single` the block itself."""
    norm: nn.Module | None
    """Called right before it with the residual stream [B,rows,D] of its tokens; None where it is
    given that itself."""
    run_rows: Callable[..., Any]

    @property
    def name(self) -> str:
        """Such as `3.cross`."""
        return f"{self.block}.{self.kind}"

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The modules it is made of; norms and modulation belong to the block."""
        m: Any = self.module
        return (m.attn, m.proj_mlp, m.act_mlp, m.proj_out) if self.kind == "single" else (m,)

    @property
    def linears(self) -> tuple[nn.Linear, ...]:
        """The linear layers it is made of."""
        return tuple(m for part in self.modules for m in part.modules() if isinstance(m, nn.Linear))

    def macs(self, tokens: int, kept: int | None = None, text_tokens: int = 0) -> Macs:
        """Multiply-accumulates of one sample with `tokens` image tokens when `kept` rows are
        computed (None: all; 0: not run).

        Raises ValueError when more rows are kept than there are.
        """
        kind = KINDS[self.kind]
        own = {"image": tokens, "text": text_tokens, "both": tokens + text_tokens}[kind.stream]
        kept = own if kept is None else kept
        if not 0 <= kept <= own:
            raise ValueError(f"{self.name} has {own} rows, so {kept} cannot be kept")
        if kept == 0:
            return Macs()
        linear = sum(
            count * self._linear(name).in_features * self._linear(name).out_features
            for count, layers in ((kept, kind.rows), (own, kind.all), (text_tokens, kind.text))
            for name in layers
        )
        if not kind.keys:
            return Macs(linear=linear)
        keys = {"own": own, "text": text_tokens, "both": tokens + text_tokens}[kind.keys]
        queries = kept + (text_tokens if kind.keys == "both" else 0)
        width = self._linear(kind.rows[0]).out_features
        return Macs(linear=linear, attention=2 * queries * keys * width)

    def reroute(self, route: Route, patch: Patch) -> None:
        """Send every call through `route(run, hidden)`, with hidden [B,rows,D] the normalised and
        modulated input.

        `run()` returns the output before gate and residual: [B,N,D], or for `joint` the pair
        ([B,N,D], [B,T,D]). `run(rows)` returns the chosen rows [B,K,D]; queries of those rows, keys
        and values of all tokens; for `joint` rows of the image, text whole. For `single` it is a
        `token_rows.SingleRun`, whose halves can be run apart.
        """
        if self.kind == "single":
            return _reroute_single(self.module, route, patch)
        original = self.module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            # blocks call their modules either way
            hidden, *rest = args or (kwargs.pop("hidden_states"),)

            def run(rows: Tensor | None = None) -> Any:
                if rows is None:
                    return original(hidden, *rest, **kwargs)
                return self.run_rows(self.module, original, rows, hidden, *rest, **kwargs)

            return route(run, hidden)

        patch(self.module, "forward", forward)
        return None

    def _linear(self, name: str) -> Any:
        return self.module.get_submodule(name)


def family_of(transformer: nn.Module) -> str:
    """`dit`, `pixart`, `wan` or `flux`; ValueError for any other transformer."""
    family: str = _anatomy(transformer)[0]
    return family


def sublayers(transformer: nn.Module) -> list[Sublayer]:
    """The transformer's sub-layers in the order they run; ValueError for a class without an
    anatomy."""
    family, stacks = _anatomy(transformer)
    found: list[Sublayer] = []
    first = 0
    for blocks, parts in stacks:
        modules = list(getattr(transformer, blocks))
        for i, block in enumerate(modules):
            for kind, path, norm in parts:
                module = block.get_submodule(path)
                stream = "both" if kind == "joint" else KINDS[kind].stream
                found.append(
                    Sublayer(
                        index=len(found), block=first + i, kind=kind, stream=stream, module=module,
                        norm=block.get_submodule(norm) if norm else None,
                        run_rows=BY_FAMILY.get((family, kind), tokenwise),
                    )
                )  # fmt: skip
        first += len(modules)
    return found


def call_sizes(
    transformer: nn.Module, args: Any, kwargs: Any, grid: tuple[int, int, int] | None = None
) -> tuple[int, tuple[int, int, int], int]:
    """Rows of the batch, (frames, rows, columns) of image tokens, and text tokens of a call of the
    transformer with these arguments.

    `grid`: what FLUX's image tokens are, where it cannot be read: on the meta device their places
    have no values. ValueError without it.
    """
    hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    text = kwargs.get("encoder_hidden_states")
    texts = 0 if text is None else text.shape[1]
    if family_of(transformer) == "flux":
        if not (ids := kwargs["img_ids"]).is_meta:  # places (0, row, column)
            _, high, wide = ids.amax(0).long().tolist()
            grid = 1, high + 1, wide + 1
        if grid is None:
            raise ValueError(
                "rows and columns of the picture cannot be read from a call on the meta device"
            )
        return len(hidden), grid, texts
    patch = getattr(transformer.config, "patch_size", 1)
    frames, high, wide = (1, *hidden.shape[2:])[-3:]
    deep, tall, broad = patch if isinstance(patch, (tuple, list)) else (1, patch, patch)
    return len(hidden), (frames // deep, high // tall, wide // broad), texts


def _anatomy(transformer: nn.Module) -> Any:
    name = type(transformer).__name__
    if name not in ANATOMY:
        raise ValueError(f"{name} has no anatomy; there is one for {', '.join(sorted(ANATOMY))}")
    return ANATOMY[name]


def _reroute_single(single: nn.Module, route: Route, patch: Patch) -> None:
    """FLUX's single block: attention, MLP and their shared projection out are one sub-layer.

    Attention and MLP defer by passing nothing on (width 0), and the projection, which comes last,
    does the work of all.
    """
    block: Any = single
    attn, mlp_in, act, out = (
        block.attn.forward,
        block.proj_mlp.forward,
        block.act_mlp.forward,
        block.proj_out.forward,
    )
    held: dict[str, Any] = {}

    def hold_mlp(hidden: Tensor) -> Tensor:
        return hidden[..., :0]

    def hold_attention(hidden_states: Tensor, **kwargs: Any) -> Tensor:
        held.update(hidden=hidden_states, kwargs=kwargs)
        return hidden_states[..., :0]

    def project(_nothing: Tensor) -> Any:
        hidden, kwargs = held.pop("hidden"), held.pop("kwargs")  # hidden [B,T+N,D]

        def attention(rows: Tensor | None) -> Tensor:
            if rows is not None:
                return single_attention(block.attn, rows, hidden, **kwargs)
            mixed: Tensor = attn(hidden_states=hidden, **kwargs)
            return mixed

        def output(mixed: Tensor, rows: Tensor | None) -> Tensor:
            seen = hidden if rows is None else take(hidden, rows)
            result: Tensor = out(torch.cat([mixed, act(mlp_in(seen))], dim=2))
            return result

        return route(SingleRun(attention, output), hidden)

    patch(block.proj_mlp, "forward", hold_mlp)
    patch(block.act_mlp, "forward", lambda hidden: hidden)
    patch(block.attn, "forward", hold_attention)
    patch(block.proj_out, "forward", project)
