"""The table of quality metrics. A metric is extracted per sample (features -> scores file) and estimated later; no
torch here.

Names are `family.extractor`: the extractor is part of the name, and names that belong to published extractors (FID,
KID, CLIPScore, VBench, LPIPS, ...) are left to them. A family is one module of this package with three functions of
(cell: Sampled, metric: Metric): `refuse -> str`, the reason the metric cannot be had for a cell or ""; `fingerprint
-> str`, what its values depend on besides the samples; `extract -> dict[str, ndarray]`, arrays [n, ...] in request
order for the scores file. One whose metrics need files or packages that people bring also has `missing(metric) -> str`, which says for
`doctor` what is not there, or "". `ditbench.summary` turns them into estimates.
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
    statistic: str = ""
    """Name in `ditbench.sets.STATISTICS` of what is made of the set of samples; "" for the mean of per-sample values. Unless it looks
    through an extractor, such a metric's family has a fourth function, `reference(world)`, the `Reference` it is set against."""
    features: str = ""
    """Array of the scores file that the statistic reads, [n, d]."""
    primary: bool = False
    """Whether verdicts on it are adjusted for how many stacks were tried."""
    extractor: str = ""
    """Row of `extractors.toml` whose features it is made of; such a metric is left out of a world's models unless asked for by name."""
    official: str = ""
    """What else entitles it to a name that belongs to a published metric: the pinned files, or the package that measures it."""
    asked: bool = False
    """Whether it is scored only when asked for by name: it needs another Python environment, or hours."""
    table: str = ""
    """Table of the report it stands in: "" the first, "more", or "video"."""

    def __post_init__(self) -> None:
        reason = unnamed(self.name, extractors().get(self.extractor))
        if reason and not self.official:
            raise ValueError(reason)

    @property
    def module(self) -> ModuleType:
        """The family's module."""
        return import_module(f"ditbench.metrics.{self.family}")


_JUDGE = "the judge's weights and samples of a shapes world"
_RENDERS = _JUDGE + ", and the reference features of that world"
_CHECK = "the second judge's weights and samples of a shapes world"
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
        primary=True,
    ),
    Metric(
        name="fd.shapes_v1",
        family="frechet",
        better="lower",
        unit="",
        doc="Squared Fréchet distance of the judge's 64 features to 2048 held-out renders; biased in n, so compare at "
        "equal n only.",
        needs=_RENDERS,
        statistic="frechet",
        features="feature.shapes_v1",
        primary=True,
    ),
    Metric(
        name="mmd.shapes_v1",
        family="frechet",
        better="lower",
        unit="",
        doc="Squared maximum mean discrepancy of the judge's features to the same renders (Gaussian kernel as wide as they are spread), "
        "x 1000; unbiased in n.",
        needs=_RENDERS,
        statistic="mmd_spread",
        features="feature.shapes_v1",
    ),
    Metric(
        name="precision.shapes_v1",
        family="frechet",
        better="higher",
        unit="fraction",
        doc="Share of the samples that look right: that lie among the renders (balls to third neighbours in the judge's features).",
        needs=_RENDERS,
        statistic="precision",
        features="feature.shapes_v1",
    ),
    Metric(
        name="recall.shapes_v1",
        family="frechet",
        better="higher",
        unit="fraction",
        doc="Share of what there is that the samples show: of the renders, those that lie among them; compare at equal n only.",
        needs=_RENDERS,
        statistic="recall",
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
        name="align.shapes_check_v1",
        family="checking",
        better="higher",
        unit="fraction",
        doc="The same as align.shapes_v1 by the second judge, through which nothing is trained or chosen.",
        needs=_CHECK,
        bounds=(0.0, 1.0),
        table="more",
    ),
    Metric(
        name="fd.shapes_check_v1",
        family="checking",
        better="lower",
        unit="",
        doc="Squared Fréchet distance of the second judge's 64 features to the same renders as fd.shapes_v1; another scale than its.",
        needs=_CHECK + ", and its reference features of that world",
        statistic="frechet",
        features="feature.shapes_check_v1",
        table="more",
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
    from ditbench.metrics.more import MORE
    from ditbench.metrics.official import ROWS

    return {metric.name: metric for metric in (*_TABLE, *MORE, *ROWS)}


def select(names: str | list[str] | None = None) -> list[Metric]:
    """Metrics by name or first word (a list, or separated by commas; None: all that need not be asked for); ValueError names the
    nearest where one is unknown.
    """
    table = metrics()
    if names is None:
        return [metric for metric in table.values() if not metric.asked]
    told = [name.strip() for name in (names.split(",") if isinstance(names, str) else names)]
    wanted = [name for part in told for name in ([n for n in table if n.startswith(f"{part}.")] or [part])]
    for name in wanted:
        if name not in table:
            near = difflib.get_close_matches(name, table, n=3, cutoff=0.4) or list(table)
            raise ValueError(f"unknown metric {name!r}; nearest: {', '.join(near)}")
    return [table[name] for name in dict.fromkeys(wanted)]
