"""Records and scores -> tables, figures and a page. A pure function of files, and never imports
torch.

`build` writes everything, `print_report` shows it on the terminal, `report_json` gives the document
behind `--json`; `build_pairs` and `print_pairs` do so for the pairs of methods alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ditbench.analysis.pairs import PairMatrix
    from ditbench.reports.sections.section import Report, Section

__all__ = ["build", "build_pairs", "pairs_json", "print_pairs", "print_report", "report_json"]


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """What `build_pairs` made."""

    of: list[tuple[Section, list[PairMatrix]]]
    """A matrix for each model of each section."""
    files: list[Path]
    """Every file written, the page last."""


def build(folders: list[Path], out: Path | None = None) -> Report:
    """Make the report of one or more runs in `out` (default: `report/` in the first run's folder).

    Runs that agree in all `ditbench.reports.sections.merge.unlike` looks at share a section; the
    others keep a section, and a folder of files, each, with the fields that differ. Speed-ups and
    changes are always against the baseline of a cell's own run. A record that cannot be read is
    named and left out. Every file takes the place of an earlier one whole, and none lands outside of
    `out`. Raises ValueError when a folder holds no run, and when a link leads a part of the report
    elsewhere.
    """
    from ditbench.records.files import check_folder, make_folder
    from ditbench.reports.figures.crossover import draw_crossovers
    from ditbench.reports.figures.printed_order import draw_printed
    from ditbench.reports.figures.quality_time import draw_figures
    from ditbench.reports.figures.sample_grid import draw_grids
    from ditbench.reports.figures.schedule_heatmap import draw_heatmaps
    from ditbench.reports.figures.speed_memory import draw_charts
    from ditbench.reports.figures.stacking_matrix import draw_matrices
    from ditbench.reports.figures.surface import draw_surfaces
    from ditbench.reports.figures.training_curve import copy_training
    from ditbench.reports.page.page import write_page
    from ditbench.reports.sections.merge import merge
    from ditbench.reports.sections.parallel import abreast
    from ditbench.reports.sections.section import Report, read_sections
    from ditbench.reports.tables.speed_quality import write_tables

    if not folders:
        raise ValueError("a report needs at least one run folder")
    sections = merge(read_sections(folders))
    out = out or make_folder(folders[0] / _name(folders), folders[0])
    files: list[Path] = []
    images: dict[str, dict[str, list[Path]]] = {}
    for section in sections:
        at = out if len(sections) == 1 else out / section.name
        for kind in ("tables", "plots", "grids"):
            check_folder(at / kind, out)
        files += write_tables(section, at / "tables")
        drawing = {
            draw_figures: "plots", draw_crossovers: "plots", draw_matrices: "plots",
            draw_surfaces: "plots", draw_printed: "plots",
            draw_charts: "plots", draw_heatmaps: "plots",
            copy_training: "plots", draw_grids: "grids",
        }  # fmt: skip
        alone = {model: section.only(model) for model in section.models}
        jobs = [
            (model, partial(draw, alone[model], at / kind))
            for model in alone
            for draw, kind in drawing.items()
        ]
        images[section.name] = {model: [] for model in alone}
        for (model, _), drawn in zip(jobs, abreast([job for _, job in jobs]), strict=True):
            images[section.name][model] += drawn.get(model, [])
        files += [path for paths in images[section.name].values() for path in paths]
    page = write_page(sections, images, out)
    files += _write_pairs(_pairs(sections), out)
    return Report(sections=sections, out=out, page=page, files=[*files, page])


def build_pairs(folders: list[Path], out: Path | None = None) -> Pairs:
    """Make the page and the tables of the pairs of methods alone, where `build` makes them; raises
    ValueError as `build`."""
    from ditbench.records.files import make_folder
    from ditbench.reports.sections.merge import merge
    from ditbench.reports.sections.section import read_sections

    if not folders:
        raise ValueError("a report needs at least one run folder")
    pairs = _pairs(merge(read_sections(folders)))
    out = out or make_folder(folders[0] / _name(folders), folders[0])
    return Pairs(of=pairs, files=_write_pairs(pairs, out))


def _pairs(sections: Sequence[Section]) -> list[tuple[Section, list[PairMatrix]]]:
    from ditbench.reports.tables.pairs import matrices

    return [(section, matrices(section)) for section in sections]


def _write_pairs(pairs: Sequence[tuple[Section, list[PairMatrix]]], out: Path) -> list[Path]:
    """The tables of every section that has records, and the page last."""
    from ditbench.records.files import check_folder
    from ditbench.reports.page.pairs import write_pairs_page
    from ditbench.reports.tables.pairs import write_pairs

    files: list[Path] = []
    for section, of in (one for one in pairs if one[1]):
        at = (out if len(pairs) == 1 else out / section.name) / "tables"
        check_folder(at, out)
        files += write_pairs(section, of, at)
    return [*files, write_pairs_page(pairs, out)]


def _name(folders: Sequence[Path]) -> str:
    """The folder of a report inside that of its first run: named after the other runs, so that no
    two sets of runs share one."""
    if len(folders) == 1:
        return "report"
    others = [folder.resolve() for folder in folders[1:]]
    digest = hashlib.sha256("\n".join(map(str, others)).encode()).hexdigest()[:8]
    names = "-".join(re.sub(r"[^A-Za-z0-9._-]+", "_", folder.name) for folder in others)
    return f"report-with-{names[:60]}-{digest}"


def print_report(report: Report) -> None:
    """Print a table per model, with the reasons of what did not run under it, and where the page
    is."""
    from ditbench.reports.terminal.overview import show

    show(report)


def report_json(report: Report) -> dict[str, Any]:
    """What the tables show as one JSON document: rows as `ditbench.analysis.rows` describes
    them, with `notes` added."""
    from ditbench.reports.tables.speed_quality import document

    return document(report)


def print_pairs(pairs: Pairs) -> None:
    """Print the matrices, what was run, why the rest is refused, and where the page is."""
    from ditbench.reports.terminal.pairs import show_pairs

    show_pairs(pairs.of, pairs.files[-1])


def pairs_json(pairs: Pairs) -> dict[str, Any]:
    """The matrices as one JSON document, a run each."""
    from ditbench.reports.tables.pairs import document

    return {"page": str(pairs.files[-1]), "runs": [document(*one) for one in pairs.of]}
