"""The table of quality metrics. A metric is extracted per sample (features -> scores file) and
estimated later; no torch here.

Names are `family.extractor`: the extractor is part of the name, and names that belong to published
extractors (FID, KID, CLIPScore, VBench, LPIPS, ...) are left to them. A family is one module of
this package with three functions of (cell: Sampled, metric: Metric): `refuse -> str`, the reason
the metric cannot be had for a cell or ""; `fingerprint -> str`, what its values depend on besides
the samples; `extract -> dict[str, ndarray]`, arrays [n, ...] in request order for the scores file.
One whose metrics need files or packages that people bring also has `missing(metric) -> str`, which
says for `doctor` what is not there, or "". `ditbench.analysis.summary` turns them into
estimates.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

from ditbench.declarations import Registry, calling_module
from ditbench.extractors.table import extractors, unnamed
from ditbench.suggest import suggest


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
    """Range one sample's value can have; None for unbounded values and for statistics of the whole
    set."""
    against_none: bool = False
    """Whether a value is already a comparison with the un-accelerated sample of the same noise."""
    statistic: str = ""
    """Name in `ditbench.metrics.set_statistics.STATISTICS` of what is made of the set of samples;
    "" for the mean of per-sample values. Unless it looks through an extractor, such a metric's
    family has a fourth function, `reference(world)`, the `Reference` it is set against."""
    features: str = ""
    """Array of the scores file that the statistic reads, [n, d]."""
    primary: bool = False
    """Whether a model may be judged by it: of such metrics the first in the table that the model
    was scored with, among means and among statistics of the set. Verdicts on it are adjusted for
    how many stacks were tried."""
    label: str = ""
    """What heads and sentences call it; "" for its name."""
    decimals: int = 3
    """Decimal places it is shown with."""
    least: float = 0.0
    """Least difference that verdicts on combinations count (primary means only)."""
    extractor: str = ""
    """Row of `extractors.toml` whose features it is made of; such a metric is left out of a world's
    models unless asked for by name."""
    official: str = ""
    """What else entitles it to a name that belongs to a published metric: the pinned files, or the
    package that measures it."""
    asked: bool = False
    """Whether it is scored only when asked for by name: it needs another Python environment, or
    hours."""
    table: str = ""
    """Table of the report it stands in: "" the first, "more", or "video"."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or self.name)
        if self.bounds is not None:
            object.__setattr__(self, "bounds", tuple(self.bounds))
        reason = unnamed(self.name, extractors().get(self.extractor))
        if reason and not self.official:
            raise ValueError(reason)

    @property
    def module(self) -> ModuleType:
        """The family's module."""
        return module_of(self.family)


def _built_in() -> dict[str, Metric]:
    rows = tomllib.loads((Path(__file__).parent / "metrics.toml").read_text(encoding="utf-8"))
    return {name: Metric(name=name, **row) for name, row in rows.items()}


REGISTRY: Registry[Metric] = Registry("metric", "ditbench.metrics", Metric, _built_in)
_MODULES: dict[str, ModuleType] = {}
"""Family -> module, of metrics from outside."""


def metrics() -> dict[str, Metric]:
    """Every metric by name, in the order of the tables: the rows of `metrics.toml`, then those of
    installed packages and loaded plug-ins."""
    return REGISTRY.rows()


def register_metric(metric: Metric, module: ModuleType) -> Metric:
    """Add a metric to the table, extracted by the functions `refuse`, `fingerprint` and `extract` of
    a module (a plug-in passes `sys.modules[__name__]`); ValueError for a name that is there already,
    for a family of ditbench, and for a function that is missing."""
    if (Path(__file__).parent / f"{metric.family}.py").is_file():
        raise ValueError(f"metric family {metric.family!r} is ditbench's; choose another name")
    needed = ("refuse", "fingerprint", "extract") + (
        ("reference",) if metric.statistic and not metric.extractor else ()
    )
    for function in needed:
        if not callable(getattr(module, function, None)):
            raise ValueError(f"metric {metric.name}: its module has no function {function!r}")
    REGISTRY.add(metric.name, metric, calling_module())
    _MODULES[metric.family] = module
    return metric


def module_of(family: str) -> ModuleType:
    """The module that extracts a family of metrics."""
    return _MODULES.get(family) or import_module(f"ditbench.metrics.{family}")


def select(names: str | list[str] | None = None) -> list[Metric]:
    """Metrics by name or first word (a list, or separated by commas; None: all that need not be
    asked for); ValueError names the nearest where one is unknown.
    """
    table = metrics()
    if names is None:
        return [metric for metric in table.values() if not metric.asked]
    parts = [name.strip() for name in (names.split(",") if isinstance(names, str) else names)]
    wanted = [
        name
        for part in parts
        for name in ([n for n in table if n.startswith(f"{part}.")] or [part])
    ]
    for name in wanted:
        if name not in table:
            raise ValueError(f"unknown metric {name!r}; {suggest(name, table, 0.4)}")
    return [table[name] for name in dict.fromkeys(wanted)]
