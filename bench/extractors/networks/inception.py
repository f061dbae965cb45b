"""Inception v3 as the TensorFlow graph of 2015-12-05 has it, the network of FID, sFID, KID and the
inception score.

It differs from the later Inception v3 in four ways: average pools leave the padding out of the
mean, the last block pools by maximum, there are 1008 classes, and pictures are scaled by (x - 128)
/ 128. Names of the layers are those of the published weights. After Szegedy et al. 2015
(1512.00567); widths from the graph. n pictures, C channels.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from ditbench.extractors.networks.tensors import read_tensors
from ditbench.extractors.table import Extractor

SPATIAL = 7
"""Channels of sFID's features: the first of the 1x1 branch of Mixed_6d, which is `mixed_6/conv` in
the graph (Nash et al. 2021; ADM)."""
Size = int | tuple[int, int]


def build(extractor: Extractor, paths: dict[str, Path]) -> nn.Module:
    """The network with its weights; ValueError when they are of another architecture."""
    net = Inception()
    path = next(iter(paths.values()))
    try:
        net.load_state_dict(read_tensors(path))
    except RuntimeError as error:
        raise ValueError(
            f"{path} does not fit {extractor.architecture} ({str(error).splitlines()[0]})"
        ) from error
    return net


class Conv(nn.Module):
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(
        self, wide: int, out: int, kernel: Size, stride: int = 1, padding: Size = 0
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(wide, out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, wide, h, w] -> [n, out, h', w']."""
        return F.relu(self.bn(self.conv(x)))


def _row(wide: int, out: int, length: int) -> Conv:
    return Conv(wide, out, (1, length), padding=(0, length // 2))


def _column(wide: int, out: int, length: int) -> Conv:
    return Conv(wide, out, (length, 1), padding=(length // 2, 0))


def _average(x: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class BlockA(nn.Module):
    """35 x 35."""

    def __init__(self, wide: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(wide, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = Conv(wide, 48, 1), Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(wide, 64, 1), Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, padding=1)
        self.branch_pool = Conv(wide, pooled, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, wide, 35, 35] -> [n, 224 + pooled, 35, 35]."""
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, three, self.branch_pool(_average(x))], 1)


class BlockB(nn.Module):
    """35 x 35 to 17 x 17."""

    def __init__(self, wide: int) -> None:
        super().__init__()
        self.branch3x3 = Conv(wide, 384, 3, stride=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(wide, 64, 1), Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, wide, 35, 35] -> [n, 480 + wide, 17, 17]."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], 1)


class BlockC(nn.Module):
    """17 x 17, with 7 x 7 convolutions as rows and columns of width `mid`."""

    def __init__(self, wide: int, mid: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(wide, 192, 1)
        self.branch7x7_1, self.branch7x7_2, self.branch7x7_3 = (
            Conv(wide, mid, 1),
            _row(mid, mid, 7),
            _column(mid, 192, 7),
        )
        self.branch7x7dbl_1, self.branch7x7dbl_2 = Conv(wide, mid, 1), _column(mid, mid, 7)
        self.branch7x7dbl_3, self.branch7x7dbl_4 = _row(mid, mid, 7), _column(mid, mid, 7)
        self.branch7x7dbl_5 = _row(mid, 192, 7)
        self.branch_pool = Conv(wide, 192, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, wide, 17, 17] -> [n, 768, 17, 17]."""
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(_average(x))], 1)


class BlockD(nn.Module):
    """17 x 17 to 8 x 8."""

    def __init__(self, wide: int) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = Conv(wide, 192, 1), Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1, self.branch7x7x3_2 = Conv(wide, 192, 1), _row(192, 192, 7)
        self.branch7x7x3_3, self.branch7x7x3_4 = _column(192, 192, 7), Conv(192, 192, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, wide, 17, 17] -> [n, 512 + wide, 8, 8]."""
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([three, seven, F.max_pool2d(x, 3, stride=2)], 1)


class BlockE(nn.Module):
    """8 x 8; the second of the two pools by maximum, a slip of the 2015 graph that every FID since
    has kept."""

    def __init__(self, wide: int, by_maximum: bool) -> None:
        super().__init__()
        self.by_maximum = by_maximum
        self.branch1x1 = Conv(wide, 320, 1)
        self.branch3x3_1 = Conv(wide, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = _row(384, 384, 3), _column(384, 384, 3)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(wide, 448, 1), Conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = _row(384, 384, 3), _column(384, 384, 3)
        self.branch_pool = Conv(wide, 192, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, wide, 8, 8] -> [n, 2048, 8, 8]."""
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.by_maximum else _average(x)
        branches = [self.branch1x1(x), self.branch3x3_2a(three), self.branch3x3_2b(three)]
        branches += [
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(pooled),
        ]
        return torch.cat(branches, 1)


class Inception(nn.Module):
    """Pixels [n, 3, 299, 299] in -1..1 -> `pool` [n, 2048], `classes` [n, 1008] probabilities,
    `spatial` [n, 7 * 17 * 17]."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = (
            BlockA(192, 32),
            BlockA(256, 64),
            BlockA(288, 64),
        )
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b, self.Mixed_6c = BlockC(768, 128), BlockC(768, 160)
        self.Mixed_6d, self.Mixed_6e = BlockC(768, 160), BlockC(768, 192)
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b, self.Mixed_7c = BlockE(1280, by_maximum=False), BlockE(2048, by_maximum=True)
        self.fc = nn.Linear(2048, 1008)

    def read(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The three features. Probabilities are the softmax of logits without their bias, as the
        inception score of 2016 left it out."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # [n, 64, 147, 147]
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))  # [n, 192, 71, 71]
        # [n, 288, 35, 35]
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, stride=2))))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))  # [n, 768, 17, 17]
        x = self.Mixed_6d(x)
        spatial = x[:, :SPATIAL].flatten(1)  # the 1x1 branch comes first
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(self.Mixed_6e(x))))  # [n, 2048, 8, 8]
        pool = x.mean((2, 3))
        return {"pool": pool, "classes": (pool @ self.fc.weight.T).softmax(1), "spatial": spatial}
