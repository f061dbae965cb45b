"""A family and a model from outside, complete: LTX-Video by diffusers' own classes, at a size a test
can run."""

from ditbench.models import Family, Model, register_family, register_model


def call(sampling, requests):
    return {
        "prompt": [r.prompt for r in requests],
        "height": sampling.height,
        "width": sampling.width,
        "num_frames": sampling.frames,
        "max_sequence_length": sampling.text_tokens,
    }


def meta_call(sampling, config, empty):
    sizes = {"height": sampling.height, "width": sampling.width, "num_frames": sampling.frames}
    text = {
        f"{sign}prompt_{what}": empty(sampling.text_tokens, *width)
        for sign in ("", "negative_")
        for what, width in (("embeds", (config.caption_channels,)), ("attention_mask", ()))
    }
    return {**sizes, **text, "negative_prompt": None, "output_type": "latent"}


LTX = register_family(
    Family(
        name="ltx",
        title="LTX-Video",
        pipeline="LTXPipeline",
        transformer="LTXVideoTransformer3DModel",
        stacks=(
            (
                "transformer_blocks",
                (("self", "attn1", "norm1"), ("cross", "attn2", ""), ("mlp", "ff", "norm2")),
            ),
        ),
        guidance="batched, conditional last",
        hidden_by_keyword=True,
        video=True,
        call=call,
        meta_call=meta_call,
        token_size=lambda parts: (8, 32),
        call_grid=lambda transformer, hidden, call: (
            call["num_frames"],
            call["height"],
            call["width"],
        ),
    )
)
register_model(
    Model(
        name="ltx-small", family="ltx", group="full", steps=4, guidance=3.0,
        height=64, width=96, frames=9, text_tokens=12,
        parts={
            "pipeline": {"class": "diffusers.LTXPipeline"},
            "transformer": {
                "class": "diffusers.LTXVideoTransformer3DModel", "num_layers": 2,
                "num_attention_heads": 2, "attention_head_dim": 16, "cross_attention_dim": 32,
                "in_channels": 16, "out_channels": 16, "caption_channels": 32,
            },
            "vae": {
                "class": "diffusers.AutoencoderKLLTXVideo", "latent_channels": 16,
                "block_out_channels": [8] * 4, "decoder_block_out_channels": [8] * 4,
                "layers_per_block": [1] * 5, "decoder_layers_per_block": [1] * 5,
            },
            "text_encoder": {
                "class": "transformers.T5EncoderModel", "d_model": 32, "d_kv": 8, "d_ff": 64,
                "num_layers": 1, "num_heads": 4, "vocab_size": 300,
            },
            "tokenizer": {"model_max_length": 64},
            "scheduler": {"class": "diffusers.FlowMatchEulerDiscreteScheduler"},
        },
    )
)  # fmt: skip
