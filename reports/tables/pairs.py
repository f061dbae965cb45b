"""Every pair of methods of a run, as CSV and JSON. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ditbench.analysis.pairs import Combination, PairMatrix, pair_matrices
from ditbench.records.files import write_text
from ditbench.reports.sections.section import Section
from ditbench.reports.tables.sheet import frame

DOCUMENT = 1
"""Version of the JSON document."""
STATES = {
    "run": "the run has the methods together, with the verdict of the stacking table where they "
    "were run alone too",
    "refused": "they cannot be used together on this model, or one of them not on it at all",
    "not run": "nothing is known against it, and the run has no numbers of it; methods that are "
    "trained have to be prepared first",
}
"""What the state of a combination says."""
LEGAL = (
    "What is legal follows from the claims, needs and checks of the methods that are installed where "
    "the report is made, at default knobs; what was run counts with any knobs."
)

SHARED = re.compile(r"\w+ and \w+ both claim ([^;]+)")
CLAIMED = re.compile(r"\w+ claims ([^;]+)")
"""Sentences of `Stack.problems`, of any two methods."""


def matrices(section: Section) -> list[PairMatrix]:
    """The matrix of each model of a section."""
    return pair_matrices(list(section.records.values()), section.stacking)


def write_pairs(section: Section, of: Sequence[PairMatrix], folder: Path) -> list[Path]:
    """Write `pairs.csv`, a line for each method alone, pair and triple of every model, and
    `pairs.json`, the same by model; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "pairs.csv", folder / "pairs.json"]
    lines = [line for matrix in of for line in _lines(section, matrix)]
    write_text(paths[0], frame(lines).to_csv(index=False, lineterminator="\n"))
    write_text(paths[1], json.dumps(document(section, of)) + "\n")
    return paths


def document(section: Section, of: Sequence[PairMatrix]) -> dict[str, Any]:
    """The matrices of a section as plain JSON."""
    return {
        "schema": DOCUMENT, "run": section.name, "states": STATES,
        "models": [
            {
                "model": matrix.model,
                "methods": [
                    {"name": name, "family": matrix.families[name]} for name in matrix.methods
                ],
                "alone": list(map(_entry, matrix.alone)),
                "pairs": list(map(_entry, matrix.pairs)),
                "triples": list(map(_entry, matrix.triples)),
            }
            for matrix in of
        ],
    }  # fmt: skip


def _entry(combination: Combination) -> dict[str, Any]:
    return {
        "methods": list(combination.methods), "state": combination.state,
        "reason": combination.reason,
        "cells": [
            {"stack": ran.stack, "key": ran.key, "verdict": ran.verdict} for ran in combination.ran
        ],
    }  # fmt: skip


def _lines(section: Section, matrix: PairMatrix) -> Iterator[Mapping[str, Any]]:
    for combination in (*matrix.alone, *matrix.pairs, *matrix.triples):
        first, second, third, *_ = (*combination.methods, "", "")
        ran = combination.ran
        yield {
            "run": section.name, "model": matrix.model,
            "first": first, "second": second, "third": third,
            "state": combination.state, "verdict": verdict(combination),
            "stack": ran[0].stack if ran else "", "key": ran[0].key if ran else "",
            "cells": len(ran), "reason": combination.reason,
        }  # fmt: skip


def verdict(combination: Combination) -> str:
    """That of the first cell that has one, default knobs first; "" where none has."""
    return next((ran.verdict for ran in combination.ran if ran.verdict), "")


def counts(combinations: Sequence[Combination]) -> str:
    """How many are in each state, in words."""
    states = [c.state for c in combinations]
    return ", ".join(f"{states.count(state)} {state}" for state in STATES)  # type: ignore[arg-type]


def by_reason(combinations: Sequence[Combination]) -> dict[str, list[str]]:
    """Why combinations are refused, by the first thing that speaks against them, with what it
    refuses: most first. What any two methods share, or any other method claims, is one reason."""
    refused: dict[str, list[str]] = {}
    for c in combinations:
        if c.state == "refused":
            reason = c.reason
            if len(c.methods) > 1:
                if shared := SHARED.match(reason):
                    reason = f"both claim {shared[1]}"
                elif claimed := CLAIMED.match(reason):
                    reason = f"what claims {claimed[1]}"
            refused.setdefault(reason, []).append("+".join(c.methods))
    return dict(sorted(refused.items(), key=lambda item: -len(item[1])))
