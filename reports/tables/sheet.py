"""Tables for people, once as Markdown and once as LaTeX with booktabs: the same rows, notes and
record keys in both.

And what the lines of all CSVs have in common.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ditbench.records.settings import ROW_SETTINGS
from ditbench.reports.sections.format import DASH

KEY = "key"
"""The column of record keys: last in Markdown, in the notes in LaTeX."""
COLUMNS = 5
"""Columns a LaTeX table has at most beside the first; more go into a second one below."""
SIGNS = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}",
    "[": "{[}", "]": "{]}", '"': "''", "\u00d7": r"$\times$", "\u03b1": r"$\alpha$",
    "\u03b3": r"$\gamma$", "\u0394": r"$\Delta$", "\u03a3": r"$\Sigma$", "\u2026": r"\dots{}",
}  # fmt: skip
"""What LaTeX would take for a command, or its default encoding does not have; a bracket after a
line break would be an argument."""
MINUS = re.compile(r"(?<![\w.)])-(?=[\d.])")
INTERVAL = re.compile(r"\{\[\}[^{}]*\{\]\}")


@dataclass(frozen=True, kw_only=True)
class Block:
    """One table: the rows of one model."""

    model: str
    caption: str
    """Sample count, rounds, precision and hardware."""
    lines: Sequence[Mapping[str, str]]
    """Text by column, the columns of all lines the same; the first names the row."""
    notes: Sequence[str] = ()
    italic: bool = False
    """Whether its numbers are another's."""


def without_empty(
    lines: Sequence[Mapping[str, str]], always: Collection[str] = ()
) -> list[dict[str, str]]:
    """The lines with all their columns but those in which none says anything; those named `always`
    stay."""
    heads = dict.fromkeys(head for line in lines for head in line)
    filled = [head for head in heads if head in always or any(line[head] != DASH for line in lines)]
    return [{head: line[head] for head in filled} for line in lines]


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """Tables of one kind, a block for each model."""

    name: str
    """Of its files."""
    title: str
    run: str
    """What the report calls the run, or ""."""
    convention: str
    """What the columns mean."""
    blocks: Sequence[Block]
    rules: Sequence[str] = ()
    """Sentences after all blocks."""
    left_out: Sequence[str] = ()


def markdown(sheet: Sheet) -> str:
    """The sheet as Markdown."""
    parts = [
        f"# {sheet.title}: {sheet.run}" if sheet.run else f"# {sheet.title}",
        "",
        sheet.convention,
        "",
    ]
    for block in sheet.blocks:
        heads = list(block.lines[0])
        mark = "*" if block.italic else ""
        parts += [f"## {block.model}", "", *([f"{block.caption}.", ""] if block.caption else [])]
        parts += ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
        parts += [
            "| "
            + " | ".join(
                f"{mark}{_plain(line[head])}{mark}" if line[head] else "" for head in heads
            )
            + " |"
            for line in block.lines
        ]
        parts += [""] + [f"- {_plain(note)}" for note in block.notes] + [""]
    parts += [f"{rule}\n" for rule in sheet.rules]
    parts += [f"- left out: {_plain(sentence)}" for sentence in sheet.left_out]
    return "\n".join(parts).rstrip() + "\n"


def latex(sheet: Sheet) -> str:
    """The sheet as LaTeX tables for `\\input`: they need the package booktabs and nothing else."""
    parts = [r"% \usepackage{booktabs}"]
    for block in sheet.blocks:
        first, *heads = (head for head in block.lines[0] if head != KEY)
        for start in range(0, len(heads), COLUMNS):
            shown = [first, *heads[start : start + COLUMNS]]
            whose = f" ({sheet.run})" if sheet.run else ""
            more = " Continued." if start else ""
            caption = (
                f"{sheet.title}: {block.model}{whose}.{more} {block.caption}".strip().rstrip(".")
                + "."
            )
            label = re.sub(
                r"[^A-Za-z0-9]+", "-", f"{sheet.name}-{block.model}-{start // COLUMNS + 1}"
            )
            words = (
                [sheet.convention, *block.notes, *sheet.rules]
                if start + COLUMNS >= len(heads)
                else []
            )
            if words and KEY in block.lines[0]:
                keys = "; ".join(f"{line[first]}: {line[KEY]}" for line in block.lines if line[KEY])
                words.append(f"Records: {keys}.")
            words += [f"Left out: {sentence}" for sentence in sheet.left_out] if words else []
            parts += [
                r"\begin{table}[htbp]", r"\centering", rf"\caption{{{tex(caption)}}}",
                rf"\label{{tab:{label}}}",
                r"\footnotesize", rf"\begin{{tabular}}{{l{'r' * (len(shown) - 1)}}}", r"\toprule",
                " & ".join(_head(head) for head in shown) + r" \\", r"\midrule",
                *(" & ".join(_cell(line[head], block.italic) for head in shown) + r" \\" for line in block.lines),
                r"\bottomrule", r"\end{tabular}",
            ]  # fmt: skip
            if words:
                body = " ".join(tex(sentence.strip().rstrip(".") + ".") for sentence in words)
                parts += [
                    "",
                    r"\smallskip",
                    rf"\begin{{minipage}}{{\linewidth}}\scriptsize {body}\end{{minipage}}",
                ]
            parts += [r"\end{table}", ""]
    return "\n".join(parts).rstrip() + "\n"


def tex(text: str) -> str:
    """Plain text as LaTeX, every sign that means something there escaped."""
    return "".join(SIGNS.get(letter, letter) for letter in " ".join(text.split()))


def _cell(text: str, italic: bool) -> str:
    if text == "-":
        return "--"
    escaped = INTERVAL.sub(
        lambda match: rf"{{\scriptsize {match.group()}}}", MINUS.sub("$-$", tex(text))
    )
    return rf"\textit{{{escaped}}}" if italic and escaped else escaped


def _head(text: str) -> str:
    words = [tex(word) for word in text.split(" ")]
    return words[0] if len(words) == 1 else r"\shortstack{" + r" \\ ".join(words) + "}"


def _plain(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").split())


def frame(lines: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """The lines of a CSV; columns of whole numbers are written without a decimal point also where
    some are missing."""
    lines = list(lines)
    content = pd.DataFrame(lines)
    names = map(str, content.columns)
    whole = [name for name in names if _whole([line.get(name) for line in lines])]
    content[whole] = content[whole].astype("Int64")
    return content


def _whole(values: Sequence[Any]) -> bool:
    return all(
        value is None or (isinstance(value, int) and not isinstance(value, bool))
        for value in values
    )


def spread(name: str, estimate: Mapping[str, Any] | None, counted: bool = False) -> dict[str, Any]:
    """An estimate as columns of a CSV: value, both ends of its interval, and its n where it is
    `counted`."""
    numbers = estimate or {}
    line = {
        name: numbers.get("value"),
        f"{name}_low": numbers.get("low"),
        f"{name}_high": numbers.get("high"),
    }
    return line | ({f"{name}_n": numbers.get("n")} if counted else {})


def circumstances(
    row: Mapping[str, Any], environments: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What the numbers of a row depend on, as columns of a CSV; of several environments all values,
    with a slash between them."""
    line = {name: row[name] for name in ROW_SETTINGS if name != "device"}
    line |= {
        name: row["sampling"].get(name)
        for name in ("steps", "calls", "guidance", "height", "width", "frames")
    }
    machine = {name: _joined(environments, name) for name in ("processor", "cores", "threads")}
    device = _joined(environments, "device") or row["device"]
    return (
        line
        | {"device": device}
        | machine
        | {"key": row["key"], "baseline_key": row["baseline_key"]}
    )


def _joined(environments: Sequence[Mapping[str, Any]], name: str) -> Any:
    values = list(dict.fromkeys(environment.get(name) for environment in environments))
    return values[0] if len(values) == 1 else " / ".join(map(str, values))
