"""The untrained parts the tiny models are built from: small, but of the very classes the full-size
pipelines use."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKL, AutoencoderKLWan
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from ditbench.shapes import scenes as shapes

TEXT_TOKENS = 16
"""Length every caption is padded to; the longest caption has 15 words and an end token."""
TEXT_WIDTH = 64
VIDEO_CHANNELS = 8
"""Of the video latents: with four the shapes do not survive the codec (LOG.md)."""
VOCABULARY = ("<pad>", "</s>", "<unk>", *shapes.WORDS)


def tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer over the captions' words."""
    words = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=TEXT_TOKENS,
    )


def t5(multilingual: bool = False) -> T5EncoderModel | UMT5EncoderModel:
    """A one-layer T5 encoder (UMT5 for Wan), width 64."""
    size: dict[str, Any] = dict(
        vocab_size=len(VOCABULARY), d_model=TEXT_WIDTH, d_kv=16, d_ff=128, num_layers=1, num_heads=4
    )
    size |= dict(
        feed_forward_proj="gated-gelu", dropout_rate=0.0, relative_attention_max_distance=16
    )
    return (
        UMT5EncoderModel(UMT5Config(**size)) if multilingual else T5EncoderModel(T5Config(**size))
    )


def clip(
    width: int = TEXT_WIDTH, *, projected: bool = False
) -> CLIPTextModel | CLIPTextModelWithProjection:
    """A one-layer CLIP text encoder for pooled prompts: FLUX's, or with a projection SD3's."""
    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    return kind(
        CLIPTextConfig(
            vocab_size=len(VOCABULARY), hidden_size=width, intermediate_size=128,
            num_hidden_layers=1, num_attention_heads=4,
            max_position_embeddings=TEXT_TOKENS, eos_token_id=1, bos_token_id=0, pad_token_id=0,
            projection_dim=width,
        )
    )  # fmt: skip


def image_codec(**more: Any) -> AutoencoderKL:
    """An autoencoder of 64x64 pictures, 4 latent channels, 4 pixels a latent cell."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 64), down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4, norm_num_groups=8, sample_size=64, layers_per_block=1, **more,
    )  # fmt: skip


def video_codec() -> AutoencoderKLWan:
    """Wan's causal video autoencoder, 8 latent channels, 4 pixels and (after the first) 4 frames a
    latent cell."""
    return AutoencoderKLWan(
        base_dim=8, z_dim=VIDEO_CHANNELS, dim_mult=[2, 2, 4], num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=[0.0] * VIDEO_CHANNELS, latents_std=[1.0] * VIDEO_CHANNELS,
        scale_factor_temporal=4, scale_factor_spatial=4,
    )  # fmt: skip
