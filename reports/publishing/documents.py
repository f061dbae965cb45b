"""The generated tables of a checkout's READMEs, from `reports/published/`. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from ditbench.method.plugins import load_plugins
from ditbench.reports.publishing.contrasts import against_table, floor_table, matched_table
from ditbench.reports.publishing.needs import needs_table
from ditbench.reports.publishing.run import run_table
from ditbench.reports.publishing.speeds import blocks_table, speeds_table
from ditbench.reports.publishing.stacking import answer_table, judges_table, verdict_table
from ditbench.reports.publishing.surface import surface_table
from ditbench.reports.sections.section import Section, read_sections

PUBLISHED = Path("reports") / "published"
PEERS = Path(__file__).resolve().parents[2] / "peers"
FOLDERS = ("bench", "datasets", "methods", "reports")
"""Whose READMEs may hold tables, besides the checkout's own."""
TABLES: Mapping[str, Callable[..., str]] = {
    "against": against_table,
    "blocks": blocks_table,
    "floor": floor_table,
    "judges": judges_table,
    "matched": matched_table,
    "run": run_table,
    "speeds": speeds_table,
    "stacking": answer_table,
    "surface": surface_table,
    "verdicts": verdict_table,
}
"""Kind of table -> its Markdown, from a published run and what else the marker says."""
SIMULATED: Mapping[str, Callable[[str], str]] = {"needs": needs_table}
"""Kind of table -> its Markdown, from a model of which rows are bundled."""
START, END = "<!-- table: ", "<!-- end of table -->"
BLOCK = re.compile(rf"^{START}(.+?) -->$\n.*?^{END}$", re.S | re.M)


def documents(checkout: Path) -> list[Path]:
    """The READMEs of a checkout."""
    below = (path for name in FOLDERS for path in sorted((checkout / name).rglob("README.md")))
    return [checkout / "README.md", *below]


def rewritten(text: str, published: Path, renamed: Mapping[str, Path] | None = None) -> str:
    """A document with each generated table made again, from the runs in `published`, but for those
    that `renamed` has elsewhere.

    A table stands between the lines `<!-- table: KIND RUN [ARGUMENT ...] -->` and
    `<!-- end of table -->`, an argument `+RUN` being a further run; those of `SIMULATED` name a model
    in place of a run. Raises ValueError
    for a marker without its partner, an unknown kind, or
    a run that is missing.
    """
    starts = sum(line.startswith(START.strip()) for line in text.splitlines())
    ends = text.splitlines().count(END)
    if not starts == ends == len(BLOCK.findall(text)):
        raise ValueError(f"{starts} tables begin and {ends} end")
    return BLOCK.sub(lambda block: _block(block[1], published, renamed or {}), text)


def _block(marker: str, published: Path, renamed: Mapping[str, Path]) -> str:
    kind, _, rest = marker.partition(" ")
    run, *arguments = rest.split()
    if kind in SIMULATED:
        return f"{START}{marker} -->\n\n{SIMULATED[kind](rest)}\n{END}"
    if kind not in TABLES:
        kinds = ", ".join([*TABLES, *SIMULATED])
        raise ValueError(f"{kind!r} is no kind of table; there are {kinds}")
    runs = [run, *[text[1:] for text in arguments if text.startswith("+")]]
    try:
        sections = [section_of(renamed.get(name, published / name)) for name in runs]
    except ValueError as error:
        raise ValueError(f"table {marker!r}: {error}") from error
    others = [text for text in arguments if not text.startswith("+")]
    beside = {"beside": sections[1:]} if sections[1:] else {}
    return f"{START}{marker} -->\n\n{TABLES[kind](sections[0], *others, **beside)}\n{END}"


def rewrite(checkout: Path) -> list[Path]:
    """Write the READMEs of a checkout whose tables are out of date; returns which those were.
    ValueError names the document; then nothing is written."""
    changed: dict[Path, str] = {}
    for path in documents(checkout):
        text = path.read_text(encoding="utf-8")
        try:
            made = rewritten(text, checkout / PUBLISHED)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path.relative_to(checkout)}: {error}") from error
        if made != text:
            changed[path] = made
    for path, made in changed.items():
        path.write_text(made, encoding="utf-8")
    return list(changed)


@cache
def section_of(folder: Path) -> Section:
    """A published run; ValueError when there is none. Of plug-ins that it was made with, those are
    loaded that the checkout has in `peers/`: tables go by the knobs of their methods."""
    (section,) = read_sections([folder])
    plugins = section.spec.get("plugins") or ()
    load_plugins(PEERS / Path(p).name for p in plugins if Path(p).parent.name == PEERS.name)
    return section
