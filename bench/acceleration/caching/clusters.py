"""Tokens in clusters of like ones: the k-means of ClusCa.

B batch, N tokens, K clusters, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

ITERATIONS = 10
"""Ours, always as many, so that no sample waits for another and nothing is read from the device; the
authors' code stops when centroids of the whole batch move little, after 100 at most."""


def k_means(tokens: Tensor, count: int, centroids: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Labels [B,N] int64 and centroids [B,K,D] float32 of tokens [B,N,D] by the mean absolute distance,
    each sample by itself (ClusCa, arXiv:2509.10312).

    `centroids` are where it begins; None: tokens spread evenly over the picture (the authors' are
    random). A cluster without tokens keeps its centroid. `count` is K, N at most.
    """
    x = tokens.float()
    if centroids is None:
        centroids = x[:, torch.arange(count, device=x.device) * x.shape[1] // count]
    labels = _nearest(x, centroids)
    for _ in range(ITERATIONS):
        member = (labels[..., None] == torch.arange(count, device=x.device)).to(x.dtype)  # [B,N,K]
        sizes = member.sum(1)[..., None]
        sums = member.transpose(1, 2) @ x
        centroids = torch.where(sizes > 0, sums / sizes.clamp(min=1), centroids)
        labels = _nearest(x, centroids)
    return labels, centroids


def _nearest(x: Tensor, centroids: Tensor) -> Tensor:
    return torch.cdist(x, centroids, p=1).argmin(-1)


def one_of_each(labels: Tensor, count: int, ranks: Tensor) -> Tensor:
    """A token of each cluster, [B,K] int64, from labels [B,N]: the one with the highest of the numbers
    `ranks` [B,N], which are 0 at least; of a cluster without tokens the first token."""
    member = labels[:, None] == torch.arange(count, device=labels.device)[:, None]  # [B,K,N]
    return torch.where(member, ranks[:, None], -torch.ones_like(ranks[:, None])).argmax(-1)
