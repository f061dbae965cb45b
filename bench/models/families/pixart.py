"""PixArt-alpha: text-to-image with cross-attention (Chen et al. 2023, arXiv:2310.00426)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ditbench.models.family import Family, prompt_call

if TYPE_CHECKING:
    from ditbench.models.sampling import Request, Sampling


def _rows() -> Mapping[str, Callable[..., Any]]:
    from ditbench.models.token_rows import self_attention

    return {"self": self_attention}


def _call(sampling: Sampling, requests: Sequence[Request]) -> dict[str, Any]:
    return prompt_call(sampling, requests) | {
        "use_resolution_binning": False,
        "clean_caption": False,
    }


def _meta_call(sampling: Sampling, config: Any, empty: Callable[..., Any]) -> dict[str, Any]:
    call: dict[str, Any] = {
        "height": sampling.height,
        "width": sampling.width,
        "output_type": "latent",
        "negative_prompt": None,
        "use_resolution_binning": False,
    }
    for sign in ("", "negative_"):
        call[f"{sign}prompt_embeds"] = empty(sampling.text_tokens, config.caption_channels)
        call[f"{sign}prompt_attention_mask"] = empty(sampling.text_tokens)
    return call


def _clean(pipe: Any, prompt: str) -> str:
    (text,) = pipe._text_preprocessing(prompt, clean_caption=False)
    return str(text)


def _narrow(parts: Any) -> Any:
    from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel

    transformer = PixArtTransformer2DModel(
        num_attention_heads=4, attention_head_dim=32, in_channels=4, out_channels=4, num_layers=2,
        cross_attention_dim=128, sample_size=8, patch_size=2,
        caption_channels=parts.TEXT_WIDTH, use_additional_conditions=False,
    )  # fmt: skip
    return PixArtAlphaPipeline(
        parts.tokenizer(),
        parts.t5(),
        parts.image_codec(),
        transformer,
        DPMSolverMultistepScheduler(),
    )


FAMILY = Family(
    name="pixart",
    title="PixArt",
    pipeline="PixArtAlphaPipeline",
    transformer="PixArtTransformer2DModel",
    stacks=(
        (
            "transformer_blocks",
            (("self", "attn1", "norm1"), ("cross", "attn2", ""), ("mlp", "ff", "norm2")),
        ),
    ),
    rows=_rows,
    contexts=("self",),
    guidance="batched, conditional last",
    # with one step the pipeline takes a second result of the scheduler, which LCM's gives
    single_step=("LCMScheduler", "FewStepScheduler"),
    call=_call,
    meta_call=_meta_call,
    clean=_clean,
    narrow=_narrow,
)
