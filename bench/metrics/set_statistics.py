"""The table of statistics of a set of samples: features of a metric family in, `Reading` out. numpy
only.

A metric whose row names one of these (`Metric.statistic`) is no mean of per-sample values: `read`
takes the features [n, d] that its family extracted, the reference its family knows, and the groups
[n], and gives a value and what paired differences need. Another extractor is another row of the
metrics' table, and nothing here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditbench.extractors.references import ReferenceSets
from ditbench.metrics.published_statistics import (
    parts_of,
    published_each,
    published_floor,
    published_reading,
)
from ditbench.metrics.statistic_cache import Kept, key_of, worked_out_from
from ditbench.metrics.table import Metric, module_of
from ditbench.records.scores import Scores
from ditbench.statistics.estimates import Array
from ditbench.statistics.frechet import Reference, floor, read_frechet, read_jackknifed, too_few
from ditbench.statistics.inception_score import read_inception_score
from ditbench.statistics.influence import Reading, summed
from ditbench.statistics.mmd import gaussian, read_mmd, read_mmd_spread
from ditbench.statistics.precision_recall import hits, read_precision, read_recall

Record = Mapping[str, Any]
"""A cell's record.json (`ditbench.records.record`)."""


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


FLOORED = 256
"""Features up to which perfection at this n is simulated in every report: beyond, it costs
minutes."""
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
        self,
        find: Callable[[str, str], Reference],
        references: ReferenceSets | None = None,
        cached: bool = True,
    ) -> None:
        self.find, self.references = find, references or ReferenceSets()
        """(world, metric family) -> its reference, ValueError when there is none; and those of the
        run, for metrics on features of an extractor."""
        self._known: dict[tuple[str, int, bool], Reading] = {}
        self._each: dict[tuple[str, int], Array] = {}
        self._seen: dict[int, Scores] = {}
        """By `id`, so that no other scores get the same."""
        folder = self.references.folder if cached else None
        self._kept = Kept(folder) if folder else None

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
        return self.find(record.get("world", ""), metric.family)

    def shape(self, metric: Metric, scores: Scores) -> tuple[int, int]:
        """(n, d) of the features a metric is made of; ValueError where a cell has none."""
        shape = scores.shape_of(metric.features)
        if shape is None:
            raise ValueError(f"the cell has no {metric.features}")
        n, d = shape
        return n, d

    def each(self, metric: Metric, record: Record, scores: Scores) -> Array:
        """Values whose mean a cell's statistic is, as those of `scores` are: [n], or by block; where
        it is such a mean. ValueError says why there is none."""
        at = metric.name, id(self._seen.setdefault(id(scores), scores))
        if at not in self._each:
            make = STATISTICS[metric.statistic].each
            assert make is not None
            stored = published_each(scores, metric.name) if self._usable(metric, record, scores) else None  # fmt: skip
            self._each[at] = (
                scores.as_values(make(_features(metric, scores), self.reference(metric, record)))
                if stored is None
                else stored
            )
        return self._each[at]

    def read(self, metric: Metric, record: Record, scores: Scores, check: bool = False) -> Reading:
        """A cell's statistic, or the check of it; ValueError says why there is none."""
        at = metric.name, id(self._seen.setdefault(id(scores), scores)), check
        if at not in self._known:
            stored = None
            if self._usable(metric, record, scores):
                if reason := scores.unread.get(metric.name):
                    raise ValueError(reason)
                stored = published_reading(scores, metric.name, "check" if check else "read")
            self._known[at] = stored or self._made(metric, record, scores, check)
        return self._known[at]

    def _usable(self, metric: Metric, record: Record, scores: Scores) -> bool:
        """Whether the statistic in a cell's scores is what would be worked out from the features
        now, or there are none to work it out from."""
        if not scores.statistics or metric.features not in scores.arrays:
            return True
        return scores.statistics.get(metric.name) == self.source(metric, record, scores)

    def source(self, metric: Metric, record: Record, scores: Scores) -> str:
        """What a cell's statistic is worked out from; ValueError where its reference is missing."""
        owners = (name for name, names in scores.owned.items() if metric.features in names)
        made_by = [scores.fingerprints.get(name, "") for name in owners]
        statistic = STATISTICS[metric.statistic]
        return worked_out_from(
            (statistic.read, statistic.check, statistic.each, statistic.floor),
            f"{scores.samples_sha256} {made_by}",
            self.reference(metric, record),
        )

    def _made(self, metric: Metric, record: Record, scores: Scores, check: bool) -> Reading:
        """From the features, or as an earlier report of the run made it."""
        features, group = _features(metric, scores), scores.group
        reference = self.reference(metric, record)
        statistic = STATISTICS[metric.statistic]
        read = statistic.check if check and statistic.check else statistic.read
        key = key_of(read, features, group, reference) if self._kept else ""
        reading = self._kept.get(key) if self._kept else None
        if reading is None:
            reading = summed(read(features, reference, group))
            if self._kept:
                self._kept.put(key, reading)
        return reading

    def floor(self, metric: Metric, record: Record, scores: Scores) -> float | None:
        """What perfect samples would score at this n; None where that is the best there is, or
        would take minutes to simulate. ValueError where the reference is missing."""
        if self._usable(metric, record, scores):
            stored = published_floor(scores, metric.name)
            if stored is not None or metric.name in scores.statistics:
                return stored
        make = STATISTICS[metric.statistic].floor
        n, d = self.shape(metric, scores)
        if make is None or d > FLOORED or metric.features not in scores.arrays:
            return None
        reference = self.reference(metric, record)
        return None if reference is None else make(n, reference)

    def all_of(self, metric: Metric, record: Record, scores: Scores) -> dict[str, NDArray[Any]]:
        """Everything reports need of a statistic, as `published_statistics` names it; ValueError
        says why there is none."""
        statistic = STATISTICS[metric.statistic]
        arrays = parts_of(self.read(metric, record, scores), "read")
        if statistic.check and not too_few(*self.shape(metric, scores)):
            arrays |= parts_of(self.read(metric, record, scores, check=True), "check")
        if statistic.each:
            each = self.each(metric, record, scores)
            arrays["each"] = each if scores.blocks else each.astype(np.uint8)
        floor = self.floor(metric, record, scores)
        return arrays if floor is None else arrays | {"floor": np.array([floor])}

    def forget(self) -> None:
        """Keep no reading of a cell any longer, nor its scores."""
        for known in (self._known, self._each, self._seen):
            known.clear()


def _features(metric: Metric, scores: Scores) -> NDArray[Any]:
    if metric.features not in scores.arrays:
        raise ValueError("this run was published without the features it is made of")
    return scores.arrays[metric.features]


def sets_of(
    references: Mapping[str, Reference] | None, of_run: ReferenceSets | None, cached: bool = True
) -> Sets:
    """Statistics of sets against the references of the synthetic datasets, those given or those of
    ditbench, and against the references of a run."""
    return Sets(
        lambda world, family: (
            reference_of(world, family) if references is None else given(references, world)
        ),
        of_run,
        cached,
    )


def given(references: Mapping[str, Reference], world: str) -> Reference:
    """A world's reference among those given; ValueError when it is not there."""
    if world not in references:
        raise ValueError(f"no reference for the world {world}")
    return references[world]


@cache
def reference_of(world: str, family: str = "shapes_features") -> Reference:
    """The reference a metric family has for a world, read once; ValueError when it is missing or
    damaged."""
    reference: Reference = module_of(family).reference(world)
    return reference
