"""The matrix of pairs on the terminal: a square of signs where it is wide enough, what was run, and
why the rest is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from ditbench.analysis.pairs import PairMatrix
from ditbench.reports.sections.format import DASH
from ditbench.reports.sections.section import Section
from ditbench.reports.tables.pairs import LEGAL, by_reason, counts, verdict
from ditbench.reports.terminal.table import console

SIGNS = {
    "stacks": "S", "clashes": "C", "beaten": "B", "slower": "-", "inconclusive": "?",
    "run": "*", "refused": ".", "not run": " ",
}  # fmt: skip
"""Of verdicts, and of the states of what has none."""
SEVERAL = 6
"""Combinations that are named beside a reason."""


def show_pairs(of: Sequence[tuple[Section, Sequence[PairMatrix]]], page: Path) -> None:
    """Print the matrices of every section, and where the page is."""
    out = console()
    for section, matrices in of:
        for matrix in matrices:
            title = f"{section.name}: {matrix.model}" if len(of) > 1 else matrix.model
            out.print()
            out.print(Text(title, style="bold"))
            _square(out, matrix)
            _lists(out, matrix)
        for sentence in section.left_out:
            out.print(Text(f"left out of {section.name}: {sentence}"))
        if not matrices:
            out.print(Text(f"{section.name} has no records yet"))
    signs = ", ".join(f"{sign.strip() or 'empty'} {word}" for word, sign in SIGNS.items())
    out.print(Text(f"{signs}. {LEGAL}", style="dim"))
    out.print(Text(f"page of pairs: {page}"), soft_wrap=True)


def _square(out: Console, matrix: PairMatrix) -> None:
    """Numbers stand for the methods at the head of columns; nothing on a narrow terminal."""
    names = matrix.methods
    label = max(map(len, names)) + 4
    if label + 2 * len(names) > out.width:
        return
    at = {frozenset(c.methods): c for c in (*matrix.alone, *matrix.pairs)}
    digits = [f"{i:2d}" for i in range(1, len(names) + 1)]
    for place in range(2):
        out.print(Text(" " * label + " ".join(number[place] for number in digits), style="dim"))
    for number, name in zip(digits, names, strict=True):
        fields = [at[frozenset((name, other))] for other in names]
        signs = [SIGNS[verdict(c) or c.state] for c in fields]
        out.print(Text(f"{number} {name}".ljust(label) + " ".join(signs)), soft_wrap=True)


def _lists(out: Console, matrix: PairMatrix) -> None:
    out.print(
        Text(
            f"{len(matrix.pairs)} pairs: {counts(matrix.pairs)}; "
            f"{len(matrix.triples)} triples: {counts(matrix.triples)}"
        )
    )
    for c in (*matrix.pairs, *matrix.triples):
        for ran in c.ran:
            out.print(Text(f"  {ran.stack}: {ran.verdict or DASH}"))
    for reason, who in by_reason([*matrix.alone, *matrix.pairs]).items():
        more = f" and {len(who) - SEVERAL} more" if len(who) > SEVERAL else ""
        out.print(Text(f"  refused: {reason} ({', '.join(who[:SEVERAL])}{more})", style="dim"))
