"""Does the small world predict the large one? Whether a run orders methods as authors' printed tables
of the same transformer family do, at matched compute. No torch.

The rule, fixed before any tau was computed:

1.  A printed row stands for the cell of the same single method (knobs that are no numbers at their
    defaults, the first training) whose speed-up by FLOPs is nearest to the printed one, by the ratio
    of the two; not for one that is off by more than a factor of `NEAR`.
2.  Two rows of a table are compared where they are different methods and neither has spent much less
    compute: the printed speed-ups lie within a factor of `ALIKE`, and so do those of our two cells.
    So a method is not ahead because it computes more, in print or here. Where authors print time
    alone, their speed-up is of time; ours is always of FLOPs.
3.  Ours is the counterpart of the printed metric (`like` in `printed.toml`): the model's Fréchet
    distance for FID, its score for ImageReward and VBench, the perceptual distance for LPIPS, PSNR
    for PSNR. That is the answer. Beside it every table is ranked once more by the perceptual distance
    to the un-accelerated sample alone (`FIDELITY`), the most sensitive number a run has.
4.  Tau-b counts the compared pairs of a table, of a family's tables together, and of all. Its
    interval is a percentile bootstrap over requests and over methods (a model's cells, which its
    tables share); its p-value is that of exchanging our values among the methods of a model. With
    four to eight methods a table both are wide: a table alone settles next to nothing. What no
    bootstrap has: papers take baselines from each other, so that tables are not independent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ditbench.analysis.primary import Primary, by_model
from ditbench.analysis.printed_cells import Setting, candidates, setting_of
from ditbench.analysis.printed_tables import PrintedRow, PrintedTable, baselines
from ditbench.analysis.readings import draw_again, reading_of
from ditbench.analysis.rows import Record
from ditbench.analysis.step_sweep import PERCEPTUAL
from ditbench.extractors.references import ReferenceSets
from ditbench.metrics.set_statistics import sets_of
from ditbench.metrics.table import metrics
from ditbench.records.scores import Scores
from ditbench.statistics.estimates import Estimate
from ditbench.statistics.frechet import Reference
from ditbench.statistics.influence import Reading, contrast
from ditbench.statistics.ranks import RESAMPLES, bootstrap, pairs_of, permutation_p, tau_b

COUNTERPART, FIDELITY = "counterpart", "fidelity"
"""What of ours is ranked: the counterpart of the printed metric, or the perceptual distance."""
BY = (COUNTERPART, FIDELITY)
FEWEST, FEWEST_FOR_INTERVAL = 3, 4
"""Methods from which there is a tau, and from which it has an interval."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A printed row and our cell."""

    row: PrintedRow
    key: str
    stack: str
    speedup: float
    """Ours, by FLOPs."""
    values: Mapping[str, float]
    """By what is ranked (`BY`): our value."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two rows of a table that are compared; `first` is ahead as printed, or level."""

    first: Entry
    second: Entry
    gap: float
    """By how much it is better as printed; 0: a tie."""
    ours: Mapping[str, Estimate]
    """By what is ranked: by how much it is better here, paired on every request."""

    def agrees(self, by: str) -> bool | None:
        """Whether ours has the same method ahead; None for a tie of either."""
        return None if not self.gap or not self.ours[by].value else self.ours[by].value > 0

    def settled(self, by: str) -> bool:
        """Whether the interval of our difference leaves out zero."""
        low, high = self.ours[by].low, self.ours[by].high
        return low is not None and high is not None and not low <= 0 <= high


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far two orders agree."""

    tau: float | None
    """Kendall's tau-b; None for fewer than `FEWEST` methods, or nothing but ties."""
    low: float | None
    high: float | None
    p: float | None
    """Two-sided, of exchanging our values."""
    methods: int
    """Methods (of each model, where there are several) that stand in a pair."""
    pairs: int
    agree: int
    disagree: int
    settled: tuple[int, int]
    """Of those, how many agree and disagree where the interval of our difference leaves out zero."""


@dataclass(frozen=True, kw_only=True)
class TableOrder:
    """A printed table beside the cells of a model."""

    table: PrintedTable
    model: str
    ours: Setting
    metrics: Mapping[str, str]
    """By what is ranked: our metric."""
    entries: tuple[Entry, ...]
    """Rows that stand in a pair, the best as printed first."""
    pairs: tuple[Pair, ...]
    agreement: Mapping[str, Agreement]
    """By what is ranked."""
    spread: float | None
    """How far apart the un-accelerated model is printed by different sources; None where only one
    prints it in this setting."""

    def within_baselines(self, pair: Pair) -> bool | None:
        """Whether a printed gap is no larger than that; None where it is not known."""
        return None if self.spread is None else pair.gap <= self.spread


@dataclass(frozen=True, kw_only=True)
class Printed:
    """A run beside the printed tables of its models' families."""

    tables: tuple[TableOrder, ...]
    families: Mapping[str, Mapping[str, Agreement]]
    """Of a family's tables together, by what is ranked."""
    overall: Mapping[str, Agreement]


@dataclass
class _World:
    """The cells that stand for printed rows, numbered over all models, and their numbers."""

    keys: list[str] = field(default_factory=list)
    model_of: list[str] = field(default_factory=list)
    method_of: list[str] = field(default_factory=list)
    readings: list[dict[str, Reading]] = field(default_factory=list)
    """By metric."""

    def number(self, record: Record, known: dict[str, Reading]) -> int:
        if record["key"] not in self.keys:
            self.keys.append(record["key"])
            self.model_of.append(record["model"])
            self.method_of.append(f"{record['model']} {record['methods'][0]['name']}")
            self.readings.append({})
        at = self.keys.index(record["key"])
        self.readings[at] |= known
        return at


Compared = list[tuple[int, int, str, float, bool]]
"""Pairs by numbers of cells, our metric, by how much the first is better as printed, and whether our
difference is settled."""


def printed_order(
    records: Sequence[Record],
    scores: Mapping[str, Scores],
    references: Mapping[str, Reference] | None = None,
    sets_of_run: ReferenceSets | None = None,
) -> Printed | None:
    """The run beside the printed tables; None where no two of its methods stand in one of them at
    alike compute. `references` and `sets_of_run` as in `ditbench.analysis.summarise`."""
    if not (chosen := candidates(records, scores)):
        return None
    sets, primary = sets_of(references, sets_of_run), by_model(records, scores)
    world, found = _World(), []
    for model, table, none, matched, together in chosen:
        of = _metrics_of(table, primary[model])
        read = {
            cell["key"]: {
                name: reading
                for name in set(of.values())
                if (reading := reading_of(name, cell, scores[cell["key"]], sets)) is not None
            }
            for _, cell, _ in matched
        }
        usable = [
            (i, j) for i, j in together
            if all(of[by] in read[matched[k][1]["key"]] for k in (i, j) for by in BY)
            and all(len({len(read[matched[k][1]["key"]][of[by]].parts) for k in (i, j)}) == 1 for by in BY)
        ]  # fmt: skip
        if usable:
            at = [world.number(cell, read[cell["key"]]) for _, cell, _ in matched]
            found.append((model, table, none, matched, usable, of, at))
    sets.save()
    if not found:
        return None
    numbers = _Numbers(world)
    tables, compared = [], []
    for model, table, none, matched, usable, of, at in found:
        entries = [
            Entry(
                row=row, key=cell["key"], stack=cell["stack"], speedup=speedup,
                values={
                    by: world.readings[n][name].value
                    for by, name in of.items()
                    if name in world.readings[n]
                },
            )
            for (row, cell, speedup), n in zip(matched, at, strict=True)
        ]  # fmt: skip
        pairs = [_pair(table, entries, i, j, of, at, world) for i, j in usable]
        rows: dict[str, Compared] = {
            by: [
                (at[i], at[j], of[by], _gap(table, entries[i], entries[j]), pair.settled(by))
                for (i, j), pair in zip(usable, pairs, strict=True)
            ]
            for by in BY
        }
        compared.append(rows)
        best_first = sorted(
            {k for two in usable for k in two},
            key=lambda k: entries[k].row.value * (-1 if table.better == "higher" else 1),
        )
        printed = baselines(table).values()
        tables.append(
            TableOrder(
                table=table, model=model, ours=setting_of(none), metrics=of,
                entries=tuple(entries[k] for k in best_first), pairs=tuple(pairs),
                agreement=numbers.agreements([rows]),
                spread=max(printed) - min(printed) if len(printed) > 1 else None,
            )
        )  # fmt: skip
    families = dict.fromkeys(t.table.family for t in tables)
    return Printed(
        tables=tuple(tables),
        families={
            family: numbers.agreements(
                [rows for rows, t in zip(compared, tables, strict=True) if t.table.family == family]
            )
            for family in families
        },
        overall=numbers.agreements(compared),
    )


def _metrics_of(table: PrintedTable, primary: Primary) -> dict[str, str]:
    like = {
        "distance": primary.distance.name, "score": primary.score.name,
        "perceptual": PERCEPTUAL, "psnr": "psnr.vs_none",
    }  # fmt: skip
    return {COUNTERPART: like[table.like], FIDELITY: PERCEPTUAL}


def _gap(table: PrintedTable, a: Entry, b: Entry) -> float:
    """By how much a is better as printed."""
    return (a.row.value - b.row.value) * (1 if table.better == "higher" else -1)


def _sign(metric: str) -> int:
    return 1 if metrics()[metric].better == "higher" else -1


def _pair(
    table: PrintedTable, entries: Sequence[Entry], i: int, j: int, of: Mapping[str, str],
    numbers: Sequence[int], world: _World,
) -> Pair:  # fmt: skip
    if _gap(table, entries[i], entries[j]) < 0:
        i, j = j, i
    ours = {}
    for by, name in of.items():
        a, b = (world.readings[numbers[k]][name] for k in (i, j))
        ours[by] = contrast((a, b), (_sign(name), -_sign(name)))
    gap = _gap(table, entries[i], entries[j])
    return Pair(first=entries[i], second=entries[j], gap=gap, ours=ours)


class _Numbers:
    """Our values, of which the larger is better, as observed and of requests drawn again."""

    def __init__(self, world: _World) -> None:
        self.measures = sorted({name for known in world.readings for name in known})
        shape = len(world.keys), len(self.measures)
        # no pair stands on a number that a cell has not
        self.values, self.drawn = np.zeros(shape), np.zeros((RESAMPLES, *shape))
        models, methods = (list(dict.fromkeys(of)) for of in (world.model_of, world.method_of))
        self.model = [models.index(model) for model in world.model_of]
        self.unit = [methods.index(method) for method in world.method_of]
        for number in range(len(models)):
            readings = {
                (n, m): known[name]
                for n, known in enumerate(world.readings)
                for m, name in enumerate(self.measures)
                if self.model[n] == number and name in known
            }
            for (n, m), again in draw_again(readings, number).items():
                sign = _sign(self.measures[m])
                self.values[n, m] = sign * readings[n, m].value
                self.drawn[:, n, m] = sign * again

    def agreements(self, tables: Sequence[Mapping[str, Compared]]) -> dict[str, Agreement]:
        """Of all pairs of tables together, by what is ranked."""
        return {by: self._agreement([row for rows in tables for row in rows[by]]) for by in BY}

    def _agreement(self, rows: Compared) -> Agreement:
        pairs = pairs_of(
            [(i, j, self.measures.index(name), np.sign(gap)) for i, j, name, gap, _ in rows]
        )
        ours, settled = pairs.order_by(self.values), np.array([row[-1] for row in rows], bool)
        product = pairs.order * ours
        methods = len({self.unit[n] for i, j, *_ in rows for n in (i, j)})
        tau = low = high = p = None
        if methods >= FEWEST and not np.isnan(whole := float(tau_b(pairs.order, ours))):
            tau, p = whole, permutation_p(pairs, self.values, self.unit)
            if methods >= FEWEST_FOR_INTERVAL:
                taus = bootstrap(pairs, self.drawn, self.model, self.unit)
                if np.nanmax(taus) > np.nanmin(taus):  # draws that are all alike say nothing
                    low, high = (float(x) for x in np.nanpercentile(taus, (2.5, 97.5)))
        return Agreement(
            tau=tau, low=low, high=high, p=p, methods=methods, pairs=len(rows),
            agree=int(np.sum(product > 0)), disagree=int(np.sum(product < 0)),
            settled=(int(np.sum(settled & (product > 0))), int(np.sum(settled & (product < 0)))),
        )  # fmt: skip
