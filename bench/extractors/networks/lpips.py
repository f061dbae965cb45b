"""The network of LPIPS (Zhang et al. 2018) with AlexNet, version 0.1: distances of unit-length
features, weighted by linear heads. Torch is imported when a network is made."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ditbench.extractors.pinned_files import Published

if TYPE_CHECKING:
    import torch

BACKBONE = Published(
    extractor="alex_v0_1",
    name="alexnet-owt-7be5be79.pth",
    sha256="7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    where="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
)
HEADS = Published(
    extractor="alex_v0_1",
    name="alex.pth",
    sha256="df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    where="torchmetrics, in functional/image/lpips_models/alex.pth",
)
CHANNELS = (64, 192, 384, 256, 256)
TAPS = (1, 4, 7, 9, 11)
"""Layers of the trunk that are compared: its rectifiers."""
SMALLEST = 31
"""Pixels a side below which nothing is left after the second pooling."""
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""ImageNet's mean and deviation for pixels in -1..1."""


@cache
def heads_path() -> Path | None:
    """Where torchmetrics keeps the heads, found without importing it; None where it is not
    installed."""
    spec = find_spec("torchmetrics")
    folders = spec.submodule_search_locations if spec is not None else None
    return Path(next(iter(folders))) / "functional" / "image" / "lpips_models" if folders else None


def trunk() -> torch.nn.Sequential:
    """AlexNet's features (Krizhevsky 2014, one column) as far as the last rectifier; parameters
    `<layer>.weight` and `.bias`."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
    )  # fmt: skip


def distance(
    backbone: Mapping[str, torch.Tensor], heads: Mapping[str, torch.Tensor]
) -> torch.nn.Module:
    """The network from `features.<layer>.weight|bias` (a classifier's are left out) and
    `lin<i>.model.1.weight` [1, C, 1, 1]; ValueError where they do not fit.

    Called with pixels in 0..1 [n, 3, H, W] twice, it gives [n].
    """
    import torch

    class Distance(torch.nn.Module):
        shift: torch.Tensor
        scale: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.trunk = trunk()
            self.heads = torch.nn.ParameterList(torch.zeros(1, c, 1, 1) for c in CHANNELS)
            self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None])
            self.register_buffer("scale", torch.tensor(SCALE)[:, None, None])

        def features(self, pixels: torch.Tensor) -> list[torch.Tensor]:
            hidden, layers = (2 * pixels - 1 - self.shift) / self.scale, []
            for i, layer in enumerate(self.trunk):
                hidden = layer(hidden)
                if i in TAPS:
                    # [n, C, h, w]
                    layers.append(hidden / (hidden.square().sum(1, keepdim=True) + 1e-8).sqrt())
            return layers

        def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
            parts = zip(self.heads, self.features(first), self.features(second), strict=True)
            return torch.stack(
                [(w * (a - b).square()).sum(1).mean((1, 2)) for w, a, b in parts]
            ).sum(0)

    net = Distance()
    settings = {
        name.replace("features.", "trunk.", 1): a
        for name, a in backbone.items()
        if name.startswith("features.")
    }
    settings |= {f"heads.{i}": heads[f"lin{i}.model.1.weight"] for i in range(len(CHANNELS))}
    try:
        net.load_state_dict(settings | {"shift": net.shift, "scale": net.scale})
    except RuntimeError as error:
        raise ValueError(
            f"these are no weights of LPIPS with AlexNet ({str(error).splitlines()[-1].strip()})"
        ) from error
    return net.eval().requires_grad_(False)
