"""The columns of the page's tables: what each shows of a row. A cell is a number, in smaller type
under it its interval, and how that was made, for who hovers over it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ditbench.analysis.rows import Row
from ditbench.reports.sections.format import (
    DASH,
    fixed,
    interval,
    number,
    places_of,
    share,
    short,
    size,
    times,
    value,
)

Cell = tuple[str, str] | tuple[str, str, str]
DIRECTION = {"higher": "higher is better", "lower": "lower is better"}


def glance(row: Row) -> dict[str, Cell]:
    """The columns for a first look."""
    found: dict[str, Cell] = {
        "speedup_call": _ratio(row, "speedup_call"),
        "speedup_denoise": _ratio(row, "speedup_denoise"),
        "speedup_flops": (times(row["speedup_flops"]), ""),
        "seconds\nper sample": _seconds(row, "call_s"),
        "peak\nmemory": (size(row["memory"].get("peak_bytes")), ""),
    }
    return found | _compared(row, "")


def video(row: Row) -> dict[str, Cell]:
    """How videos move."""
    return _compared(row, "video")


def _compared(row: Row, table: str) -> dict[str, Cell]:
    """The metrics of one table: values, and changes against none."""
    found: dict[str, Cell] = {}
    for metric, entry in row["quality"].items():
        if entry["table"] != table:
            continue
        places = places_of(metric)
        if not (entry["primary"] or entry["against_none"]):
            continue  # below, in the details
        if metric.endswith(".vs_none"):
            found[f"{metric}\n{entry['unit']}".strip()] = (
                value(entry["value"], places),
                interval(entry["value"], places),
                _made(entry, "value"),
            )
        else:
            found[f"{metric}\n{DIRECTION.get(entry['better'], '')}"] = (
                value(entry["value"], places),
                interval(entry["value"], places),
                _made(entry, "value"),
            )
            found[f"{metric.partition('.')[2] if table else short(metric)}\nminus none"] = (
                value(entry["delta"], places, True),
                interval(entry["delta"], places, True),
                _made(entry, "delta"),
            )
            found[f"{metric.partition('.')[0]}\nverdict"] = entry["verdict"] or DASH, ""
    return found


def speed(row: Row) -> dict[str, Cell]:
    """All speed-ups, stages and memory."""
    found: dict[str, Cell] = {
        "speedup_flops": (times(row["speedup_flops"]), ""),
        "speedup_predicted": (times(row["speedup_predicted"]), ""),
    }
    for name in ("speedup_denoise", "speedup_call", "realised", "realised_call"):
        found[name] = _ratio(row, name)
    found["intervals over"] = (row["speedup_interval"] or DASH, "")
    found |= {
        f"{stage}\ns/sample": _seconds(row, f"{stage}_s")
        for stage in ("call", "text", "denoise", "decode")
    }
    found["denoise\nshare"] = (share(row["share"]["denoise"]), "")
    found["GFLOPs\nper sample"] = (
        number(row["flops"]["flops"] / 1e9) if row["flops"].get("flops") else DASH,
        "",
    )
    ledger = {
        "weights": "weights_bytes",
        "kept by\nmethods": "cache_bytes",
        "before": "before_bytes",
        "peak": "peak_bytes",
    }
    found |= {head: (size(row["memory"].get(name)), "") for head, name in ledger.items()}
    return found | {"first call": _plain(row["first_call_s"]), "load": _plain(row["load_s"])}


def quality(row: Row) -> dict[str, Cell]:
    """Quality in parts, with what could be detected, the verdict and the record key."""
    found: dict[str, Cell] = {}
    for metric, entry in row["quality"].items():
        if entry["table"] == "video":
            continue
        places = places_of(metric)
        for part, told in ({"": entry} | entry["parts"]).items():
            name = f"{short(metric)} {part}".strip()
            if told["value"] and not (
                part == "" and metric.endswith(".vs_none") and entry["table"] == ""
            ):
                found[name] = value(told["value"], places), interval(told["value"], places)
                found[f"{name}\nminus none"] = (
                    value(told["delta"], places, True),
                    interval(told["delta"], places, True),
                )
        if entry["mde"] is not None:
            found[f"{short(metric)}\ndetectable"] = fixed(entry["mde"], places), ""
            found[f"{short(metric)}\nmargin"] = fixed(entry["margin"], places), ""
            found[f"{short(metric)}\nverdict"] = entry["verdict"] or DASH, ""
        if entry["primary"]:
            found[f"{short(metric)}\non frontier"] = fixed(entry["frontier"], 2), ""
    return found | {"n": (str(row["num_samples"]), ""), "record key": (row["key"], "")}


def _made(entry: Mapping[str, Any], name: str) -> str:
    """What a quality number rests on: its n and how its interval was made, or why there is none."""
    told = entry[name]
    if told is None:
        return str(entry["reason" if name == "value" else "delta_reason"])
    made = "; ".join(
        part
        for part in (f"n = {told['n']}", entry["interval"] if told["low"] is not None else "")
        if part
    )
    chance = entry["p"] if entry["p_holm"] is None else entry["p_holm"]
    return f"{made}; p = {number(chance, 2)}" if name == "delta" and chance is not None else made


def _ratio(row: Any, name: str) -> Cell:
    told = row[name]
    if told is None:
        return DASH, ""
    if row["baseline"]:
        return (times(1.0) if name.startswith("speedup") else value(told, 2)), ""
    shown = times(told["value"]) if name.startswith("speedup") else value(told, 2)
    over = f"interval over {row['speedup_interval']}" if row["speedup_interval"] else "no interval"
    return shown, interval(told, 2), f"paired inside rounds; {over}"


def _seconds(row: Row, name: str) -> Cell:
    told = row["timing"][name]
    if told is None:
        return DASH, ""
    return number(told["value"]), f"[{number(told['low'])}, {number(told['high'])}]" if told[
        "low"
    ] is not None else ""


def _plain(seconds: float | None) -> Cell:
    return (DASH if seconds is None else f"{number(seconds)} s"), ""
