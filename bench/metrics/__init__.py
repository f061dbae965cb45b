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

from ditbench.extractors import extractors, unnamed


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A quality metric as the tables know it."""

    name: str
    family: str
    """Module of this package that extracts it."""
    better: str
    """"higher" or "lower"."""
    unit: str
    doc: str
    """One sentence."""
    needs: str
    """What must be there for it, in words."""
    bounds: tuple[float, float] | None = None
    """Range one sample's value can have; None for unbounded values and for statistics of the whole set."""
    against_none: bool = False
    """Whether a value is already a comparison with the un-accelerated sample of the same noise."""
    statistic: str = ""
    """Name in `ditbench.sets.STATISTICS` of what is made of the set of samples; "" for the mean of per-sample values."""
    features: str = ""
    """Array of the scores file that the statistic reads, [n, d]."""
    extractor: str = ""
    """Row of `extractors.toml` whose features it is made of; such a metric is left out of a world's models unless asked for by name."""

    def __post_init__(self) -> None:
        if reason := unnamed(self.name, extractors().get(self.extractor)):
            raise ValueError(reason)

    @property
    def module(self) -> ModuleType:
        """The family's module."""
        return import_module(f"ditbench.metrics.{self.family}")


_JUDGE = "the judge's weights and samples of a shapes world"
_BASELINE = "samples of the stack `none` in the same run"
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
        statistic="frechet",
        features="feature.shapes_v1",
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
)


def metrics() -> dict[str, Metric]:
    """Every metric by name, in the order of the tables."""
    from ditbench.metrics.official import ROWS

    return {metric.name: metric for metric in (*_TABLE, *ROWS)}


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
