"""Records and scores of one run -> one plain row per cell, with intervals: what the report renders. No torch.

    rows = summarise(records, read_scores(folder))          # records: list of record.json dicts of ONE run

Every estimate is a nested dict `{"value", "low", "high", "n", "se"}` (95 % interval; `low`, `high` and `se` are None
where the data carry none). Nothing is ever NaN: a number that cannot be had is None. Row keys, always all there:

    key, model, family, world, stack, status, reason      as in the record
    methods         list of method names
    label           "" or what a method says its row is for: "noise floor", "ceiling"
    baseline        True for the stack "none"
    baseline_key    key of the `none` cell that deltas and ratios are against, or None (then all of those are None)
    num_samples, batch_size, rounds, seed, device, dtype, weights      from record["run"]
    sampling        dict as in the record (steps, guidance, height, width, frames, text_tokens)
    quality         {metric name: entry}, an entry for every metric; see below
    timing          {"call_s" | "text_s" | "denoise_s" | "decode_s": estimate | None}: seconds per sample, median over
                    timed batches
    share           {"text", "denoise", "decode"}: float | None, this cell's measured shares of stage time, sum 1
    speedup_call, speedup_denoise
                    estimate | None: time of none / time of this, paired inside rounds, geometric mean
    speedup_interval   "" or what those two intervals count as independent: "rounds" or "batches within rounds"
    speedup_flops   float | None: FLOPs of none / FLOPs of this
    speedup_predicted  float | None: for the whole call; none's denoising share divided by speedup_flops, the rest kept
    realised        estimate | None: speedup_denoise / speedup_flops (scope: the denoising loop). 1 = the saved
                    arithmetic became saved time; the interval is the speed-up's
    realised_call   estimate | None: speedup_call / speedup_predicted (scope: the whole call)
    flops           record["flops"] as it is, or {}
    memory          record["memory"] as it is, or {}
    counters        record["counters"] as it is, or {}
    first_call_s, load_s     float | None
    drift           float | None: none's time per sample across rounds, slowest / fastest - 1; None with one round
    drift_bound     the bound `suspect` uses
    warnings        list of sentences: numbers of this row that contradict each other
    suspect         True when drift is above the bound: the times of this model in this run are not to be trusted

An entry of `quality`:

    value           estimate | None
    delta           estimate | None: cell minus none, same requests and noise
    mde             float | None: smallest delta that 80 % of such runs would detect, 2.80 standard errors; None where
                    the pairs show no spread to go by
    better, unit    "higher" | "lower", str
    interval        how the intervals were made, in words
    reason          "" or why value is None
    delta_reason    "" or why delta is None
    floor           float | None: what perfect samples would score at this n (Fréchet distances only)
    se_jackknife    float | None: the delta's standard error by the block jackknife, as a check (Fréchet distances only)
    primary         whether the metric is one of those whose p-values are adjusted
    against_none    whether the value is already a comparison with none
    margin          float | None: how small a delta counts as none, as stated before the run
    p, p_equivalent    float | None: of "no difference" (McNemar's exact test for binary scores, else t), and of "no smaller than the
                    margin" (TOST); p_holm, p_equivalent_holm    the same adjusted across the model's stacks and the primary metrics
    verdict         "" or better, worse, equivalent, inconclusive, by `ditbench.verdict.RULE`
    parts           {attribute: {"value": estimate, "delta": estimate | None}}
    table           table of the report it stands in: "" the first, "more", or "video"
    n_identical     int | None: samples that equal the un-accelerated one bit by bit (psnr.vs_none only)

Metrics: align.shapes_v1 (parts: class; or shape, colour, size, position, background, texture, motion); fd, mmd, precision and
recall.shapes_v1 (value without interval: such statistics are biased in n or rest on one reference; the delta has one); those that compare
with none, as psnr.vs_none does (the value is already against none, so delta is None, and for the baseline itself the value too).
psnr.vs_none has the part `pooled`: PSNR of the mean squared error of all samples, never above the mean PSNR that is its value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib import import_module
from typing import Any

from ditbench import combined, statistics, verdict
from ditbench.distances import Reference
from ditbench.metrics import Metric, fidelity, metrics
from ditbench.metrics.stored import Scores, read_scores
from ditbench.readings import contrast
from ditbench.sets import CHECKED, STATISTICS, Sets
from ditbench.statistics import FEWEST_GROUPS, Estimate

__all__ = ["Scores", "read_scores", "summarise"]

DRIFT_BOUND = 0.10
"""A baseline whose slowest round took over 10 % longer than its fastest makes the times of its model suspect."""
STAGES = ("text", "denoise", "decode")
MEASURED = ("ok", "inert")
ASKED = "scored only when asked for: score RUN --metrics NAME"


def summarise(
    records: Sequence[Mapping[str, Any]],
    scores: Mapping[str, Scores],
    references: Mapping[str, Reference] | None = None,
    margins: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """A row per record, in the order given; keys as this module's docstring says.

    `references` gives the reference by world; left out, those that ditbench carries are read. `margins`: by metric, as the run's
    spec states them; a metric without one is never said to be equivalent.
    """
    baselines = {r["model"]: r for r in records if r["stack"] == "none" and r["status"] in MEASURED}
    sets = Sets(lambda world, family: reference_of(world, family) if references is None else _held(references, world))
    rows = [_row(r, baselines.get(r["model"]), scores, sets, margins or {}) for r in records]
    verdict.judge(rows)
    return rows


def _row(
    record: Mapping[str, Any],
    none: Mapping[str, Any] | None,
    scores: Mapping[str, Scores],
    sets: Sets,
    margins: Mapping[str, float],
) -> dict[str, Any]:
    run = record["run"]
    if (
        none is not None
        and none["run"].get("requests_sha256") != run.get("requests_sha256")
        and record["status"] in MEASURED
    ):
        none = None  # other requests: nothing may be paired
    drift = statistics.drift(none["timing"]) if none is not None else None
    row = {name: record.get(name, "") for name in ("key", "model", "family", "world", "stack", "status", "reason")}
    row |= {
        "methods": [m["name"] for m in record["methods"]],
        "label": ", ".join(m["label"] for m in record["methods"] if m.get("label")),
        "baseline": record["stack"] == "none",
        "baseline_key": none["key"] if none is not None else None,
    }
    row |= {
        name: run.get(name) for name in ("num_samples", "batch_size", "rounds", "seed", "device", "dtype", "weights")
    }
    row |= {
        "sampling": dict(record["sampling"]),
        "quality": {m.name: _quality(m, record, none, scores, sets, margins.get(m.name)) for m in metrics().values()},
        "timing": {name: _timing(record, name) for name in ("call_s", *(f"{stage}_s" for stage in STAGES))},
        "share": shares(record["timing"]),
    }
    psnr, ssim = (row["quality"][f"{name}.vs_none"]["value"] for name in ("psnr", "ssim"))
    doubt = fidelity.doubtful(psnr and psnr["value"], ssim and ssim["value"])
    row |= {"warnings": [doubt] if doubt else []}
    row |= _speedups(record, none)
    row |= {name: dict(record.get(name) or {}) for name in ("flops", "memory", "counters")}
    row |= {"first_call_s": record.get("first_call_s"), "load_s": record.get("load_s")}
    row |= {"drift": drift, "drift_bound": DRIFT_BOUND, "suspect": drift is not None and drift > DRIFT_BOUND}
    return row


def _quality(
    metric: Metric, record: Mapping[str, Any], none: Mapping[str, Any] | None, scores: Mapping[str, Scores],
    sets: Sets, margin: float | None,
) -> dict[str, Any]:  # fmt: skip
    entry: dict[str, Any] = {
        "value": None, "delta": None, "mde": None, "better": metric.better, "unit": metric.unit, "interval": "",
        "reason": "", "delta_reason": "", "floor": None, "se_jackknife": None, "primary": metric.primary,
        "against_none": metric.against_none, "margin": margin,
        "p": None, "p_equivalent": None, "p_holm": None, "p_equivalent_holm": None, "verdict": "", "parts": {},
        "table": metric.table, "n_identical": None,
    }  # fmt: skip
    mine = scores.get(record["key"])
    entry["reason"] = entry["delta_reason"] = _missing(metric, record, mine)
    if mine is None or entry["reason"]:
        return entry
    theirs = scores.get(none["key"]) if none is not None else None
    if metric.against_none:
        entry["delta_reason"] = "the value is already against none"
    elif record["stack"] == "none":
        entry["delta_reason"] = "this is the baseline itself"
    elif theirs is None or none is None or _missing(metric, none, theirs):
        entry["delta_reason"] = "the baseline `none` has no scores in this run"
    against = None if entry["delta_reason"] else theirs
    if combined.of_sets(metric):
        delta = combined.fill(
            entry, metric, mine, theirs if metric.against_none else against, record["stack"] == "none"
        )
    elif metric.statistic:
        delta = _statistic(entry, metric, record["world"], mine, against, sets)
    else:
        delta = _means(entry, metric, mine, against)
    if delta is not None and delta.se is not None:
        entry["mde"] = statistics.detectable(delta.se) or None
        if entry["p"] is None:
            entry["p"] = verdict.difference_p(delta)
        entry["p_equivalent"] = None if margin is None else verdict.equivalence_p(delta, margin)
    return entry


def _missing(metric: Metric, record: Mapping[str, Any], scores: Scores | None) -> str:
    if record["status"] not in MEASURED:
        return f"the cell is {record['status']}"
    if scores is None:
        return "not scored yet"
    return str(scores.reasons.get(metric.name, ASKED if metric.asked else "not scored yet"))


def _means(entry: dict[str, Any], metric: Metric, mine: Scores, against: Scores | None) -> Estimate | None:
    """Fill in the means of a metric and its parts; the difference of the whole metric."""
    names = [metric.name] + sorted(name for name in mine.arrays if name.startswith(metric.name + "."))
    found = None
    for name in names:
        values, group = combined.own(name, mine)
        into = (
            entry
            if name == metric.name
            else entry["parts"].setdefault(name.removeprefix(metric.name + "."), {"delta": None})
        )
        value = statistics.mean(values, group, bounds=metric.bounds)
        binary = value.n == len(values) and metric.bounds == (0, 1) and verdict.is_binary(values)
        if binary:
            low, high = statistics.wilson(int(values.sum()), len(values))
            value = replace(value, low=low, high=high)
        into["value"] = value.as_dict()
        if against is not None:
            values, others, group = combined.both(name, mine, against)
            if not len(values):
                continue
            delta = statistics.delta(values, others, group, bounds=metric.bounds)
            into["delta"] = delta.as_dict()
            if name == metric.name:
                found = delta
                if binary and delta.n > 1:
                    entry["p"] = verdict.mcnemar(values, others)
        if name == metric.name and value.n > 1:
            how = "BCa bootstrap" if value.n >= FEWEST_GROUPS else "Student's t"
            entry["interval"] = f"{how} over {value.n} prompts" + (
                "; of the value Wilson's, p by McNemar's exact test" if binary else ""
            )
    if metric.name == "psnr.vs_none":
        entry |= combined.pooled(mine)
    return found


def _statistic(
    entry: dict[str, Any], metric: Metric, world: str, mine: Scores, against: Scores | None, sets: Sets
) -> Estimate | None:
    """Fill in a statistic of the whole set; its difference."""
    statistic, features, group = STATISTICS[metric.statistic], mine.arrays[metric.features], mine.arrays["group"]
    try:
        reading, held = sets.read(metric, world, mine), sets.find(world, metric.family)
    except ValueError as error:
        entry["reason"] = entry["delta_reason"] = str(error)
        return None
    entry["value"] = Estimate(value=reading.value, low=None, high=None, n=len(features), se=None).as_dict()
    entry["floor"] = statistic.floor(len(features), held) if statistic.floor else None
    if against is None:
        return None
    delta = contrast([reading, sets.read(metric, world, against)], [1, -1])
    entry["delta"] = delta.as_dict()
    entry["interval"] = f"{statistic.interval.format(n=delta.n)}, at n = {len(features)}"
    if statistic.check and features.shape[1] <= CHECKED and delta.n >= FEWEST_GROUPS:
        tables = [features, against.arrays[metric.features]]
        check = statistic.check(tables, [1, -1], held, group)
        entry["se_jackknife"] = check.se
        if len(features) <= 2 * features.shape[1] and check.se is not None and check.se > (delta.se or 0):
            low, high = statistics.student(
                delta.value, check.se, check.n - 1
            )  # so near its rank the influence is too small
            delta = replace(check, value=delta.value, low=low, high=high)
            entry["delta"] = delta.as_dict()
            entry["interval"] = f"delete-block jackknife over {delta.n} blocks of prompts, at n = {len(features)}"
    return delta


def _held(references: Mapping[str, Reference], world: str) -> Reference:
    if world not in references:
        raise ValueError(f"no reference for the world {world}")
    return references[world]


@cache
def reference_of(world: str, family: str = "frechet") -> Reference:
    """The reference a metric family has for a world, read once; ValueError when it is missing or damaged."""
    found: Reference = import_module(f"ditbench.metrics.{family}").reference(world)
    return found


def _timing(record: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    seconds = [t[name] / t["size"] for t in record["timing"]]
    return statistics.median(seconds).as_dict() if seconds else None


def shares(timing: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Each stage's share of the stages' time over all timed batches; None without times."""
    spent = {stage: sum(t[f"{stage}_s"] for t in timing) for stage in STAGES}
    whole = sum(spent.values())
    return {stage: seconds / whole if whole > 0 else None for stage, seconds in spent.items()}


def predict(share_denoise: float, speedup_flops: float) -> float:
    """Speed-up of the whole call if the denoising loop took time in proportion to its FLOPs and the rest stayed
    (Amdahl 1967).
    """
    return 1 / ((1 - share_denoise) + share_denoise / speedup_flops)


def _speedups(record: Mapping[str, Any], none: Mapping[str, Any] | None) -> dict[str, Any]:
    found: dict[str, Any] = dict.fromkeys(
        ("speedup_call", "speedup_denoise", "speedup_flops", "speedup_predicted", "realised", "realised_call")
    )
    found["speedup_interval"] = ""
    if none is None:
        return found
    call, denoise = (
        statistics.speedup(none["timing"], record["timing"], f"{scope}_s") for scope in ("call", "denoise")
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
