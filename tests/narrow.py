"""Narrow copies of full-size pipelines of every family: every part of the real classes, a few thousand
parameters."""

from dataclasses import replace

from ditbench.models.table import select

T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4, "vocab_size": 300}
CLIP = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "projection_dim": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "vocab_size": 300,
}
VAE = {
    "block_out_channels": [8, 16], "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4, "sample_size": 16,
}  # fmt: skip
DIT = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, "sample_size": 8}
WAN_VAE = {
    "base_dim": 8,
    "z_dim": 4,
    "dim_mult": [1, 1, 1, 1],
    "num_res_blocks": 1,
    "latents_mean": [0.0] * 4,
    "latents_std": [1.0] * 4,
}
PARTS = {
    "dit-xl-2-256": {"transformer": DIT, "vae": VAE},
    "pixart-alpha-256": {"transformer": {**DIT, "cross_attention_dim": 32, "caption_channels": 32}, "text_encoder": T5, "vae": VAE},
    "flux-1-dev": {
        "transformer": {
            "in_channels": 16, "num_layers": 1, "num_single_layers": 2, "num_attention_heads": 2,
            "attention_head_dim": 16,
            "joint_attention_dim": 32, "pooled_projection_dim": 32, "axes_dims_rope": [4, 6, 6],
        },
        "text_encoder": CLIP, "text_encoder_2": T5, "vae": VAE,
    },
    "wan-2.1-1.3b": {
        "transformer": {
            "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_attention_heads": 2,
            "attention_head_dim": 16, "ffn_dim": 64,
            "text_dim": 32, "freq_dim": 32,
        },
        "text_encoder": T5, "vae": WAN_VAE,
    },
    "sd3-medium": {
        "transformer": {
            "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_attention_heads": 2,
            "attention_head_dim": 16, "sample_size": 8, "caption_projection_dim": 32,
            "joint_attention_dim": 32, "pooled_projection_dim": 32,
        },
        "text_encoder": {**CLIP, "hidden_size": 16, "projection_dim": 16},
        "text_encoder_2": {**CLIP, "hidden_size": 16, "projection_dim": 16},
        "text_encoder_3": T5, "vae": VAE,
    },
}  # fmt: skip
NAMES = tuple(PARTS)


def narrow(name):
    """The model's row at a small size, and the changes that make its architecture narrow."""
    row = select(name)[0]
    side, frames = (32, 5) if row.family == "wan" else (16, 1)
    row = replace(
        row,
        height=side,
        width=side,
        frames=frames,
        steps=3,
        text_tokens=12 if row.text_tokens else 0,
    )
    return row, {
        f"{part}.{key}": value
        for part, sizes in PARTS[name].items()
        for key, value in sizes.items()
    }


def generate(pipe, model, num=1, output_type="np"):
    """Samples of the model's pipeline for a fixed workload."""
    import torch

    from ditbench.models.requests import Request, call_arguments
    from ditbench.models.sampling import sampling_of

    requests = [
        Request(id=str(i), seed=i, prompt="a small red circle", label=i) for i in range(num)
    ]
    with torch.inference_mode():
        out = pipe(**call_arguments(model, sampling_of(model), requests), output_type=output_type)
    return out.frames if model.family == "wan" else out.images
