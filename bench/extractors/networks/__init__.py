"""Extractors as networks: pictures (and prompts) -> features. One module per architecture, built
from `extractors.toml`.

A module of this package has a class with `read(pixels)`, float32 [n, 3, h, w] -> {feature: [n, d]},
and, where the network reads text, `write(prompts)` -> ({feature: [n, d]}, cut [n]). The harness
reaches them through `load` alone. n pictures, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ditbench.extractors.networks.preprocessing import PREPROCESSINGS
from ditbench.extractors.table import Extractor, verified

BATCH = 32
"""Pictures, or prompts, that go through a network together."""


class Network:
    """An extractor's network, in float32 and evaluation mode, on the GPU when there is one."""

    def __init__(self, extractor: Extractor, paths: dict[str, Path], device: str = "") -> None:
        self.extractor = extractor
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        module = import_module(f"ditbench.extractors.networks.{extractor.architecture}")
        try:
            self._net = module.build(extractor, paths)
        except (
            ImportError
        ) as error:  # a torchvision built for another torch takes transformers with it
            said = str(error.__cause__ or error).splitlines()[0]
            raise ValueError(
                f"{extractor.name} needs transformers, which cannot be imported ({said})"
            ) from error
        self._net.eval().requires_grad_(False).to(self.device)

    def features(
        self, pictures: NDArray[np.uint8], batch: int = BATCH
    ) -> dict[str, NDArray[np.float32]]:
        """{feature: float32 [n, d]} of `pictures`, uint8 [n, H, W, 3]; TypeError for floats, which
        a network would scale twice."""
        if pictures.dtype != np.uint8:
            raise TypeError(
                f"{self.extractor.name} reads pictures as uint8 in 0..255, got {pictures.dtype}"
            )
        if pictures.ndim != 4 or pictures.shape[-1] != 3:
            raise ValueError(
                f"{self.extractor.name} reads pictures [n, H, W, 3], got shape "
                f"{list(pictures.shape)}"
            )
        prepare = PREPROCESSINGS[self.extractor.preprocessing]
        size = self.extractor.shape.get("vision_config", {}).get("image_size", 0)
        parts = []
        for chunk in _chunks(pictures, batch):
            with exact():
                parts.append(self._net.read(prepare(chunk, size).to(self.device)))
        return {name: np.concatenate([_array(part[name]) for part in parts]) for name in parts[0]}

    def texts(
        self, prompts: Sequence[str], batch: int = BATCH
    ) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.bool_]]:
        """{feature: float32 [n, d]} of `prompts`, and [n]: which of them were too long and have
        been cut."""
        parts, cut = [], []
        for chunk in _chunks(prompts, batch):
            with exact():
                features, too_long = self._net.write(list(chunk))
            parts.append(features)
            cut += too_long
        return {
            name: np.concatenate([_array(part[name]) for part in parts]) for name in parts[0]
        }, np.array(cut)


def load(extractor: Extractor, folder: Path | None = None, device: str = "") -> Network:
    """An extractor's network with its verified files; ValueError in one sentence when they are
    missing, others, or damaged."""
    return Network(extractor, verified(extractor, folder), device)


@contextmanager
def exact() -> Iterator[None]:
    """No gradients, and no TF32 in matrix products and convolutions: features shall not depend on
    the kind of GPU."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def _array(tensor: torch.Tensor) -> NDArray[np.float32]:
    return tensor.float().cpu().numpy()


def _chunks(items: Any, size: int) -> Iterator[Any]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
