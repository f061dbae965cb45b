"""Which methods stack, as tables: a row for each stack whose methods were run alone too, and the
answer of `stack --json`. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ditbench.analysis.interaction import VERDICTS, rules
from ditbench.analysis.interaction_table import needed
from ditbench.analysis.primary import primary_metrics
from ditbench.metrics.table import Metric, metrics
from ditbench.reports.sections.findings import trained_once, trainings
from ditbench.reports.sections.format import DASH, fixed, spoken
from ditbench.reports.sections.rows import status
from ditbench.reports.sections.section import Section
from ditbench.reports.tables.sheet import (
    KEY,
    Block,
    Sheet,
    circumstances,
    frame,
    spread,
    without_empty,
)

STACKING = (
    "gamma: the stack's speed-up over the product of those of its methods alone, 1 where speed-ups "
    "multiply. Alignment and Fréchet "
    "interaction: the stack's change minus the sum of its methods', 0 where what they cost adds "
    "up; the Fréchet one without bias in n. "
    "Basis: whether times or FLOPs decide which controls are no slower. Control: none or fewer "
    "steps, with the most steps that is "
    "surely no slower than the stack; FLOPs control: the same by FLOPs; student control: the "
    "stack's student in fewer steps; over "
    "control: the stack's alignment minus the control's. Samples needed: to resolve what is "
    "inconclusive. Tuned: what was learned for a "
    "method was learned in the stack; frozen: for the plain model. Intervals are 95 %."
)
CONTROLS = ("control", "flops_control", "student_control")


def stacking_sheet(section: Section) -> Sheet:
    """A block for each model that has stacks whose methods were run alone too, a line for each such
    stack."""
    blocks = []
    for model in section.models:
        interactions = [row for row in section.stacking if row["model"] == model]
        lines = [_words(section, row) for row in interactions]
        if lines:
            notes = [
                f"`{row['stack']}`: {': '.join(filter(None, (row['verdict'], row.get('reason'))))}"
                for row in interactions
                if row["verdict"] not in VERDICTS or row.get("reason")
            ]
            notes += [
                f"`{row['stack']}`: controls left out: {', '.join(row['controls_left_out'])}"
                for row in interactions
                if row.get("controls_left_out")
            ]
            notes += trained_once(trainings(section, model))
            blocks.append(
                Block(
                    model=model,
                    caption=section.caption(model),
                    lines=without_empty(lines),
                    notes=notes,
                )
            )
    title = "Do they stack?"
    return Sheet(
        name="stacking",
        title=title,
        run=section.name,
        convention=STACKING,
        blocks=blocks,
        rules=rules(section.stacking),
    )


def stacking_frame(section: Section) -> pd.DataFrame:
    """One line a stack: both interactions, verdict and control at full precision, and the keys of
    all the cells they are from."""
    lines = []
    for interaction in section.stacking:
        row = _row(section, interaction, interaction["stack"])
        line = {
            "run": row["run"],
            "model": interaction["model"],
            "stack": interaction["stack"],
            "reading": interaction["reading"],
        }
        line |= {
            "verdict": interaction["verdict"],
            "suspect": row["suspect"],
            "gamma_flops": interaction.get("gamma_flops"),
        }
        for name, key in ESTIMATES.items():
            line |= spread(
                name, interaction[key].as_dict() if interaction.get(key) else None, counted=True
            )
        line |= {
            name: interaction.get(name)
            for name in (
                "basis",
                *CONTROLS,
                "reason",
                "p_clash",
                "p_stacks",
                "p_beaten",
                "samples_needed",
                "num_samples_needed",
            )
        }
        line |= {"metric": interaction.get("metric"), "distance": interaction.get("distance")}
        line |= {
            name: "; ".join(interaction.get(name, [])) for name in ("controls", "controls_left_out")
        }
        line |= circumstances(row, section.environments(row)) | {
            "keys": _keys(section, interaction)
        }
        lines.append(line)
    return frame(lines)


ESTIMATES = {
    "gamma_clock": "gamma_clock", "alignment_interaction": "alignment",
    "frechet_interaction": "frechet",
    "alignment_over_control": "over_control", "alignment_over_flops_control": "over_flops_control",
    "alignment_over_student_control": "over_student_control",
}  # fmt: skip
"""Columns of estimates, by what `ditbench.analysis.interaction` calls them."""


def _words(section: Section, interaction: Mapping[str, Any]) -> dict[str, str]:
    row, measured = _row(section, interaction, interaction["stack"]), "alignment" in interaction
    clock, quality, frechet, *over = (
        interaction[k].as_dict() if interaction.get(k) else None for k in ESTIMATES.values()
    )
    score, distance = _primary(interaction)
    words = {
        "stack": interaction["stack"], "reading": interaction["reading"], "status": status(row),
        "verdict": interaction["verdict"] if interaction["verdict"] in VERDICTS else "not measured",
        "gamma FLOPs": fixed(interaction.get("gamma_flops"), 2), "gamma clock": spoken(clock, 2),
        f"{score.label} interaction": spoken(quality, score.decimals, signed=True),
        f"{distance.label.removesuffix(' distance')} interaction": spoken(frechet, distance.decimals, signed=True),
        "basis": interaction.get("basis", DASH),
    }  # fmt: skip
    for name, ahead in zip(CONTROLS, over, strict=True):
        head = name.replace("_", " ").replace("flops", "FLOPs")
        words |= {
            head: interaction.get(name) or DASH,
            f"over {head}": spoken(ahead, score.decimals, signed=True),
        }
    return words | {
        "samples needed": needed(interaction) or DASH,
        "n": str(row["num_samples"]) if measured else DASH,
        KEY: _keys(section, interaction),
    }  # fmt: skip


def _primary(interaction: Mapping[str, Any]) -> tuple[Metric, Metric]:
    """What the interactions of a row are of."""
    usual, table = primary_metrics(), metrics()
    return (
        table[interaction.get("metric", usual.score.name)],
        table[interaction.get("distance", usual.distance.name)],
    )


def _keys(section: Section, interaction: Mapping[str, Any]) -> str:
    """Record keys of baseline, methods, stack and controls."""
    stacks = [
        "none",
        *interaction["parts"],
        interaction["stack"],
        *(interaction[name] for name in CONTROLS if interaction.get(name)),
    ]
    return " ".join(_row(section, interaction, stack)["key"] for stack in dict.fromkeys(stacks))


def _row(section: Section, interaction: Mapping[str, Any], stack: str) -> Any:
    return next(row for row in section.models[interaction["model"]] if row["stack"] == stack)
