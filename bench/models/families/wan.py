"""Wan2.1: text-to-video with cross-attention (Wan Team 2025, arXiv:2503.20314)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ditbench.models.family import Architecture, Family, prompt_call

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ditbench.models.sampling import Request, Sampling
    from ditbench.models.token_rows import Context


def self_attention(
    module: nn.Module,
    _forward: Callable[..., Any],
    rows: Tensor | None,
    hidden: Tensor,
    _text: None,
    mask: None,
    rotary: tuple[Tensor, Tensor],
    context: Context | None = None,
) -> Tensor:
    """Rows [B,K] of self-attention over hidden [B,N,D], or over a context: [B,K,D]."""
    from ditbench.models.token_rows import (
        at_rows,
        attend,
        every,
        places_of,
        refuse_mask,
        rotate,
        take,
    )

    attn: Any = module
    refuse_mask(mask)
    hidden = every(hidden)
    asking = hidden if rows is None else take(hidden, rows)
    own = hidden if context is None else context.tokens
    q = attn.norm_q(attn.to_q(asking)).unflatten(2, (attn.heads, -1))  # [B,K,H,d]
    k = attn.norm_k(attn.to_k(own)).unflatten(2, (attn.heads, -1))  # [B,N,H,d]
    v = attn.to_v(own).unflatten(2, (attn.heads, -1))
    q = rotate(q, *at_rows(rotary, rows))
    k = rotate(k, *at_rows(rotary, places_of(context)))
    out: Tensor = attn.to_out[1](attn.to_out[0](attend(attn, q, k, v)))
    return out


def _call(sampling: Sampling, requests: Sequence[Request]) -> dict[str, Any]:
    return prompt_call(sampling, requests) | {"num_frames": sampling.frames}


def _meta_call(sampling: Sampling, config: Any, empty: Callable[..., Any]) -> dict[str, Any]:
    text = empty(sampling.text_tokens, config.text_dim)
    return {
        "height": sampling.height,
        "width": sampling.width,
        "num_frames": sampling.frames,
        "output_type": "latent",
        "prompt_embeds": text,
        "negative_prompt_embeds": text,
    }


def _token_size(parts: Architecture) -> tuple[int, int]:
    vae, patch = parts["vae"], parts["transformer"].get("patch_size", (1, 2, 2))
    side = vae.get("scale_factor_spatial", 8) * patch[-1]
    return vae.get("scale_factor_temporal", 4), side


def _clean(_pipe: Any, prompt: str) -> str:
    from diffusers.pipelines.wan.pipeline_wan import prompt_clean

    return str(prompt_clean(prompt))


def _narrow(parts: Any) -> Any:
    from diffusers import UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

    return WanPipeline(
        tokenizer=parts.tokenizer(),
        text_encoder=parts.t5(multilingual=True),
        vae=parts.video_codec(),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        transformer=WanTransformer3DModel(
            num_attention_heads=4, attention_head_dim=32, patch_size=(1, 2, 2),
            in_channels=parts.VIDEO_CHANNELS, out_channels=parts.VIDEO_CHANNELS,
            text_dim=parts.TEXT_WIDTH, freq_dim=64, ffn_dim=512, num_layers=2,
            cross_attn_norm=True, qk_norm="rms_norm_across_heads",
        ),
    )  # fmt: skip


def _rows() -> Mapping[str, Callable[..., Any]]:
    return {"self": self_attention}


FAMILY = Family(
    name="wan",
    title="Wan",
    pipeline="WanPipeline",
    transformer="WanTransformer3DModel",
    stacks=(
        (
            "blocks",
            (("self", "attn1", "norm1"), ("cross", "attn2", "norm2"), ("mlp", "ffn", "norm3")),
        ),
    ),
    rows=_rows,
    contexts=("self",),
    casts=True,
    guidance="two calls",
    takes_lora=True,
    hidden_by_keyword=True,
    video=True,
    float32_parts=("vae",),
    call=_call,
    meta_call=_meta_call,
    token_size=_token_size,
    clean=_clean,
    narrow=_narrow,
)
