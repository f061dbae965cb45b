"""The run's order of methods beside authors' printed tables: a line for each table, and one for each
pair of methods, those that disagree in words with what may be the reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ditbench.analysis.printed_cells import ALIKE, NEAR
from ditbench.analysis.printed_order import (
    BY,
    COUNTERPART,
    FIDELITY,
    Agreement,
    Pair,
    TableOrder,
)
from ditbench.metrics.table import metrics
from ditbench.models.family import families
from ditbench.reports.sections.findings import reach_of, said
from ditbench.reports.sections.format import DASH, count, decimals, fixed, number, text, times
from ditbench.reports.sections.section import Section
from ditbench.reports.tables.sheet import Block, Sheet, circumstances, frame

PRINTED = (
    "A line for each table that authors print about a model of the same family, where it has two "
    f"methods of this run at alike compute: printed speed-ups, and ours by FLOPs, within a factor of "
    f"{ALIKE:g} of each other, and ours within {NEAR:g} of the printed. Tau: Kendall's tau-b over those "
    "pairs of methods, 1 the same order, 0 no relation, -1 the opposite; interval by a bootstrap over "
    "requests and methods; p two-sided, by exchanging our values among the methods. By the counterpart of "
    "the printed metric, and by the perceptual distance to the un-accelerated sample alone. Settled: "
    "pairs of which the interval of our difference leaves out zero. Tables of few methods settle next to "
    "nothing, and papers take baselines from each other. Note: read in a reading note of the paper."
)
PAIRS = (
    "A line for each pair of methods that a printed table has in one order and this run, by the "
    "counterpart of the printed metric, in the other. Gap: by how much the first is better in print; "
    "apart: how far apart different papers print the un-accelerated model itself in that setting."
)
WORDS = {COUNTERPART: "", FIDELITY: " by distance"}


def printed_sheet(section: Section) -> Sheet:
    """A block for each model, a line for each table and one for all of its family."""
    blocks, rules = [], []
    for printed in section.printed:
        for model in dict.fromkeys(t.model for t in printed.tables):
            if model not in section.models:
                continue
            tables = [t for t in printed.tables if t.model == model]
            lines = [
                _line(f"{t.table.id} ({t.table.metric})", t.table.read, t.agreement) for t in tables
            ]
            family = tables[0].table.family
            same = {t.model for t in printed.tables if t.table.family == family}
            words = f"all of {families()[family].title if family in families() else family}"
            words += f", {count(len(same), 'model')} of this run" if len(same) > 1 else ""
            lines.append(_line(words, "", printed.families[family]))
            blocks.append(
                Block(
                    model=model, caption=section.caption(model), lines=lines,
                    notes=[_setting(t) for t in tables],
                )
            )  # fmt: skip
        rules.append(
            f"All tables together: {said(printed.overall[COUNTERPART])}; by the perceptual distance "
            f"{said(printed.overall[FIDELITY])}."
        )
    return Sheet(
        name="printed", title="Beside the printed tables", run=section.name, convention=PRINTED,
        blocks=blocks, rules=rules,
    )  # fmt: skip


def _line(name: str, read: str, agreement: Mapping[str, Agreement]) -> dict[str, str]:
    first = agreement[COUNTERPART]
    line = {
        "table": name + (" (note)" if read == "note" else ""),
        "methods": str(first.methods), "pairs": str(first.pairs),
    }  # fmt: skip
    for by in BY:
        of = agreement[by]
        line[f"agree{WORDS[by]}"] = str(of.agree)
        line[f"settled{WORDS[by]}"] = f"{of.settled[0]} of {sum(of.settled)}"
        reach = "" if of.low is None else f" {reach_of(of)}"
        line[f"tau{WORDS[by]}"] = DASH if of.tau is None else f"{fixed(of.tau, 2)}{reach}"
        line[f"p{WORDS[by]}"] = fixed(of.p, 2)
    return line


def _setting(of: TableOrder) -> str:
    """What differs between the printed harness and ours."""
    t, ours = of.table, of.ours
    here = (t.steps, t.guidance, t.size, t.tokens, t.metric)
    there = (
        ours.steps,
        ours.guidance,
        ours.size,
        ours.tokens,
        metrics()[of.metrics[COUNTERPART]].label,
    )
    pairs = [
        f"{name} {text(a) if a else 'not stated'} (here {text(b)})"
        for name, a, b in zip(
            ("steps", "guidance", "size", "tokens", "metric"), here, there, strict=True
        )
    ]
    apart = ""
    if of.spread is not None:
        apart = f"; the un-accelerated model itself is printed {number(of.spread)} apart"
    return f"{t.id}, {t.source}, {t.place}: {', '.join(pairs)}, compute by {t.compute}{apart}"


def printed_pairs_sheet(section: Section) -> Sheet:
    """A block for each model with the pairs that disagree by the counterpart."""
    blocks = []
    for printed in section.printed:
        for model in dict.fromkeys(t.model for t in printed.tables):
            lines = [
                _disagreement(t, pair)
                for t in printed.tables
                if t.model == model
                for pair in t.pairs
                if pair.agrees(COUNTERPART) is False
            ]
            if lines and model in section.models:
                blocks.append(Block(model=model, caption=section.caption(model), lines=lines))
    return Sheet(
        name="printed_pairs", title="Where the order is not the printed one", run=section.name,
        convention=PAIRS, blocks=blocks,
    )  # fmt: skip


def _disagreement(of: TableOrder, pair: Pair) -> dict[str, str]:
    places = decimals(of.metrics[COUNTERPART])
    difference = pair.ours[COUNTERPART]
    low, high = difference.low, difference.high
    reach = "" if low is None or high is None else f" [{fixed(low, places)}, {fixed(high, places)}]"
    return {
        "ahead in print": f"{pair.first.row.printed} ({times(pair.first.row.speedup)}, {pair.first.row.value:g})",
        "behind": f"{pair.second.row.printed} ({times(pair.second.row.speedup)}, {pair.second.row.value:g})",
        "table": of.table.id,
        "gap": number(pair.gap),
        "apart": number(of.spread),
        "here": f"{fixed(difference.value, places, signed=True)}{reach}",
        "by distance": {True: "as printed", False: "not", None: "level"}[pair.agrees(FIDELITY)],
        "may be": ", ".join(reasons(of, pair)),
    }


def reasons(of: TableOrder, pair: Pair) -> list[str]:
    """What a disagreement may be owed to, the least interesting first."""
    t, ours = of.table, of.ours
    possible = [] if pair.settled(COUNTERPART) else ["noise here"]
    possible += ["harnesses differ as much"] if of.within_baselines(pair) else []
    possible += ["another metric"] if pair.agrees(FIDELITY) else []
    settings = (
        ("steps", t.steps, ours.steps), ("guidance", t.guidance, ours.guidance),
        ("tokens", t.tokens, ours.tokens),
    )  # fmt: skip
    for name, a, b in settings:
        if a is None or b is None or a != b:
            possible.append(f"{name} {text(a) if a else 'not stated'} / {text(b)}")
    if t.compute == "time":
        possible.append("time for FLOPs")
    return possible


def printed_frame(section: Section) -> pd.DataFrame:
    """A line for each table and each family, at full precision."""
    lines: list[dict[str, Any]] = []
    for printed in section.printed:
        named: list[tuple[dict[str, Any], Mapping[str, Agreement]]] = [
            (
                {"model": t.model, "family": t.table.family, "table": t.table.id} | _columns(t),
                t.agreement,
            )
            for t in printed.tables
            if t.model in section.models
        ]
        named += [({"family": family}, of) for family, of in printed.families.items()]
        named.append(({"family": "all"}, printed.overall))
        for line, agreement in named:
            for by in BY:
                of = agreement[by]
                line |= {
                    f"{by}_{name}": getattr(of, name)
                    for name in ("tau", "low", "high", "p", "methods", "pairs", "agree", "disagree")
                }
                line |= {
                    f"{by}_settled_agree": of.settled[0],
                    f"{by}_settled_disagree": of.settled[1],
                }
            lines.append({"run": section.name} | line)
    return frame(lines)


def _columns(of: TableOrder) -> dict[str, Any]:
    t = of.table
    return {
        "source": t.source, "place": t.place, "read": t.read, "printed_model": t.model,
        "printed_metric": t.metric, "printed_better": t.better, "prompts": t.prompts,
        "compute": t.compute, "printed_none": t.baseline, "none_apart": of.spread,
        "metric": of.metrics[COUNTERPART], "printed_steps": t.steps, "steps": of.ours.steps,
        "printed_guidance": t.guidance, "guidance": of.ours.guidance, "printed_size": t.size,
        "size": of.ours.size, "printed_tokens": t.tokens, "tokens": of.ours.tokens,
    }  # fmt: skip


def printed_pairs_frame(section: Section) -> pd.DataFrame:
    """A line for each pair that is compared, at full precision: `first` is ahead in print."""
    lines: list[dict[str, Any]] = []
    rows = {(row["model"], row["stack"]): row for row in section.rows}
    for printed in section.printed:
        for t in printed.tables:
            for pair in t.pairs if t.model in section.models else ():
                line: dict[str, Any] = {"run": section.name, "model": t.model, "table": t.table.id}
                for which, entry in (("first", pair.first), ("second", pair.second)):
                    line |= {
                        f"{which}_printed": entry.row.printed, f"{which}_stack": entry.stack,
                        f"{which}_printed_speedup": entry.row.speedup,
                        f"{which}_speedup_flops": entry.speedup,
                        f"{which}_printed_value": entry.row.value, f"{which}_key": entry.key,
                    }  # fmt: skip
                    line |= {f"{which}_{by}": entry.values.get(by) for by in BY}
                line["printed_gap"] = pair.gap
                for by in BY:
                    ours = pair.ours[by]
                    line |= {
                        f"{by}_gap": ours.value, f"{by}_gap_low": ours.low, f"{by}_gap_high": ours.high,
                        f"{by}_agrees": pair.agrees(by), f"{by}_settled": pair.settled(by),
                    }  # fmt: skip
                line["printed_gap_within_none_apart"] = t.within_baselines(pair)
                line["may_be"] = (
                    ", ".join(reasons(t, pair)) if pair.agrees(COUNTERPART) is False else ""
                )
                line |= _columns(t)
                row = rows[t.model, pair.first.stack]
                lines.append(line | _run(circumstances(row, section.environments(row))))
    return frame(lines)


def _run(line: Mapping[str, Any]) -> dict[str, Any]:
    """Of what a row depends on, what both cells of a pair share."""
    apart: Sequence[str] = ("steps", "calls", "guidance", "height", "width", "frames", "key")
    return {name: value for name, value in line.items() if name not in apart}
