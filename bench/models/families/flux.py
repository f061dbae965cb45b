"""FLUX.1: text-to-image with double blocks (text and image apart, joint attention) and single
blocks (both in one stream); guidance is embedded (Black Forest Labs 2024).

B batch, N image tokens, T text tokens, K chosen rows, D width, d width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ditbench.models.family import Architecture, Family, Grid, Modulation

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ditbench.models.sampling import Sampling
    from ditbench.models.token_rows import Context


def joint_attention(
    module: nn.Module,
    _forward: Callable[..., Any],
    rows: Tensor | None,
    hidden: Tensor,
    *,
    encoder_hidden_states: Tensor,
    context: Context | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Image rows [B,K,D] of the joint attention of a double block, and its text [B,T,D], which is
    computed whole."""
    import torch

    from ditbench.models.token_rows import every, places_of, take

    attn: Any = module
    hidden = every(hidden)
    text, t = encoder_hidden_states, encoder_hidden_states.shape[1]
    asking = hidden if rows is None else take(hidden, rows)
    own = hidden if context is None else context.tokens
    own_q, own_k, own_v = _qkv(attn, ("to_q", "norm_q"), ("to_k", "norm_k"), "to_v", asking, own)
    added = (("add_q_proj", "norm_added_q"), ("add_k_proj", "norm_added_k"), "add_v_proj")
    text_q, text_k, text_v = _qkv(attn, *added, text, text)
    whole = torch.arange(t, device=hidden.device).expand(len(hidden), -1)

    def behind_text(places: Tensor | None) -> Tensor | None:
        return None if places is None else torch.cat([whole, places + t], 1)

    out = _attend(
        attn,
        torch.cat([text_q, own_q], 1),
        torch.cat([text_k, own_k], 1),
        torch.cat([text_v, own_v], 1),
        behind_text(rows),
        behind_text(places_of(context)),
        **kwargs,
    )
    return attn.to_out[1](attn.to_out[0](out[:, t:].contiguous())), attn.to_add_out(
        out[:, :t].contiguous()
    )


def single_attention(
    attn: Any, rows: Tensor | None, hidden: Tensor, context: Context | None = None, **kwargs: Any
) -> Tensor:
    """Attention of a single block for some rows of text and image: [B,K,D]."""
    from ditbench.models.token_rows import every, places_of, take

    hidden = every(hidden)
    asking = hidden if rows is None else take(hidden, rows)
    own = hidden if context is None else context.tokens
    q, k, v = _qkv(attn, ("to_q", "norm_q"), ("to_k", "norm_k"), "to_v", asking, own)
    return _attend(attn, q, k, v, rows, places_of(context), **kwargs)


def _qkv(
    attn: Any, q: tuple[str, str], k: tuple[str, str], v: str, some: Tensor, every: Tensor
) -> tuple[Tensor, ...]:
    def split(name: str, x: Tensor) -> Tensor:
        out: Tensor = attn.get_submodule(name)(x).unflatten(-1, (-1, attn.head_dim))  # [B,.,H,d]
        return out

    return (
        attn.get_submodule(q[1])(split(q[0], some)),
        attn.get_submodule(k[1])(split(k[0], every)),
        split(v, every),
    )


def _attend(
    attn: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_at: Tensor | None,
    k_at: Tensor | None,
    image_rotary_emb: Any = None,
    attention_mask: None = None,
    **more: Any,
) -> Tensor:
    """Rotate and attend; `q_at` [B,K] and `k_at` [B,M] are the places of queries and keys in text +
    image, None where they are all there are."""
    from ditbench.models.token_rows import at_rows, attend, refuse_mask, rotate

    refuse_mask(attention_mask, **more)
    cos, sin = (f[None, :, None, :].to(q.device) for f in image_rotary_emb)  # [1,T+N,1,d]
    q, k = rotate(q, *at_rows((cos, sin), q_at)), rotate(k, *at_rows((cos, sin), k_at))
    return attend(attn, q, k, v)


def reroute_single(single: nn.Module, route: Callable[..., Any], patch: Callable[..., Any]) -> None:
    """The single block: attention, MLP and their shared output projection are one sub-layer.

    Attention and MLP defer by passing nothing on (width 0), and the projection, which comes last,
    does the work of all.
    """
    import torch

    from ditbench.models.fused_sums import not_run
    from ditbench.models.pending import Pending, real
    from ditbench.models.regions import compute, own_forward, run_forward
    from ditbench.models.standing import entered_by
    from ditbench.models.token_rows import (
        ROUTED,
        WHOLE,
        Selection,
        SingleRun,
        computing,
        every,
        take,
    )

    block: Any = single
    own = tuple(
        part.forward for part in (block.attn, block.proj_mlp, block.act_mlp, block.proj_out)
    )
    inner, (attn, mlp_in, act, out) = ROUTED.get(own[-1], (None, own))
    deferred: dict[str, Any] = {}

    def defer_mlp(hidden: Tensor) -> Tensor:
        return hidden[..., :0]

    def defer_attention(hidden_states: Tensor, **kwargs: Any) -> Tensor:
        deferred.update(hidden=hidden_states, kwargs=kwargs)
        return hidden_states[..., :0]

    def project(_nothing: Tensor) -> Any:
        if not deferred:
            raise ValueError(
                "a single block is one sub-layer: no other method can reuse the attention inside it"
            )
        return entered(deferred.pop("hidden"), (), deferred.pop("kwargs"))

    def enter(hidden: Any, _rest: Any, kwargs: Any) -> Any:
        return routed(WHOLE, hidden, kwargs, outermost=True)

    entered = entered_by(enter, route, alone=inner is None)

    def routed(
        selection: Selection,
        hidden: Tensor,
        kwargs: Any,
        half: bool = False,
        outermost: bool = False,
    ) -> Any:
        """The route, asked for its attention alone where `half`; hidden [B,T+N,D]. `outermost`: what
        it returns goes to the block, not to another route."""

        ran = False

        def attention(*further: Any) -> Any:
            nonlocal ran
            ran = True
            now = selection.narrowed(hidden, *further)
            if inner is not None:
                return inner(now, hidden, kwargs, True)
            named = real(kwargs)
            if now.whole:
                return run_forward(block, attn, hidden_states=real(hidden), **named)
            with computing(now):
                if now.context is not None:
                    return single_attention(block.attn, now.rows, hidden, now.context, **named)
                return compute(
                    block, single_attention, block.attn, now.rows, every(hidden), **named
                )

        def output(mixed: Tensor, rows: Tensor | None) -> Tensor:
            nonlocal ran
            ran = True
            if half:
                return mixed
            rows = selection.rows if rows is None else rows
            inputs = real(hidden) if rows is None else take(hidden, rows)
            if all(map(own_forward, (out, act, mlp_in))):
                result: Tensor = compute(block, _joined, block, mixed, inputs)
            else:
                result = out(torch.cat([mixed, act(mlp_in(inputs))], dim=2))
            return result

        def both(*further: Any) -> Any:
            nonlocal ran
            ran = True
            return inner(selection.narrowed(hidden, *further), hidden, kwargs, half)

        made = route(SingleRun(attention, output, both if inner else None), hidden)
        own = outermost and not ran and isinstance(hidden, Pending)
        return not_run(made) if own else made

    patch(block.proj_mlp, "forward", defer_mlp)
    patch(block.act_mlp, "forward", lambda hidden: hidden)
    patch(block.attn, "forward", defer_attention)
    patch(block.proj_out, "forward", project)
    ROUTED[project] = routed, (attn, mlp_in, act, out)


def _joined(block: Any, mixed: Tensor, inputs: Tensor) -> Tensor:
    """MLP and output projection of a single block: attention [B,K,D] and inputs [B,K,D] -> [B,K,D],
    by the forwards of the modules' classes, whatever stands in their place."""
    import torch

    def run(module: nn.Module, x: Tensor) -> Tensor:
        out: Tensor = type(module).forward(module, x)
        return out

    hidden = run(block.act_mlp, run(block.proj_mlp, inputs))
    return run(block.proj_out, torch.cat([mixed, hidden], dim=2))


def _meta_call(sampling: Sampling, config: Any, empty: Callable[..., Any]) -> dict[str, Any]:
    return {
        "height": sampling.height,
        "width": sampling.width,
        "output_type": "latent",
        "prompt_embeds": empty(sampling.text_tokens, config.joint_attention_dim),
        "pooled_prompt_embeds": empty(config.pooled_projection_dim),
    }


def _token_size(parts: Architecture) -> tuple[int, int]:
    """The pipeline packs 2 x 2 latent cells into a token, whatever the patch size."""
    return 1, 2 * 2 ** (len(parts["vae"]["block_out_channels"]) - 1)


def _call_grid(_transformer: Any, _hidden: Any, arguments: Mapping[str, Any]) -> Grid | None:
    """By the places (0, row, column) of the tokens, which have no values on the meta device."""
    if (ids := arguments["img_ids"]).is_meta:
        return None
    _, high, wide = ids.amax(0).long().tolist()
    return 1, high + 1, wide + 1


def _tokenizers(pipe: Any, sampling: Sampling) -> dict[str, int]:
    """CLIP reads the prompt for the pooled embedding, T5 for the sequence."""
    return {"tokenizer": int(pipe.tokenizer_max_length), "tokenizer_2": sampling.text_tokens}


def _embeddings(
    transformer: Any, times: Any, given: Mapping[str, Any], dtype: Any
) -> Callable[[Any], Any]:
    """One for all blocks, as the transformer's forward makes it."""
    more = [given["guidance"].to(dtype) * 1000] if "guidance" in given else []
    made = transformer.time_text_embed(times.to(dtype) * 1000, *more, given["pooled_projections"])
    return lambda _: made


def _narrow(parts: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        num_attention_heads=4, attention_head_dim=32, patch_size=1, in_channels=16, num_layers=2,
        num_single_layers=2, joint_attention_dim=parts.TEXT_WIDTH,
        pooled_projection_dim=parts.TEXT_WIDTH, axes_dims_rope=(8, 12, 12), guidance_embeds=True,
    )  # fmt: skip
    tokenizer, codec = parts.tokenizer(), parts.image_codec(shift_factor=0.0)
    return FluxPipeline(
        FlowMatchEulerDiscreteScheduler(),
        codec,
        parts.clip(),
        tokenizer,
        parts.t5(),
        tokenizer,
        transformer,
    )


FAMILY = Family(
    name="flux",
    title="FLUX",
    pipeline="FluxPipeline",
    transformer="FluxTransformer2DModel",
    stacks=(
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
    rows=lambda: {"joint": joint_attention},
    contexts=("joint", "single"),
    reroute=lambda: {"single": reroute_single},
    modulation=Modulation(conditions=("pooled_projections", "guidance"), embeddings=_embeddings),
    block_outputs=("text", "image"),
    guidance="embedded",
    takes_lora=True,
    hidden_by_keyword=True,
    time_scale=1000.0,
    shared_arguments=("txt_ids", "img_ids"),
    meta_call=_meta_call,
    token_size=_token_size,
    call_grid=_call_grid,
    grid_by_value=True,
    tokenizers=_tokenizers,
    narrow=_narrow,
)
