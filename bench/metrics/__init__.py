"""The table of quality metrics. A metric is extracted per sample (features -> scores file) and estimated later; no
torch here.

Names are `family.extractor`: the extractor is part of the name, and names that belong to published extractors (FID,
KID, CLIPScore, VBench, LPIPS, ...) are left to them. A family is one module of this package with three functions of
(cell: Sampled, metric: Metric): `refuse -> str`, the reason the metric cannot be had for a cell or ""; `fingerprint
-> str`, what its values depend on besides the samples; `extract -> dict[str, ndarray]`, arrays [n, ...] in request
order for the scores file. `ditbench.summary` turns them into estimates.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A quality metric as the tables know it."""

    name: str
    family: str
    """Module of this package that extracts it."""
    better: str
    """"higher", "lower", or "neither" where only a comparison says something."""
    unit: str
    doc: str
    """One sentence."""
    needs: str
    """What must be there for it, in words."""
    bounds: tuple[float, float] | None = None
    """Range one sample's value can have; None for unbounded values and for statistics of the whole set."""
    against_none: bool = False
    """Whether a value is already a comparison with the un-accelerated sample of the same noise."""
    official: str = ""
    """What entitles it to a name that belongs to a published metric: the pinned files, or the package that measures it."""
    table: str = ""
    """Table of the report it stands in: "" the first, "more", or "video"."""

    @property
    def module(self) -> ModuleType:
        """The family's module."""
        return import_module(f"ditbench.metrics.{self.family}")


_JUDGE = "the judge's weights and samples of a shapes world"
_BASELINE = "samples of the stack `none` in the same run"
_VIDEO = "videos"
_TABLE = (
    Metric(
        name="align.shapes_v1",
        family="alignment",
        better="higher",
        unit="fraction",
        doc="Share of what was asked for (class; or shape, colour, size, position, background, texture, motion) that "
        "the judge reads in the sample.",
        needs=_JUDGE,
        bounds=(0.0, 1.0),
    ),
    Metric(
        name="fd.shapes_v1",
        family="frechet",
        better="lower",
        unit="",
        doc="Squared Fréchet distance of the judge's 64 features to 2048 held-out renders; biased in n, so compare at "
        "equal n only.",
        needs=_JUDGE + ", and the reference features of that world",
    ),
    Metric(
        name="perceptual.shapes_v1",
        family="perceptual",
        better="lower",
        unit="",
        doc="Distance of the judge's layers, as LPIPS is built, to the un-accelerated sample of the same noise: reproduction, not "
        "quality.",
        needs=_JUDGE + ", and " + _BASELINE,
        bounds=(0.0, 16.0),
        against_none=True,
    ),
    Metric(
        name="psnr.vs_none",
        family="fidelity",
        better="higher",
        unit="dB",
        doc="Peak signal-to-noise ratio to the un-accelerated sample of the same noise, mean over samples, 100 dB "
        "where identical: reproduction, not quality.",
        needs=_BASELINE,
        against_none=True,
    ),
    Metric(
        name="ssim.vs_none",
        family="fidelity",
        better="higher",
        unit="",
        doc="Structural similarity (Gaussian 11x11, sigma 1.5, RGB) to the un-accelerated sample of the same noise: "
        "reproduction, not quality.",
        needs=_BASELINE,
        bounds=(-1.0, 1.0),
        against_none=True,
    ),
    Metric(
        name="ms_ssim.vs_none",
        family="fidelity",
        better="higher",
        unit="",
        doc="Multi-scale structural similarity (five scales, the authors' weights) to the un-accelerated sample of the same noise.",
        needs=_BASELINE + ", of at least 176 pixels a side",
        bounds=(0.0, 1.0),
        against_none=True,
        table="more",
    ),
    Metric(
        name="lpips.alex_v0_1",
        family="lpips",
        better="lower",
        unit="",
        doc="LPIPS (AlexNet, version 0.1) to the un-accelerated sample of the same noise: reproduction, not quality.",
        needs=_BASELINE + ", and alexnet-owt-7be5be79.pth in the folder of DITBENCH_EXTRACTORS or torch's hub",
        against_none=True,
        official="AlexNet's and the heads' files by their sha256",
        table="more",
    ),
    Metric(
        name="vstyle.frame_mad",
        family="video",
        better="higher",
        unit="",
        doc="1 - mean absolute difference of neighbouring frames; a frozen video has 1.",
        needs=_VIDEO,
        bounds=(0.0, 1.0),
        table="video",
    ),
    Metric(
        name="vstyle.second_diff",
        family="video",
        better="lower",
        unit="",
        doc="Mean absolute second difference over three frames: flicker, with steady motion mostly taken out; a frozen video has 0.",
        needs=_VIDEO + " of at least three frames",
        bounds=(0.0, 1.0),
        table="video",
    ),
    Metric(
        name="vstyle.linear_interp_smooth",
        family="video",
        better="higher",
        unit="",
        doc="1 - mean absolute difference of every second frame to the mean of its neighbours; a frozen video has 1.",
        needs=_VIDEO + " of at least three frames",
        bounds=(0.0, 1.0),
        table="video",
    ),
    Metric(
        name="vstyle.block_motion",
        family="video",
        better="neither",
        unit="% of the shorter side",
        doc="Mean displacement of 8x8 blocks from frame to frame, by block matching; a frozen video has 0.",
        needs=_VIDEO + " of at least 16 pixels a side",
        table="video",
    ),
    Metric(
        name="vstyle.hist_consistency",
        family="video",
        better="higher",
        unit="",
        doc="Cosine of each frame's colour and gradient histograms to those of the frame before and of the first, halved sum.",
        needs=_VIDEO,
        bounds=(0.0, 1.0),
        table="video",
    ),
    Metric(
        name="tdiff_fidelity.vs_none",
        family="video",
        better="higher",
        unit="dB",
        doc="PSNR between the frame-difference maps of a video and of the un-accelerated one of the same noise, at most 100 dB: added "
        "flicker or frozen motion; its part `mae` is their mean absolute difference.",
        needs=_VIDEO + " and " + _BASELINE,
        against_none=True,
        table="video",
    ),
    Metric(
        name="motion_energy_ratio.vs_none",
        family="video",
        better="neither",
        unit="",
        doc="Mean absolute frame difference over that of the un-accelerated video of the same noise; below 1 motion was damped, above 1 "
        "motion or flicker was added.",
        needs=_VIDEO + " and " + _BASELINE,
        against_none=True,
        table="video",
    ),
)


def metrics() -> dict[str, Metric]:
    """Every metric by name, in the order of the tables."""
    return {metric.name: metric for metric in _TABLE}


def select(names: str | list[str] | None = None) -> list[Metric]:
    """Metrics by name (a list, or separated by commas; None: all); ValueError names the nearest where one is
    unknown.
    """
    table = metrics()
    if names is None:
        return list(table.values())
    wanted = [name.strip() for name in (names.split(",") if isinstance(names, str) else names)]
    for name in wanted:
        if name not in table:
            near = difflib.get_close_matches(name, table, n=3, cutoff=0.4) or list(table)
            raise ValueError(f"unknown metric {name!r}; nearest: {', '.join(near)}")
    return [table[name] for name in dict.fromkeys(wanted)]
