"""Stable Diffusion 3: text-to-image with joint attention in every block (Esser et al. 2024,
arXiv:2403.03206).

The last block gives no text: it has no MLP for it, and its attention does not project it.

B batch, N image tokens, T text tokens (CLIP's and T5's), K chosen rows, D width, d width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ditbench.models.family import Architecture, Family, Modulation

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ditbench.models.sampling import Sampling
    from ditbench.models.token_rows import Context

CLIP_TOKENS = 77
"""Text tokens of the two CLIP encoders, whose features stand side by side; T5's follow."""


def joint_attention(
    module: nn.Module,
    _forward: Callable[..., Any],
    rows: Tensor | None,
    hidden: Tensor,
    *,
    encoder_hidden_states: Tensor | None = None,
    context: Context | None = None,
    **more: Any,
) -> Any:
    """Image rows [B,K,D] of joint attention, and its text [B,T,D], which is computed whole; without
    text the rows alone (the second attention of SD3.5's first blocks)."""
    import torch
    from torch.nn import functional as F

    from ditbench.models.token_rows import every, refuse_mask, take

    refuse_mask(None, **more)
    attn: Any = module
    hidden = every(hidden)

    def heads(name: str, norm: str, x: Tensor) -> Tensor:
        out: Tensor = getattr(attn, name)(x).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        scale = getattr(attn, norm, None)
        return out if scale is None else scale(out)  # [B,H,.,d]

    asking = hidden if rows is None else take(hidden, rows)
    own = hidden if context is None else context.tokens
    q = heads("to_q", "norm_q", asking)
    k, v = heads("to_k", "norm_k", own), heads("to_v", "", own)
    if (text := encoder_hidden_states) is not None:
        q = torch.cat([q, heads("add_q_proj", "norm_added_q", text)], 2)
        k = torch.cat([k, heads("add_k_proj", "norm_added_k", text)], 2)
        v = torch.cat([v, heads("add_v_proj", "", text)], 2)
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    count = asking.shape[1]
    image = attn.to_out[1](attn.to_out[0](mixed[:, :count]))
    if text is None:
        return image
    rest = mixed[:, count:]
    return image, rest if attn.context_pre_only else attn.to_add_out(rest)


def _meta_call(sampling: Sampling, config: Any, empty: Callable[..., Any]) -> dict[str, Any]:
    call: dict[str, Any] = {
        "height": sampling.height,
        "width": sampling.width,
        "output_type": "latent",
    }
    for sign in ("", "negative_"):
        call[f"{sign}prompt_embeds"] = empty(
            CLIP_TOKENS + sampling.text_tokens, config.joint_attention_dim
        )
        call[f"{sign}pooled_prompt_embeds"] = empty(config.pooled_projection_dim)
    return call


def _resize(model: str, parts: Architecture, sampling: Sampling) -> Mapping[str, Any]:
    """Positions come from a table of fixed size, cropped in the middle."""
    down = 2 ** (len(parts["vae"]["block_out_channels"]) - 1)
    transformer = parts["transformer"]
    most = down * transformer.get("patch_size", 2) * transformer.get("pos_embed_max_size", 96)
    for name, length in (("height", sampling.height), ("width", sampling.width)):
        if length > most:
            raise ValueError(f"{name}: {model} makes at most {most} pixels, not {length}")
    return {}


def _tokenizers(pipe: Any, sampling: Sampling) -> dict[str, int]:
    """Both CLIP encoders read the prompt as far as they can, T5 as far as it is asked to."""
    clip = int(pipe.tokenizer_max_length)
    return {"tokenizer": clip, "tokenizer_2": clip, "tokenizer_3": sampling.text_tokens}


def _embeddings(
    transformer: Any, times: Any, given: Mapping[str, Any], _dtype: Any
) -> Callable[[Any], Any]:
    """One for all blocks."""
    made = transformer.time_text_embed(times, given["pooled_projections"])
    return lambda _: made


def _narrow(parts: Any) -> Any:
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    half = parts.TEXT_WIDTH // 2
    transformer = SD3Transformer2DModel(
        num_attention_heads=4, attention_head_dim=32, in_channels=4, out_channels=4, num_layers=2,
        sample_size=16, patch_size=2, pos_embed_max_size=16, caption_projection_dim=128,
        joint_attention_dim=parts.TEXT_WIDTH, pooled_projection_dim=2 * half,
    )  # fmt: skip
    tokenizer = parts.tokenizer()
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=parts.image_codec(shift_factor=0.0),
        text_encoder=parts.clip(half, projected=True),
        tokenizer=tokenizer,
        text_encoder_2=parts.clip(half, projected=True),
        tokenizer_2=tokenizer,
        text_encoder_3=parts.t5(),
        tokenizer_3=tokenizer,
    )


FAMILY = Family(
    name="sd3",
    title="SD3",
    pipeline="StableDiffusion3Pipeline",
    transformer="SD3Transformer2DModel",
    stacks=(
        (
            "transformer_blocks",
            (
                ("joint", "attn", "norm1"),
                ("self", "attn2", ""),  # SD3.5 only
                ("mlp", "ff", "norm2"),
                ("context_mlp", "ff_context", "norm2_context"),
            ),
        ),
    ),
    rows=lambda: {"joint": joint_attention, "self": joint_attention},
    contexts=("joint", "self"),
    text_first=False,
    modulation=Modulation(conditions=("pooled_projections",), embeddings=_embeddings),
    block_outputs=("text", "image"),
    guidance="batched, conditional last",
    takes_lora=True,
    hidden_by_keyword=True,
    meta_call=_meta_call,
    resize=_resize,
    tokenizers=_tokenizers,
    narrow=_narrow,
)
