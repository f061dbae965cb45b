"""Records and scores of one run -> one plain row per cell, with intervals: what the report renders. No torch.

    rows = summarise(records, read_scores(folder))          # records: list of record.json dicts of ONE run

Every estimate is a nested dict `{"value", "low", "high", "n", "se"}` (95 % interval; `low`, `high` and `se` are None
where the data carry none). Nothing is ever NaN: a number that cannot be had is None. Row keys, always all there:

    key, model, family, world, stack, status, reason      as in the record
    methods         list of method names
    baseline        True for the stack "none"
    baseline_key    key of the `none` cell that deltas and ratios are against, or None (then all of those are None)
    num_samples, batch_size, rounds, seed, device, dtype, weights      from record["run"]
    sampling        dict as in the record (steps, guidance, height, width, frames, text_tokens)
    quality         {metric name: entry}, an entry for every metric, but for those that look through an extractor only where some cell
                    of the run was scored with it; see below
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
    suspect         True when drift is above the bound: the times of this model in this run are not to be trusted

An entry of `quality`:

    value           estimate | None
    delta           estimate | None: cell minus none, same requests and noise
    mde             float | None: smallest delta that 80 % of such runs would detect, 2.80 standard errors
    better, unit    "higher" | "lower", str
    interval        how the intervals were made, in words
    reason          "" or why value is None
    delta_reason    "" or why delta is None
    floor           float | None: what perfect samples would score at this n (Fréchet distances only)
    parts           {attribute: {"value": estimate, "delta": estimate | None}}
    extractor       "" or the key of the extractor a network metric looks through (architecture, files, preprocessing)
    reference       "" or the sha256 of the reference file it is set against

Metrics: align.shapes_v1 (parts: class; or shape, colour, size, position, background, texture, motion); fd.shapes_v1
(value without interval, because a Fréchet distance is biased in n; the delta has one); perceptual.shapes_v1, psnr.vs_none and ssim.vs_none
(the value is already against none, so delta is None, and for the baseline itself the value too).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from ditbench import statistics
from ditbench.distances import Reference, floor, frechet, frechet_delta
from ditbench.extractors import find
from ditbench.metrics import Metric, metrics
from ditbench.metrics.frechet import reference
from ditbench.metrics.stored import Scores, read_scores
from ditbench.references import Told
from ditbench.statistics import FEWEST_GROUPS, Estimate

__all__ = ["Scores", "read_scores", "summarise"]

DRIFT_BOUND = 0.10
"""A baseline whose slowest round took over 10 % longer than its fastest makes the times of its model suspect."""
FLOORED = 256
"""Features up to which perfection at this n is simulated in every report: beyond, it costs minutes."""
STAGES = ("text", "denoise", "decode")
MEASURED = ("ok", "inert")


def summarise(
    records: Sequence[Mapping[str, Any]],
    scores: Mapping[str, Scores],
    references: Mapping[str, Reference] | None = None,
    *,
    told: Told | None = None,
) -> list[dict[str, Any]]:
    """A row per record, in the order given; keys as this module's docstring says.

    `references` gives the Fréchet reference by world; left out, those that ditbench carries are read. `told`: those the run was told, for
    metrics that look through an extractor; such a metric has an entry only where some cell was scored with it.
    """
    baselines = {r["model"]: r for r in records if r["stack"] == "none" and r["status"] in MEASURED}
    shown = [m for m in metrics().values() if not m.extractor or any(m.name in s.reasons for s in scores.values())]
    return [_row(r, baselines.get(r["model"]), scores, references, shown, told) for r in records]


def _row(
    record: Mapping[str, Any],
    none: Mapping[str, Any] | None,
    scores: Mapping[str, Scores],
    references: Mapping[str, Reference] | None,
    shown: Sequence[Metric],
    told: Told | None,
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
        "baseline": record["stack"] == "none",
        "baseline_key": none["key"] if none is not None else None,
    }
    row |= {
        name: run.get(name) for name in ("num_samples", "batch_size", "rounds", "seed", "device", "dtype", "weights")
    }
    row |= {
        "sampling": dict(record["sampling"]),
        "quality": {m.name: _quality(m, record, none, scores, references, told) for m in shown},
        "timing": {name: _timing(record, name) for name in ("call_s", *(f"{stage}_s" for stage in STAGES))},
        "share": shares(record["timing"]),
    }
    row |= _speedups(record, none)
    row |= {name: dict(record.get(name) or {}) for name in ("flops", "memory", "counters")}
    row |= {"first_call_s": record.get("first_call_s"), "load_s": record.get("load_s")}
    row |= {"drift": drift, "drift_bound": DRIFT_BOUND, "suspect": drift is not None and drift > DRIFT_BOUND}
    return row


def _quality(
    metric: Metric, record: Mapping[str, Any], none: Mapping[str, Any] | None, scores: Mapping[str, Scores],
    references: Mapping[str, Reference] | None, told: Told | None,
) -> dict[str, Any]:  # fmt: skip
    entry: dict[str, Any] = {
        "value": None, "delta": None, "mde": None, "better": metric.better, "unit": metric.unit, "interval": "",
        "reason": "", "delta_reason": "", "floor": None, "parts": {}, "extractor": "", "reference": "",
    }  # fmt: skip
    if metric.extractor:
        entry["extractor"] = find(metric.extractor, told.table if told else None).key
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
    if metric.statistic == "frechet":
        _distance(entry, metric, record, mine, against, references, told)
    elif metric.statistic:
        entry["reason"] = entry["delta_reason"] = f"the statistic {metric.statistic} is not built yet"
    else:
        _means(entry, metric, mine, against)
    if entry["delta"] is not None and entry["delta"]["se"] is not None:
        entry["mde"] = statistics.detectable(entry["delta"]["se"])
    return entry


def _missing(metric: Metric, record: Mapping[str, Any], scores: Scores | None) -> str:
    if record["status"] not in MEASURED:
        return f"the cell is {record['status']}"
    if scores is None:
        return "not scored yet"
    return str(scores.reasons.get(metric.name, "not scored yet"))


def _means(entry: dict[str, Any], metric: Metric, mine: Scores, against: Scores | None) -> None:
    names = [metric.name] + sorted(name for name in mine.arrays if name.startswith(metric.name + "."))
    for name in names:
        values, group = mine.arrays[name], mine.arrays["group"]
        into = (
            entry
            if name == metric.name
            else entry["parts"].setdefault(name.removeprefix(metric.name + "."), {"delta": None})
        )
        value = statistics.mean(values, group, bounds=metric.bounds)
        into["value"] = value.as_dict()
        if against is not None:
            into["delta"] = statistics.delta(values, against.arrays[name], group, bounds=metric.bounds).as_dict()
    how = "BCa bootstrap" if entry["value"]["n"] >= FEWEST_GROUPS else "Student's t"
    entry["interval"] = f"{how} over {entry['value']['n']} prompts" if entry["value"]["n"] > 1 else ""


def _distance(
    entry: dict[str, Any], metric: Metric, record: Mapping[str, Any], mine: Scores, against: Scores | None,
    references: Mapping[str, Reference] | None, told: Told | None,
) -> None:  # fmt: skip
    features, group, world = mine.arrays[metric.features], mine.arrays["group"], record["world"]
    try:
        if metric.extractor:
            told = told or Told()
            held = told.reference(metric, record["model"])
            entry["reference"] = told.pointer(metric, record["model"])["sha256"]
        else:
            held = reference_of(world) if references is None else references[world]
    except (ValueError, KeyError) as error:
        entry["reason"] = entry["delta_reason"] = (
            str(error) if isinstance(error, ValueError) else f"no reference for the world {world}"
        )
        return
    if len(features) < 2:
        entry["reason"] = entry["delta_reason"] = "a Fréchet distance needs at least two samples"
        return
    value = frechet(features, held)
    entry["value"] = Estimate(value=value, low=None, high=None, n=len(features), se=None).as_dict()
    entry["floor"] = floor(len(features), held) if features.shape[1] <= FLOORED else None
    if against is not None:
        entry["delta"] = frechet_delta(features, against.arrays[metric.features], held, group).as_dict()
        entry["interval"] = f"influence function over {entry['delta']['n']} prompts, at n = {len(features)}"


@cache
def reference_of(world: str) -> Reference:
    """The reference that ditbench carries for a world, read once; ValueError when it is missing or damaged."""
    return reference(world)


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
