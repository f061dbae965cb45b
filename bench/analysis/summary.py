"""Records and scores of one run -> one plain row per cell, with intervals: what the report renders
(see `ditbench.analysis.rows`). No torch.

    rows = summarise(records, read_scores(folder))  # records: the record.json of ONE run
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ditbench.analysis import host, judges, verdict
from ditbench.analysis.primary import Primary, by_model
from ditbench.analysis.quality import quality
from ditbench.analysis.rows import Interval, Record, Row, Speedups
from ditbench.extractors.references import ReferenceSets
from ditbench.method.traits import Stage
from ditbench.metrics import fidelity
from ditbench.metrics.set_statistics import Sets, sets_of
from ditbench.metrics.table import Metric, metrics
from ditbench.models import truncation
from ditbench.records.record import MEASURED, differing_beside
from ditbench.records.scores import Scores, read_scores
from ditbench.statistics import times
from ditbench.statistics.frechet import Reference
from ditbench.statistics.times import DRIFT_BOUND

__all__ = ["DRIFT_BOUND", "Scores", "own_timing", "read_scores", "summarise"]

ALIKE = ("requests_sha256", "model_sha256")
"""What a cell and its baseline must share."""
COMPILES = Stage.COMPILE.name.lower()
"""The stage of a method that compiles, as a record has it."""
STAGES = ("text", "denoise", "decode")
TIMED = ("call_s", *(f"{stage}_s" for stage in STAGES))


def summarise(
    records: Sequence[Record],
    scores: Mapping[str, Scores],
    references: Mapping[str, Reference] | None = None,
    margins: Mapping[str, float] | None = None,
    sets_of_run: ReferenceSets | None = None,
) -> list[Row]:
    """A row per record, in the order given.

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
    sets = sets_of(references, sets_of_run)
    primary = by_model(records, scores)
    rows: list[Row] = [
        {
            **_row(
                r, baselines.get(r["model"]), scores, sets, shown, margins or {},
                primary[r["model"]],
            ),
            "speedup_over_compile": _over_compile(r, records),
        }
        for r in records
    ]  # fmt: skip
    sets.save()
    return verdict.judge(rows)


def _row(
    record: Record,
    none: Record | None,
    scores: Mapping[str, Scores],
    sets: Sets,
    shown: Sequence[Metric],
    margins: Mapping[str, float],
    primary: Primary,
) -> Row:
    run, measured = record["run"], record["status"] in MEASURED
    if none is not None and measured and any(none["run"].get(a) != run.get(a) for a in ALIKE):
        none = None  # other requests, or other weights: nothing may be paired
    entries = {
        m.name: quality(
            m, record, none, scores, sets, margins.get(m.name), primary=m.name in primary.names
        )
        for m in shown
    }
    psnr, ssim = (entries[f"{name}.vs_none"]["value"] for name in ("psnr", "ssim"))
    doubt = fidelity.doubtful(psnr and psnr["value"], ssim and ssim["value"])
    disagreement = None
    if none is not None and record["stack"] != "none" and measured:
        disagreement = judges.disagreement(scores.get(record["key"]), scores.get(none["key"]))
    drift = times.drift(none["timing"], record["timing"]) if none is not None else None
    doubted = list(dict.fromkeys(host.doubts(record) + (host.doubts(none, record) if none else [])))
    return {
        "key": record["key"],
        "model": record["model"],
        "family": record["family"],
        "world": record.get("world", ""),
        "stack": record["stack"],
        "status": record["status"],
        "reason": record["reason"],
        "methods": [m["name"] for m in record["methods"]],
        "label": ", ".join(m["label"] for m in record["methods"] if m.get("label")),
        "baseline": record["stack"] == "none",
        "baseline_key": none["key"] if none is not None else None,
        "num_samples": run.get("num_samples"),
        "batch_size": run.get("batch_size"),
        "rounds": run.get("rounds"),
        "seed": run.get("seed"),
        "device": run.get("device"),
        "dtype": run.get("dtype"),
        "weights": run.get("weights"),
        "sampling": dict(record["sampling"]),
        "quality": entries,
        "timing": {name: _timing(record, none, name) for name in TIMED},
        "share": shares(record["timing"]),
        "second_judge": disagreement.as_dict() if disagreement else None,
        "warnings": [
            *([doubt] if doubt else []),
            *truncation.sentences(record),
            *_cautions(record),
            *_compiled_later(record),
            *doubted,
            *_left(record),
        ],
        **_speedups(record, none),
        "flops": dict(record.get("flops") or {}),
        "memory": dict(record.get("memory") or {}),
        "counters": dict(record.get("counters") or {}),
        "operations": dict(record.get("operations") or {}),
        "first_call_s": record.get("first_call_s"),
        "compile_s": (record.get("compilation") or {}).get("seconds"),
        "load_s": record.get("load_s"),
        "drift": drift,
        "drift_bound": DRIFT_BOUND,
        "suspect": bool(doubted)
        or bool(none is not None and record["timing"] and drift is None)
        or (drift is not None and drift > DRIFT_BOUND),
    }


def _cautions(record: Record) -> list[str]:
    """What a method says of every row of its own: its note `caution`, with its name in a stack."""
    notes = record.get("notes") or {}
    several = len(record["methods"]) > 1
    return [
        f"{name.removesuffix('.caution')}: {text}" if several else str(text)
        for name, text in notes.items()
        if name.endswith(".caution")
    ]


def _compiled_later(record: Record) -> list[str]:
    """That timed calls have compiling in them, as a sentence."""
    later = (record.get("compilation") or {}).get("later_graphs", 0)
    graphs = "1 graph was" if later == 1 else f"{later} graphs were"
    return (
        [f"{graphs} compiled after the warm-up: its times may have that in them"] if later else []
    )


def _over_compile(record: Record, records: Sequence[Record]) -> Interval | None:
    """The speed-up over what compiles the stack, alone; None where there is no such stack, or where
    it was timed elsewhere."""
    compiling = [m for m in record["methods"] if m.get("stage") == COMPILES]
    if not record.get("compilation") or len(record["methods"]) < 2:
        return None
    alone = next(
        (r for r in records if r["model"] == record["model"] and r["methods"] == compiling), None
    )
    if alone is None or differing_beside(record, alone):
        return None
    if any(alone["run"].get(a) != record["run"].get(a) for a in ALIKE):
        return None
    ratio = times.speedup(alone["timing"], record["timing"])
    return ratio.estimate.as_dict() if ratio else None


def _left(record: Record) -> list[str]:
    """What the runner found of a stack after it was taken off, as a sentence."""
    if not (names := record.get("left_behind")):
        return []
    return [
        f"taken off, it left a changed {', '.join(names[:3])}"
        f"{' and more' if names[3:] else ''} behind (what ran after it had a fresh process)"
    ]


def _timing(record: Record, none: Record | None, name: str) -> Interval | None:
    if none is not None and record is not none and (base := times.seconds(none["timing"], name)):
        # the cell's seconds over none's
        ratio = times.speedup(record["timing"], none["timing"], name)
        if ratio is not None:
            return ratio.estimate.divided(1 / base.value).as_dict()
    return own_timing(record)[name]


def own_timing(record: Record) -> dict[str, Interval | None]:
    """Seconds per sample of each stage by a record's own times alone, as `timing` in a row."""
    seconds = {name: times.seconds(record["timing"], name) for name in TIMED}
    return {name: estimate.as_dict() if estimate else None for name, estimate in seconds.items()}


def shares(timing: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Each stage's share of the stages' time over all timed batches; None without times."""
    spent = {stage: sum(t[f"{stage}_s"] for t in timing) for stage in STAGES}
    total = sum(spent.values())
    return {stage: seconds / total if total > 0 else None for stage, seconds in spent.items()}


def predict(share_denoise: float, speedup_flops: float) -> float:
    """Speed-up of the whole call if the denoising loop took time in proportion to its FLOPs and the
    rest stayed (Amdahl 1967).
    """
    return 1 / ((1 - share_denoise) + share_denoise / speedup_flops)


def _speedups(record: Record, none: Record | None) -> Speedups:
    call = denoise = share = mine = theirs = None
    if none is not None:
        call, denoise = (
            times.speedup(none["timing"], record["timing"], f"{scope}_s")
            for scope in ("call", "denoise")
        )
        mine, theirs = ((r["flops"] or {}).get("flops") for r in (record, none))
        share = shares(none["timing"])["denoise"]
    flops = theirs / mine if mine and theirs else None
    predicted = predict(share, flops) if share is not None and flops is not None else None
    return {
        "speedup_call": call.estimate.as_dict() if call else None,
        "speedup_denoise": denoise.estimate.as_dict() if denoise else None,
        "speedup_over_compile": None,
        "speedup_interval": call.unit if call else "",
        "speedup_flops": flops,
        "speedup_predicted": predicted,
        "realised": denoise.estimate.divided(flops).as_dict() if denoise and flops else None,
        "realised_call": call.estimate.divided(predicted).as_dict() if call and predicted else None,
    }
