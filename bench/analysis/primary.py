"""Which metrics a model is judged by: of those that the table of metrics calls primary, the first
mean of per-sample scores and the first statistic of the set that the model's cells were scored
with. No torch.

The models of the synthetic dataset have alignment and Fréchet distance; a full-size model has
ImageReward or a CLIP score, and FID or another distance to a reference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ditbench.analysis.rows import Record, Row
from ditbench.metrics.table import Metric, metrics
from ditbench.records.scores import SHAPE, Scores


@dataclass(frozen=True, kw_only=True)
class Primary:
    """The primary metrics of a model."""

    score: Metric
    """Mean of per-sample scores: what combinations and their controls are judged by."""
    distance: Metric
    """Statistic of the whole set."""

    @property
    def names(self) -> tuple[str, str]:
        """Of both."""
        return self.score.name, self.distance.name


def primary_metrics(scores: Iterable[Scores] = ()) -> Primary:
    """Of a model with these scores; without any, those of the synthetic dataset."""
    arrays = {name.removesuffix(SHAPE) for cell in scores for name in cell.arrays}
    candidates = [metric for metric in metrics().values() if metric.primary]

    def first(of_set: bool) -> Metric:
        kind = [metric for metric in candidates if bool(metric.statistic) == of_set]
        return next((m for m in kind if (m.features or m.name) in arrays), kind[0])

    return Primary(score=first(False), distance=first(True))


def by_model(records: Sequence[Record], scores: Mapping[str, Scores]) -> dict[str, Primary]:
    """The primary metrics of every model of a run."""
    return {
        model: primary_metrics(
            scores[r["key"]] for r in records if r["model"] == model and r["key"] in scores
        )
        for model in dict.fromkeys(r["model"] for r in records)
    }


def primary_of(rows: Sequence[Row]) -> Primary:
    """The primary metrics of the model that rows are of."""
    table = metrics()
    names = [name for name, entry in rows[0]["quality"].items() if entry["primary"]] if rows else []
    known = [table[name] for name in names]
    usual = primary_metrics()
    return Primary(
        score=next((m for m in known if not m.statistic), usual.score),
        distance=next((m for m in known if m.statistic), usual.distance),
    )
