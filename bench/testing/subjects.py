"""Untrained pipelines of all four architectures, small enough to try a method on in a second."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ditbench.models.requests import Request, call_arguments
from ditbench.models.sampling import Sampling
from ditbench.suggest import suggest

OUTPUT = {"dit": "np", "pixart": "latent", "flux": "latent", "wan": "latent"}
"""Family -> the least processed samples its pipeline can give: DiT's always decodes."""
KINDS = tuple(OUTPUT)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a method is tried on."""

    pipeline: Any
    sampling: Sampling
    arguments: Callable[[Sampling, Sequence[int]], dict[str, Any]]
    """Keyword arguments of the pipeline that ask for the samples of those numbers (0, 1, ...),
    `output_type` np, pt or latent."""

    def generate(self, sampling: Sampling, which: Sequence[int]) -> Tensor:
        """The samples, [B,...]."""
        with torch.no_grad():
            samples: Tensor = torch.as_tensor(
                self.pipeline(**self.arguments(sampling, which))[0]
            ).clone()
            return samples


def tiny(kind: str, *, steps: int = 6) -> Subject:
    """An untrained two-layer pipeline of one of `KINDS`, of the real diffusers classes, with random
    weights (seed 0).

    Its samples are of `OUTPUT`. ValueError for another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"no tiny pipeline {kind!r}; {suggest(kind, KINDS)}")
    with _seeded(0):
        pipeline = _BUILD[kind]()
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
    pipeline.set_progress_bar_config(disable=True)
    sampling = Sampling(
        steps=steps, guidance=3.0, height=32, width=32 if kind == "dit" else 48,
        frames=5 if kind == "wan" else 1,
        text_tokens=0 if kind == "dit" else 16,
    )  # fmt: skip
    model = cast(Any, SimpleNamespace(family=kind))
    prompts = "a small red circle", "a large blue square at the top", "a green triangle"

    def arguments(sampling: Sampling, which: Sequence[int]) -> dict[str, Any]:
        requests = [Request(id=str(i), seed=i, prompt=prompts[i % 3], label=i) for i in which]
        asked: dict[str, Any] = call_arguments(model, sampling, requests)
        return asked | {"output_type": OUTPUT[kind]}

    return Subject(pipeline=pipeline, sampling=sampling, arguments=arguments)


def _dit() -> Any:
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    from ditbench.zoo import parts

    transformer = DiTTransformer2DModel(
        **_SHAPE,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=1000,
    )
    return DiTPipeline(
        transformer,
        parts.image_codec(),
        DDIMScheduler(clip_sample=False),
        id2label={0: "circle", 1: "square"},
    )


def _pixart() -> Any:
    from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel

    from ditbench.zoo import parts

    transformer = PixArtTransformer2DModel(
        **_SHAPE, in_channels=4, out_channels=4, num_layers=2, cross_attention_dim=128,
        sample_size=8, patch_size=2,
        caption_channels=parts.TEXT_WIDTH, use_additional_conditions=False,
    )  # fmt: skip
    return PixArtAlphaPipeline(
        parts.tokenizer(),
        parts.t5(),
        parts.image_codec(),
        transformer,
        DPMSolverMultistepScheduler(),
    )


def _flux() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    from ditbench.zoo import parts

    transformer = FluxTransformer2DModel(
        **_SHAPE, patch_size=1, in_channels=16, num_layers=2, num_single_layers=2,
        joint_attention_dim=parts.TEXT_WIDTH,
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


def _wan() -> Any:
    from diffusers import UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

    from ditbench.zoo import parts

    return WanPipeline(
        tokenizer=parts.tokenizer(),
        text_encoder=parts.t5(multilingual=True),
        vae=parts.video_codec(),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        transformer=WanTransformer3DModel(
            **_SHAPE, patch_size=(1, 2, 2), in_channels=parts.VIDEO_CHANNELS,
            out_channels=parts.VIDEO_CHANNELS, text_dim=parts.TEXT_WIDTH,
            freq_dim=64, ffn_dim=512, num_layers=2, cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
        ),
    )  # fmt: skip


_SHAPE: dict[str, Any] = {"num_attention_heads": 4, "attention_head_dim": 32}
_BUILD: dict[str, Callable[[], Any]] = {"dit": _dit, "pixart": _pixart, "flux": _flux, "wan": _wan}


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
