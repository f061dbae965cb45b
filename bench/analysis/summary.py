"""Records and scores of one run -> one plain row per cell, with intervals: what the report renders.
No torch.

    rows = summarise(records, read_scores(folder))          # records: list of record.json dicts of
        ONE run

Every estimate is a nested dict `{"value", "low", "high", "n", "se"}` (95 % interval; `low`, `high`
and `se` are None where the data carry none). Nothing is ever NaN: a number that cannot be had is
None. Row keys, always all there:

    key, model, family, world, stack, status, reason      as in the record
    methods         list of method names
    label           "" or what a method says its row is for: "noise floor", "ceiling"
    baseline        True for the stack "none"
    baseline_key    key of the `none` cell that deltas and ratios are against, or None (then all of
        those are None)
    num_samples, batch_size, rounds, seed, device, dtype, weights      from record["run"]
    sampling        dict as in the record (steps, guidance, height, width, frames, text_tokens)
    quality         {metric name: entry}, an entry for every metric, but for those that look through
        an extractor only where some cell
                    of the run was scored with it; see below
    timing          {"call_s" | "text_s" | "denoise_s" | "decode_s": estimate | None}: seconds per
        sample. Of none, and of a cell that has
                    no baseline to be timed against, `times.seconds`; of the others none's over
                        their speed-up of that stage, so
                    that no two numbers of a report give two speed-ups, with the interval of the
                        speed-up
    second_judge    estimate | None: the second judge's change of alignment minus the first's (see
        `ditbench.analysis.judges`)
    share           {"text", "denoise", "decode"}: float | None, this cell's measured shares of
        stage time, sum 1
    speedup_call, speedup_denoise
                    estimate | None: time of none / time of this, paired inside rounds, geometric
                        mean
    speedup_interval   "" or what those two intervals count as independent: "rounds"
    speedup_flops   float | None: FLOPs of none / FLOPs of this
    speedup_predicted  float | None: for the whole call; none's denoising share divided by
        speedup_flops, the rest kept
    realised        estimate | None: speedup_denoise / speedup_flops (scope: the denoising loop). 1
        = the saved
                    arithmetic became saved time; the interval is the speed-up's
    realised_call   estimate | None: speedup_call / speedup_predicted (scope: the whole call)
    flops           record["flops"] as it is, or {}
    memory          record["memory"] as it is, or {}
    counters        record["counters"] as it is, or {}
    first_call_s, load_s     float | None
    drift           float | None: none's time per sample across rounds, slowest / fastest - 1; None
        with one round
    drift_bound     the bound `suspect` uses
    warnings        list of sentences: numbers of this row that contradict each other, prompts that
        a text encoder cut
    suspect         True when drift is above the bound: the times of this model in this run are not
        to be trusted

An entry of `quality`:

    value           estimate | None
    delta           estimate | None: cell minus none, same requests and noise; of Fréchet distances
        without their bias in n, so that it is
                    not the difference of the values
    mde             float | None: smallest delta that 80 % of such runs would detect, 2.80 standard
        errors; None where
                    the pairs show no spread to go by
    better, unit    "higher" | "lower", str
    interval        how the intervals were made, in words
    reason          "" or why value is None
    delta_reason    "" or why delta is None
    floor           float | None: what perfect samples would score at this n (Fréchet distances
        only)
    se_jackknife    float | None: the delta's standard error by the block jackknife, as a check
        (Fréchet distances only)
    primary         whether the metric is one of those whose p-values are adjusted
    against_none    whether the value is already a comparison with none
    margin          float | None: how small a delta counts as none, as stated before the run
    level           float | None: where figures draw the cell: the value, and of a statistic of the
        set none's value and the delta
    p, p_equivalent    float | None: of "no difference", and of "no smaller than the margin" (TOST)
    p_holm, p_equivalent_holm    the same adjusted across the model's stacks and the primary metrics
    verdict         "" or better, worse, equivalent, inconclusive, by
        `ditbench.analysis.verdict.RULE`
    parts           {attribute: {"value": estimate, "delta": estimate | None}}
    table           table of the report it stands in: "" the first, "more", or "video"
    n_identical     int | None: samples that equal the un-accelerated one bit by bit (psnr.vs_none
        only)
    extractor       "" or the key of the extractor a network metric looks through (architecture,
        files, preprocessing)
    reference       "" or the sha256 of the reference file it is set against

Metrics: align.shapes_v1 (parts: class; or shape, colour, size, position, background, texture,
motion); fd, mmd, precision and recall.shapes_v1 (value without interval: such statistics are biased
in n or rest on one reference; the delta has one); those that compare with none, as psnr.vs_none
does (the value is already against none, so delta is None, and for the baseline itself the value
too). psnr.vs_none has the part `pooled`: PSNR of the mean squared error of all samples, never above
the mean PSNR that is its value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ditbench.analysis import judges, verdict
from ditbench.analysis.quality import held, quality, reference_of
from ditbench.analysis.set_statistics import Sets
from ditbench.extractors.references import ReferenceSets
from ditbench.metrics import fidelity
from ditbench.metrics.table import Metric, metrics
from ditbench.models import truncation
from ditbench.records.record import MEASURED
from ditbench.records.scores import Scores, read_scores
from ditbench.records.settings import ROW_SETTINGS
from ditbench.statistics import times
from ditbench.statistics.frechet import Reference
from ditbench.statistics.times import DRIFT_BOUND

__all__ = ["DRIFT_BOUND", "Scores", "own_timing", "read_scores", "summarise"]

ALIKE = ("requests_sha256", "model_sha256")
"""What a cell and its baseline must share."""
STAGES = ("text", "denoise", "decode")
TIMED = ("call_s", *(f"{stage}_s" for stage in STAGES))


def summarise(
    records: Sequence[Mapping[str, Any]],
    scores: Mapping[str, Scores],
    references: Mapping[str, Reference] | None = None,
    margins: Mapping[str, float] | None = None,
    sets_of_run: ReferenceSets | None = None,
) -> list[dict[str, Any]]:
    """A row per record, in the order given; keys as this module's docstring says.

    `references` gives the reference by world; left out, those that ditbench carries are read.
    `margins`: by metric, as the run's spec states them; a metric without one is never said to be
    equivalent. `sets_of_run`: the references of the run, for metrics on features of an extractor;
    such a metric has an entry only where some cell was scored with it.
    """
    baselines = {r["model"]: r for r in records if r["stack"] == "none" and r["status"] in MEASURED}
    shown = [
        m
        for m in metrics().values()
        if not m.extractor or any(m.name in s.reasons for s in scores.values())
    ]
    sets = Sets(
        lambda world, family: (
            reference_of(world, family) if references is None else held(references, world)
        ),
        sets_of_run,
    )
    rows = [_row(r, baselines.get(r["model"]), scores, sets, shown, margins or {}) for r in records]
    verdict.judge(rows)
    sets.save()
    return rows


def _row(
    record: Mapping[str, Any],
    none: Mapping[str, Any] | None,
    scores: Mapping[str, Scores],
    sets: Sets,
    shown: Sequence[Metric],
    margins: Mapping[str, float],
) -> dict[str, Any]:
    run = record["run"]
    if (
        none is not None
        and record["status"] in MEASURED
        and any(none["run"].get(a) != run.get(a) for a in ALIKE)
    ):
        none = None  # other requests, or other weights: nothing may be paired
    drift = times.drift(none["timing"]) if none is not None else None
    row = {
        name: record.get(name, "")
        for name in ("key", "model", "family", "world", "stack", "status", "reason")
    }
    row |= {
        "methods": [m["name"] for m in record["methods"]],
        "label": ", ".join(m["label"] for m in record["methods"] if m.get("label")),
        "baseline": record["stack"] == "none",
        "baseline_key": none["key"] if none is not None else None,
    }
    row |= {name: run.get(name) for name in ROW_SETTINGS}
    row |= {
        "sampling": dict(record["sampling"]),
        "quality": {
            m.name: quality(m, record, none, scores, sets, margins.get(m.name)) for m in shown
        },
        "timing": {name: _timing(record, none, name) for name in TIMED},
        "share": shares(record["timing"]),
        "second_judge": None,
    }
    if none is not None and not row["baseline"] and record["status"] in MEASURED:
        disagreement = judges.disagreement(scores.get(record["key"]), scores.get(none["key"]))
        row["second_judge"] = None if disagreement is None else disagreement.as_dict()
    psnr, ssim = (row["quality"][f"{name}.vs_none"]["value"] for name in ("psnr", "ssim"))
    doubt = fidelity.doubtful(psnr and psnr["value"], ssim and ssim["value"])
    row |= {"warnings": [*([doubt] if doubt else []), *truncation.sentences(record)]}
    row |= _speedups(record, none)
    row |= {name: dict(record.get(name) or {}) for name in ("flops", "memory", "counters")}
    row |= {"first_call_s": record.get("first_call_s"), "load_s": record.get("load_s")}
    row |= {
        "drift": drift,
        "drift_bound": DRIFT_BOUND,
        "suspect": drift is not None and drift > DRIFT_BOUND,
    }
    return row


def _timing(
    record: Mapping[str, Any], none: Mapping[str, Any] | None, name: str
) -> dict[str, Any] | None:
    if none is not None and record is not none and (base := times.seconds(none["timing"], name)):
        # the cell's seconds over none's
        ratio = times.speedup(record["timing"], none["timing"], name)
        if ratio is not None:
            return ratio.estimate.divided(1 / base.value).as_dict()
    return own_timing(record)[name]


def own_timing(record: Mapping[str, Any]) -> dict[str, dict[str, Any] | None]:
    """Seconds per sample of each stage by a record's own times alone, as `timing` in a row."""
    found = {name: times.seconds(record["timing"], name) for name in TIMED}
    return {name: estimate.as_dict() if estimate else None for name, estimate in found.items()}


def shares(timing: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Each stage's share of the stages' time over all timed batches; None without times."""
    spent = {stage: sum(t[f"{stage}_s"] for t in timing) for stage in STAGES}
    whole = sum(spent.values())
    return {stage: seconds / whole if whole > 0 else None for stage, seconds in spent.items()}


def predict(share_denoise: float, speedup_flops: float) -> float:
    """Speed-up of the whole call if the denoising loop took time in proportion to its FLOPs and the
    rest stayed (Amdahl 1967).
    """
    return 1 / ((1 - share_denoise) + share_denoise / speedup_flops)


def _speedups(record: Mapping[str, Any], none: Mapping[str, Any] | None) -> dict[str, Any]:
    found: dict[str, Any] = dict.fromkeys(
        (
            "speedup_call",
            "speedup_denoise",
            "speedup_flops",
            "speedup_predicted",
            "realised",
            "realised_call",
        )
    )
    found["speedup_interval"] = ""
    if none is None:
        return found
    call, denoise = (
        times.speedup(none["timing"], record["timing"], f"{scope}_s")
        for scope in ("call", "denoise")
    )
    if call is not None:
        found |= {"speedup_call": call.estimate.as_dict(), "speedup_interval": call.unit}
    if denoise is not None:
        found["speedup_denoise"] = denoise.estimate.as_dict()
    mine, theirs = (r["flops"].get("flops") if r["flops"] else None for r in (record, none))
    if not mine or not theirs:
        return found
    found["speedup_flops"] = ratio = theirs / mine
    if denoise is not None:
        found["realised"] = denoise.estimate.divided(ratio).as_dict()
    share = shares(none["timing"])["denoise"]
    if share is not None:
        found["speedup_predicted"] = predicted = predict(share, ratio)
        if call is not None:
            found["realised_call"] = call.estimate.divided(predicted).as_dict()
    return found
