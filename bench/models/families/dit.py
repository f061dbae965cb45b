"""DiT: class-conditional images (Peebles & Xie 2023, arXiv:2212.09748)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ditbench.models.family import Architecture, Family, Modulation

if TYPE_CHECKING:
    from ditbench.models.sampling import Request, Sampling


def _rows() -> Mapping[str, Callable[..., Any]]:
    from ditbench.models.token_rows import self_attention

    return {"self": self_attention}


def _call(_sampling: Sampling, requests: Sequence[Request]) -> dict[str, Any]:
    return {"class_labels": [r.label for r in requests]}


def _meta_call(_sampling: Sampling, _config: Any, _empty: Callable[..., Any]) -> dict[str, Any]:
    return {"class_labels": [0], "output_type": "pt"}


def _resize(model: str, parts: Architecture, sampling: Sampling) -> Mapping[str, Any]:
    """Its pipeline has no argument for the size: the transformer's sample size decides."""
    if sampling.height != sampling.width:
        raise ValueError(
            f"width: {model} makes square pictures, not {sampling.height}x{sampling.width}"
        )
    down = 2 ** (len(parts["vae"]["block_out_channels"]) - 1)
    return {"transformer.sample_size": sampling.height // down}


def _embeddings(
    _transformer: Any, times: Any, given: Mapping[str, Any], dtype: Any
) -> Callable[[Any], Any]:
    """Every block has its own."""
    return lambda embedding: embedding(times, given["class_labels"], hidden_dtype=dtype)


def _narrow(parts: Any) -> Any:
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    transformer = DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=32, in_channels=4, out_channels=4, num_layers=2,
        sample_size=8, patch_size=2, num_embeds_ada_norm=1000,
    )  # fmt: skip
    return DiTPipeline(
        transformer,
        parts.image_codec(),
        DDIMScheduler(clip_sample=False),
        id2label={0: "circle", 1: "square"},
    )


FAMILY = Family(
    name="dit",
    title="DiT",
    pipeline="DiTPipeline",
    transformer="DiTTransformer2DModel",
    stacks=(("transformer_blocks", (("self", "attn1", "norm1"), ("mlp", "ff", "norm3"))),),
    rows=_rows,
    contexts=("self",),
    modulation=Modulation(conditions=("class_labels",), embeddings=_embeddings),
    guidance="batched, conditional first",
    latent_output=False,  # its pipeline always decodes
    class_labels=True,
    call=_call,
    meta_call=_meta_call,
    resize=_resize,
    narrow=_narrow,
)
