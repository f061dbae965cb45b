"""Rows of the metrics' table that look through published networks; their names are earned by pinned files alone. No torch."""

from __future__ import annotations

from ditbench.metrics import Metric


def _row(
    name: str, extractor: str, feature: str, statistic: str, doc: str, better: str = "lower", unit: str = "",
    reference: bool = True,
) -> Metric:  # fmt: skip
    return Metric(
        name=name,
        family="networks",
        better=better,
        unit=unit,
        doc=doc,
        needs=f"the pinned files of {extractor}, and pictures"
        + (", and a reference (--reference)" if reference else ""),
        statistic=statistic,
        features=f"feature.{extractor}.{feature}",
        extractor=extractor,
    )


ROWS = (
    _row(
        "fid.tf2015.legacy_tf", "tf2015", "pool", "frechet",
        "Fréchet Inception distance (Heusel et al. 2017) with the 2015 weights and TensorFlow 1's resize, as ADM and DiT report it.",
    ),
    _row(
        "sfid.tf2015.legacy_tf", "tf2015", "spatial", "frechet",
        "The same on seven channels of a 17x17 layer, which see where things are (Nash et al. 2021).",
    ),
    _row(
        "kid.tf2015.legacy_tf", "tf2015", "pool", "mmd_cubic",
        "Kernel Inception distance (Bińkowski et al. 2018) on the features of fid.tf2015.legacy_tf; unbiased in n.",
    ),
    _row(
        "precision.tf2015.legacy_tf", "tf2015", "pool", "precision",
        "Share of the samples that lie among the reference's (Kynkäänniemi et al. 2019), on the same features.",
        better="higher", unit="fraction",
    ),
    _row(
        "recall.tf2015.legacy_tf", "tf2015", "pool", "recall",
        "Share of the reference that lies among the samples, on the same features; grows with n.",
        better="higher", unit="fraction",
    ),
    _row(
        "is.tf2015.legacy_tf", "tf2015", "classes", "inception_score",
        "Inception score (Salimans et al. 2016) of the 1008 classes without bias; knows no reference.",
        better="higher", reference=False,
    ),
    _row(
        "fd.dinov2_l14.bicubic224", "dinov2_l14", "cls", "frechet",
        "Squared Fréchet distance of DINOv2's class tokens (Stein et al. 2023); closer to human ranking than Inception's.",
    ),
    _row(
        "cmmd.openai_l14_336", "openai_l14_336", "image", "mmd_gaussian_biased",
        "Maximum mean discrepancy of CLIP embeddings with a Gaussian kernel (Jayasumana et al. 2024).",
    ),
    Metric(
        name="clip100.openai_vit_l14",
        family="clip",
        better="higher",
        unit="",
        doc="100 times the cosine of a picture's and its prompt's CLIP embeddings; its part `cut`: prompts cut at 77 tokens.",
        needs="the pinned files of openai_vit_l14, pictures and prompts",
        bounds=(-100.0, 100.0),
        extractor="openai_vit_l14",
    ),
)  # fmt: skip
