"""The pipelines of the bundled models before training: classes of diffusers and transformers, sizes
of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    DDIMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from torch import nn

from ditbench import ZOO
from ditbench.shapes import scenes as shapes
from ditbench.suggest import suggest
from ditbench.zoo import parts
from ditbench.zoo.halving import begin_with_half

WORLD = {
    "dit-tiny": "class",
    "pixart-tiny": "scene",
    "pixart-small": "scene",
    "pixart-medium": "scene",
    "flux-tiny": "scene",
    "wan-tiny": "video",
    "wan-small": "video",
    "dit-mini": "class",
    "flux-mini": "scene",
}
RESOLUTION = {"pixart-small": 128, "pixart-medium": 256, "wan-small": 96}
"""Pixels a side of the pictures a model is trained on, where they are not the world's own."""
FRAMES = {"wan-small": 9}
"""Frames of the videos a model is trained on, where they are not the world's own."""
SHAPE: dict[str, Any] = dict(num_attention_heads=4, attention_head_dim=32)
HALF: dict[str, Any] = dict(num_attention_heads=2, attention_head_dim=32)
"""Half the width of the same family's tiny model."""
HALF_OF = "parts and every second channel of"
"""What the notes of a training call the larger model."""
LARGER = {"dit-mini": "dit-tiny", "flux-mini": "flux-tiny"}
"""The tiny model that a model of half its width can take turns with on the same latents: it has that
one's autoencoder and text encoders, which are not trained again, and begins with half its channels."""


def build(name: str, parts_folder: Path) -> Any:
    """The pipeline of a tiny model with a trained codec and everything else freshly initialised."""
    torch.manual_seed(0)
    transformer: Any
    if name.startswith("wan"):
        return WanPipeline(
            tokenizer=parts.tokenizer(),
            text_encoder=parts.t5(multilingual=True),
            vae=AutoencoderKLWan.from_pretrained(parts_folder / "video-codec" / "weights"),
            scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
            transformer=WanTransformer3DModel(
                **SHAPE, patch_size=(1, 2, 2), in_channels=parts.VIDEO_CHANNELS,
                out_channels=parts.VIDEO_CHANNELS,
                text_dim=parts.TEXT_WIDTH, freq_dim=64, ffn_dim=512, num_layers=5,
                cross_attn_norm=True, qk_norm="rms_norm_across_heads",
            ),
        )  # fmt: skip
    if name in LARGER:
        return _half(name)
    vae = AutoencoderKL.from_pretrained(parts_folder / "codec" / "weights")
    if name == "dit-tiny":
        transformer = DiTTransformer2DModel(
            **SHAPE,
            in_channels=4,
            out_channels=4,
            num_layers=6,
            sample_size=16,
            patch_size=2,
            num_embeds_ada_norm=1000,
        )
        names = dict(enumerate(shapes.CLASSES))
        return DiTPipeline(transformer, vae, DDIMScheduler(clip_sample=False), id2label=names)
    if name.startswith("pixart"):
        # positions interpolated: those of a quarter of the picture are where they were, so that
        # training goes on from a model of fewer tokens (PixArt-Sigma, section 3.3)
        scale = RESOLUTION.get(name, 64) // 64
        transformer = PixArtTransformer2DModel(
            **SHAPE, in_channels=4, out_channels=4, num_layers=6, cross_attention_dim=128,
            sample_size=16 * scale, patch_size=2, interpolation_scale=scale,
            caption_channels=parts.TEXT_WIDTH, use_additional_conditions=False,
        )  # fmt: skip
        return PixArtAlphaPipeline(
            parts.tokenizer(), parts.t5(), vae, transformer, DPMSolverMultistepScheduler()
        )
    if name == "flux-tiny":
        vae.register_to_config(shift_factor=0.0)
        transformer = FluxTransformer2DModel(
            **SHAPE, patch_size=1, in_channels=16, num_layers=2, num_single_layers=3,
            joint_attention_dim=parts.TEXT_WIDTH,
            pooled_projection_dim=parts.TEXT_WIDTH, axes_dims_rope=(8, 12, 12),
            guidance_embeds=True,
        )  # fmt: skip
        tokenizer, scheduler = parts.tokenizer(), FlowMatchEulerDiscreteScheduler()
        return FluxPipeline(
            scheduler, vae, parts.clip(), tokenizer, parts.t5(), tokenizer, transformer
        )
    raise ValueError(f"no bundled model {name!r}; {suggest(name, WORLD)}")


def _half(name: str) -> Any:
    """The pipeline of the larger bundled model, all parts of it fixed, with a transformer of half the
    width that begins with half of the larger one's channels."""
    pipe: Any = DiffusionPipeline.from_pretrained(ZOO / LARGER[name], dtype=torch.float32)
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False)
    kind = type(pipe.transformer)
    small = kind.from_config({**pipe.transformer.config, **HALF})
    begin_with_half(small, pipe.transformer)
    pipe.transformer = small
    return pipe
