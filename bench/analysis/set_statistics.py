"""The table of statistics of a set of samples: features of a metric family in, `Reading` out. numpy
only.

A metric whose row names one of these (`Metric.statistic`) is no mean of per-sample values: `read`
takes the features [n, d] that its family extracted, the reference its family knows, and the groups
[n], and gives a value and what paired differences need. Another extractor is another row of the
metrics' table, and nothing here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ditbench.analysis.rows import Record
from ditbench.analysis.statistic_cache import Kept, key_of
from ditbench.extractors.references import ReferenceSets
from ditbench.statistics.estimates import Array
from ditbench.statistics.frechet import Reference, floor, read_frechet, read_jackknifed
from ditbench.statistics.inception_score import read_inception_score
from ditbench.statistics.influence import Reading
from ditbench.statistics.mmd import gaussian, read_mmd, read_mmd_spread
from ditbench.statistics.precision_recall import hits, read_precision, read_recall

if TYPE_CHECKING:
    from ditbench.metrics.table import Metric
    from ditbench.records.scores import Scores


@dataclass(frozen=True, kw_only=True)
class Statistic:
    """How one number is made of a set of features."""

    read: Callable[..., Reading]
    """(features [n, d], reference, groups [n]) -> Reading; ValueError says why there is none."""
    interval: str
    """How a difference gets its interval, and over units of what."""
    floor: Callable[..., float] | None = None
    """(n, reference) -> what perfect samples would score at this n, where that is not the best
    there is."""
    alone: bool = False
    """Whether it knows no reference."""
    check: Callable[..., Reading] | None = None
    """The same as `read`, its interval made another way, and its bias in n known."""
    each: Callable[..., Array] | None = None
    """(features [n, d], reference) -> [n] values of 0 or 1 whose mean the statistic is."""


_DRAWS = "halves of {n} prompts"
_BLOCKS = "delete-block jackknife over {n} blocks of prompts"
_INFLUENCE = "influence function over {n} prompts"
STATISTICS = {
    "frechet": Statistic(
        read=read_frechet, interval=_INFLUENCE, floor=floor, check=read_jackknifed
    ),
    "mmd_cubic": Statistic(read=read_mmd, interval=_INFLUENCE),
    "mmd_spread": Statistic(read=read_mmd_spread, interval=_INFLUENCE),
    "mmd_gaussian": Statistic(read=partial(read_mmd, kernel=gaussian), interval=_INFLUENCE),
    "mmd_gaussian_biased": Statistic(
        read=partial(read_mmd, kernel=gaussian, biased=True), interval=_INFLUENCE
    ),
    "precision": Statistic(read=read_precision, interval="mean of {n} prompts", each=hits),
    "recall": Statistic(read=read_recall, interval=_DRAWS),
    "inception_score": Statistic(read=read_inception_score, interval=_BLOCKS, alone=True),
    "inception_score_whole": Statistic(
        read=partial(read_inception_score, splits=1), interval=_BLOCKS, alone=True
    ),
}


class Sets:
    """Statistics of the cells of a run, each worked out once: the baseline's is needed by every
    stack."""

    def __init__(
        self, find: Callable[[str, str], Reference], references: ReferenceSets | None = None
    ) -> None:
        self.find, self.references = find, references or ReferenceSets()
        """(world, metric family) -> its reference, ValueError when there is none; and those of the
        run, for metrics on features of an extractor."""
        self._known: dict[tuple[str, int, bool], Reading] = {}
        self._each: dict[tuple[str, int], Array] = {}
        self._kept = Kept(self.references.folder) if self.references.folder else None

    def save(self) -> None:
        """Keep what was read for the next report of the run, if it has a folder."""
        if self._kept:
            self._kept.save()

    def reference(self, metric: Metric, record: Record) -> Reference | None:
        """What a metric of a cell is set against; None where its statistic knows no reference.
        ValueError says why there is none."""
        if STATISTICS[metric.statistic].alone:
            return None
        if metric.extractor:
            return self.references.reference(metric.extractor, metric.features, record["model"])
        return self.find(record["world"], metric.family)

    def each(self, metric: Metric, record: Record, scores: Scores) -> Array:
        """[n] values whose mean a cell's statistic is, where it is such a mean; ValueError says why
        there is none."""
        at = metric.name, id(scores)
        if at not in self._each:
            make = STATISTICS[metric.statistic].each
            assert make is not None
            self._each[at] = make(scores.arrays[metric.features], self.reference(metric, record))
        return self._each[at]

    def read(self, metric: Metric, record: Record, scores: Scores, check: bool = False) -> Reading:
        """A cell's statistic, or the check of it; ValueError says why there is none."""
        at = metric.name, id(scores), check
        if at not in self._known:
            features, group = scores.arrays[metric.features], scores.arrays["group"]
            reference = self.reference(metric, record)
            statistic = STATISTICS[metric.statistic]
            read = statistic.check if check and statistic.check else statistic.read
            key = key_of(read, features, group, reference) if self._kept else ""
            reading = self._kept.get(key) if self._kept else None
            if reading is None:
                reading = read(features, reference, group)
                if self._kept:
                    self._kept.put(key, reading)
            self._known[at] = reading
        return self._known[at]
