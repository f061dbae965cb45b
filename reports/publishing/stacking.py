"""Which methods stack, as tables for people: verdicts alone, and with what they rest on. No
torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ditbench.analysis.interaction_table import document
from ditbench.reports.publishing.grid import grid
from ditbench.reports.sections.format import DASH, fixed, spoken
from ditbench.reports.sections.section import Section

Row = Mapping[str, Any]


def verdict_table(section: Section, *, beside: Sequence[Section] = ()) -> str:
    """Markdown of the verdicts of a run, and of those `beside` it, on combinations: a row per combination that ran on some model
    and a column per model, one word a cell. Combinations whose methods were prepared alone ("frozen")
    are left out where the same methods ran as prepared in the stack."""
    rows = [row for one in (section, *beside) for row in document(one.stacking)]
    tuned = {_combination(row) for row in rows if row["reading"] != "frozen"}
    rows = [r for r in rows if r["reading"] != "frozen" or _methods(r) not in tuned]
    return _table(rows, lambda row: str(row["verdict"]) if "alignment" in row else DASH)


def answer_table(section: Section) -> str:
    """The same with all combinations, and beside each verdict the alignment interaction, and gamma
    by FLOPs and by measured time; in brackets and without its interval where the times are
    unreliable and FLOPs decided."""
    return _table(document(section.stacking), _answer)


def judges_table(section: Section, *, beside: Sequence[Section] = ()) -> str:
    """Markdown of the interactions of runs by both judges: a row per pair of methods, a column per
    model; in each cell the alignment interaction by the first judge, and by the second, through which
    nothing was trained."""
    rows = [row for one in (section, *beside) for row in document(one.stacking)]
    pairs = [row for row in rows if len(row.get("parts", ())) == 2]
    return _table(pairs, _by_both)


def _by_both(row: Row) -> str:
    if "alignment" not in row:
        return DASH
    by = [row["alignment"], *([row["second_judge"]] if "second_judge" in row else [])]
    return "; ".join(spoken(estimate, 3, signed=True) for estimate in by)


def _table(rows: Sequence[Row], show: Callable[[Row], str]) -> str:
    cells = {(_combination(row), row["model"]): show(row) for row in rows}
    measured = {_combination(row) for row in rows if "alignment" in row}
    cells = {place: text for place, text in cells.items() if place[0] in measured}
    return grid("combination", (name for name, _ in cells), cells)


def _combination(row: Row) -> str:
    """The methods without their knobs, and whether they were prepared in the stack or alone."""
    return f"{_methods(row)}, frozen" if row["reading"] == "frozen" else _methods(row)


def _methods(row: Row) -> str:
    return "+".join(part.partition("(")[0] for part in row["stack"].split("+"))


def _answer(row: Row) -> str:
    if "alignment" not in row:  # the reason is on the page
        return str(row["verdict"]).partition(":")[0]
    clock = row["gamma_clock"]
    measured = spoken(clock, 2)
    if clock and row["basis"] == "FLOPs":
        measured = f"({fixed(clock['value'], 2)})"
    gamma = f"gamma {fixed(row.get('gamma_flops'), 2)} (FLOPs), {measured} (time)"
    return f"**{row['verdict']}** {spoken(row['alignment'], 3, signed=True)}; {gamma}"
