"""What the report renders: a row per cell, with an entry for every quality metric. Plain JSON.

Every key is always there, and a number that is not available is None, never NaN. Changes and ratios
are against the baseline, the cell of the stack `none`, on the same requests and noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from ditbench.statistics.estimates import Interval

__all__ = [
    "Interval",
    "Part",
    "QualityEntry",
    "Record",
    "Row",
    "Scored",
    "Speedups",
    "Verdict",
    "unscored",
]

Record = Mapping[str, Any]
"""A cell's record.json (`ditbench.records.record`)."""


class Part(TypedDict):
    """A part of a metric, such as the alignment of colours alone."""

    value: Interval | None
    delta: Interval | None
    """Cell minus baseline."""


class Scored(TypedDict):
    """What the samples of one cell give for one metric."""

    value: Interval | None
    """Without an interval for statistics of the whole set: they are biased in n, or rest on one
    reference."""
    delta: Interval | None
    """Cell minus baseline; of Fréchet distances without their bias in n, so that it is not the
    difference of the values. None where the value is a comparison with the baseline already."""
    level: float | None
    """Where figures draw the cell: the value, and of a statistic of the set the baseline's value
    plus the change."""
    floor: float | None
    """What perfect samples would score at this n (Fréchet distances only)."""
    se_jackknife: float | None
    """Standard error of the change by the block jackknife, as a check (Fréchet distances only)."""
    interval: str
    """How the intervals were made, in words."""
    reason: str
    """Why `value` is None, or ""."""
    delta_reason: str
    """Why `delta` is None, or ""."""
    parts: dict[str, Part]
    """By attribute; of psnr.vs_none `pooled`: PSNR of the mean squared error of all samples, never
    above the mean PSNR that is the value."""
    n_identical: int | None
    """Samples that equal the baseline's bit by bit (psnr.vs_none only)."""
    reference: str
    """sha256 of the reference file the samples are compared with, or ""."""


def unscored(reason: str = "", delta_reason: str = "") -> Scored:
    """No numbers, and why."""
    return {
        "value": None, "delta": None, "level": None, "floor": None, "se_jackknife": None,
        "interval": "", "reason": reason, "delta_reason": delta_reason or reason, "parts": {},
        "n_identical": None, "reference": "",
    }  # fmt: skip


class Verdict(TypedDict):
    """What a change of a metric means."""

    mde: float | None
    """Smallest change that 80 % of such runs would detect, 2.80 standard errors; None where the
    pairs have no spread to estimate it from."""
    p: float | None
    """Of "no difference"."""
    p_equivalent: float | None
    """Of "a difference no smaller than the margin" (two one-sided tests)."""
    p_holm: float | None
    """`p`, adjusted across the model's stacks and the primary metrics."""
    p_equivalent_holm: float | None
    """`p_equivalent`, adjusted in the same way."""
    verdict: str
    """A word of `ditbench.analysis.verdict.WORDS`, by its rule, or ""."""
    frontier: float | None
    """Probability that no other row of the model is both faster and better (primary metrics
    only)."""


class QualityEntry(Scored, Verdict):
    """One metric of one cell."""

    better: str
    """"higher", "lower" or "neither"."""
    unit: str
    primary: bool
    """Whether the p-values of the metric are adjusted for the number of stacks tried."""
    against_none: bool
    """Whether the value is a comparison with the baseline already."""
    margin: float | None
    """How small a change counts as none, as stated before the run."""
    table: str
    """Table of the report it stands in: "" the first, "more", or "video"."""
    extractor: str
    """Key of the extractor whose features it is computed on (architecture, files, preprocessing),
    or ""."""


class Speedups(TypedDict):
    """Ratios to the baseline. Intervals are over rounds: times are paired inside each."""

    speedup_call: Interval | None
    """Time of the baseline / time of this, the whole pipeline call; geometric mean."""
    speedup_denoise: Interval | None
    """The same, sampler loop only."""
    speedup_over_compile: Interval | None
    """Of a stack that is compiled: time of what compiles it, alone / time of this, the whole call;
    None for others, and where that was not timed beside it."""
    speedup_interval: str
    """What the two intervals count as independent: "rounds", or ""."""
    speedup_flops: float | None
    """FLOPs of the baseline / FLOPs of this."""
    speedup_predicted: float | None
    """Of the whole call: the baseline's share of denoising divided by `speedup_flops`, the rest
    unchanged."""
    realised: Interval | None
    """`speedup_denoise` / `speedup_flops`; 1 where the saved arithmetic became saved time."""
    realised_call: Interval | None
    """`speedup_call` / `speedup_predicted`."""


class Row(Speedups):
    """One cell of a run."""

    key: str
    model: str
    family: str
    world: str
    """The synthetic dataset the model was trained on, or ""."""
    stack: str
    status: str
    reason: str
    """Why the status is not "ok", or ""."""
    methods: list[str]
    """Names of the methods."""
    label: str
    """What the row is for where it is not to be judged as a method: "noise floor", "ceiling"."""
    baseline: bool
    """Whether this is the stack `none`."""
    baseline_key: str | None
    """Key of the baseline; None where there is none, and then there are no changes and ratios."""
    num_samples: int
    batch_size: int
    rounds: int
    seed: int
    device: str
    dtype: str
    weights: str
    sampling: dict[str, Any]
    """As in the record: steps, guidance, height, width, frames, text_tokens."""
    quality: dict[str, QualityEntry]
    """By metric; of metrics on features of an extractor only those that some cell of the run was
    scored with."""
    timing: dict[str, Interval | None]
    """Seconds per sample by stage: call_s, text_s, denoise_s, decode_s. Of the baseline, and of a
    cell that has none, as measured; else the baseline's over the speed-up of that stage, so that no
    two numbers of a report give two speed-ups, with the interval of the speed-up."""
    share: dict[str, float | None]
    """Measured shares of the stages text, denoise and decode; their sum is 1."""
    second_judge: Interval | None
    """The second judge's change of alignment minus the first's (`ditbench.analysis.judges`)."""
    flops: dict[str, Any]
    """As in the record, or empty; so are `memory`, `counters` and `operations`."""
    memory: dict[str, Any]
    counters: dict[str, Any]
    operations: dict[str, Any]
    first_call_s: float | None
    compile_s: float | None
    """Seconds that the first calls took longer for being compiled; None where nothing is."""
    load_s: float | None
    drift: float | None
    """Time of the baseline across rounds, slowest / fastest - 1; None with one round."""
    drift_bound: float
    suspect: bool
    """Whether `drift` is above `drift_bound` or not known (one round), or the GPU was slowed down or
    shared: the times are unreliable."""
    warnings: list[str]
    """Sentences: numbers of this row that contradict each other, prompts that a text encoder
    cut."""
