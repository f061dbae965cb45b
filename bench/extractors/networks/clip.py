"""CLIP (Radford et al. 2021) as transformers has it: unit-length embeddings of pictures and
prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ditbench.extractors.networks.pretrained import assembled
from ditbench.extractors.table import Extractor

LONGEST = 77
"""Tokens of a prompt, the two that mark its ends included; the rest is cut."""


def build(extractor: Extractor, paths: dict[str, Path]) -> nn.Module:
    """The network with its weights: with the text half where the extractor has a vocabulary;
    ValueError when they do not fit."""
    from transformers import (
        CLIPConfig,
        CLIPModel,
        CLIPTokenizer,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    weights = next(iter(paths.values()))
    width = extractor.shape["projection_dim"]
    vision = dict(extractor.shape["vision_config"]) | {
        "projection_dim": width,
        "hidden_act": "quick_gelu",
    }
    if "vocab.json" not in paths:
        return Clip(
            assembled(CLIPVisionModelWithProjection, CLIPVisionConfig(**vision), weights), None
        )
    tokenizer = CLIPTokenizer(vocab=str(paths["vocab.json"]), merges=str(paths["merges.txt"]))
    text = dict(extractor.shape["text_config"]) | {
        "projection_dim": width,
        "hidden_act": "quick_gelu",
    }
    text |= {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=width)
    return Clip(assembled(CLIPModel, config, weights), tokenizer)


class Clip(nn.Module):
    """Pixels [n, 3, h, w] -> `image` [n, d], prompts -> `text` [n, d], both of length one."""

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer

    def read(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Embeddings of pictures."""
        if self.tokenizer is None:
            return {"image": F.normalize(self.model(pixel_values=pixels).image_embeds, dim=-1)}
        read = self.model.get_image_features(pixel_values=pixels)  # type: ignore[operator]
        return {"image": F.normalize(read.pooler_output, dim=-1)}

    def write(self, prompts: list[str]) -> tuple[dict[str, torch.Tensor], list[bool]]:
        """Embeddings of prompts, and which of them are longer than CLIP reads and have been cut."""
        whole = self.tokenizer(prompts)["input_ids"]
        tokens = self.tokenizer(
            prompts, padding="max_length", max_length=LONGEST, truncation=True, return_tensors="pt"
        )
        tokens = tokens.to(next(self.model.parameters()).device)
        embedded = self.model.get_text_features(**tokens).pooler_output  # type: ignore[operator]
        return {"text": F.normalize(embedded, dim=-1)}, [len(ids) > LONGEST for ids in whole]
