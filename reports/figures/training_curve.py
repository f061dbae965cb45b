"""What was trained for a method, as a card in its folder: what it is for, what it cost, the loss
curve, the schedule where there is one.

Read from `log.csv`, `schedule.json` and `manifest.json` alone.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ditbench.acceleration.caching.forecast_plan import FILE as FORECAST
from ditbench.acceleration.caching.schedule import Schedule
from ditbench.method.artifact import command_for, trained_for
from ditbench.records.files import replacing, write_text
from ditbench.records.reading import read_content, read_json
from ditbench.records.record import SHOWN
from ditbench.reports.figures.frame import finish
from ditbench.reports.figures.schedule_heatmap import KIND_LETTER, paint
from ditbench.reports.figures.style import FAMILIES, INK, QUIET, in_style
from ditbench.reports.sections.section import Section, file_name

STEM, CARD, KINDS = "training", "README.md", ("png", "svg")
IMAGE = f"{STEM}.png"
SMOOTH = 15
"""Iterations the running mean goes over."""


def write_card(folder: Path) -> Path:
    """Write `README.md` and, where there is something to draw, `training.png` and `training.svg`
    beside what was trained."""
    manifest, image = read_json(folder / "manifest.json"), draw_training(folder)
    below = "" if manifest["below"] == "none" else f" under `{manifest['below']}`"
    facts = {
        "made with": f"`{command_for(manifest['stack'], manifest['model'], manifest.get('flags', ()))}`"
    }
    facts |= {"seconds": manifest["seconds"], **manifest["recipe"], **manifest["notes"]}
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    shown = f"\n![training]({IMAGE})\n" if image else ""
    title = (
        f"# {manifest['method']} for {manifest['model']}\n\nFor {manifest['steps']} steps{below}.\n"
    )
    write_text(folder / CARD, f"{title}\n| | |\n|---|---|\n{rows}\n{shown}")
    return folder / CARD


def copy_training(section: Section, folder: Path) -> dict[str, list[Path]]:
    """Copy the figure of every training that a model's cells rest on, where what was trained is on
    this machine, as PNG and where it has one as SVG; the copies by model."""
    files: dict[str, list[Path]] = {}
    for model, rows in section.models.items():
        records = [section.records[row["key"]] for row in rows if row["status"] == SHOWN]
        used = {
            artifact.folder: name
            for record in records
            for name, artifact in trained_for(record).items()
        }
        for trained, method in used.items():
            for drawn in (path for kind in KINDS if (path := trained / f"{STEM}.{kind}").is_file()):
                folder.mkdir(parents=True, exist_ok=True)
                path = folder / f"{file_name(model)}-{method}-{trained.name}-{drawn.name}"
                with replacing(path) as partial:
                    partial.write_bytes(read_content(drawn))
                files.setdefault(model, []).append(path)
    return files


def draw_training(folder: Path) -> list[Path]:
    """Draw `training.png` and `training.svg` beside what was trained; none where nothing there can
    be drawn."""
    log = folder / "log.csv"
    rows = list(csv.DictReader(log.open(newline="", encoding="utf-8"))) if log.is_file() else []
    manifest = read_json(folder / "manifest.json")
    schedule = (
        Schedule.read(folder / "schedule.json") if (folder / "schedule.json").is_file() else None
    )
    if not rows and schedule is None:
        return []
    # powers of ten
    with in_style({"text.parse_math": True}):
        rewarded = bool(rows) and "reward" in rows[0]
        curves = 2 if rewarded and not _tried(rows) else int(bool(rows))
        num = curves + (schedule is not None)
        figure = Figure(figsize=(8.4 if num >= 2 else 5.2, 2.9), dpi=100, layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, num, squeeze=False)[0]
        if rewarded:
            _rewards(panels, rows)
        elif rows:
            _curve(panels[0], rows)
        if schedule:
            paint(panels[-1], {"sublayers": schedule.sublayers, "keep": schedule.keep.tolist()})
            panels[-1].yaxis.set_visible(True)
            panels[-1].set_yticks([])
            label = "sub-layer, by kind and depth"
            # beside the names of the kinds: points
            pad = 6 + 72 * KIND_LETTER * max(
                len(name.partition(".")[2]) for name in schedule.sublayers
            )
            panels[-1].set_ylabel(label, fontsize=7.5, color=QUIET, labelpad=pad)
            dark = "forecast" if (folder / FORECAST).is_file() else "reused"
            panels[-1].set_title(f"share of tokens computed (dark: {dark})", fontsize=8, loc="left")
        below = "" if manifest["below"] == "none" else f" under {manifest['below']}"
        title = f"{manifest['method']} for {manifest['model']}, {manifest['steps']} steps{below}: {manifest['seconds']:.0f} s"
        figure.suptitle(title, fontsize=9.5, x=0.01, ha="left")
        return finish(figure, folder, STEM)


def _tried(rows: list[dict[str, str]]) -> bool:
    """Whether the rows are rules of a grid, tried once each, and no iterations."""
    return "stride" in rows[0]


def _rewards(panels: Any, rows: list[dict[str, str]]) -> None:
    """Mean reward of each iteration's rollouts and the steps they computed, a panel each; of a grid of
    rules the one over the other."""
    ink = FAMILIES["cache"].colour
    reward, compute = (
        np.array([float(row[name]) for row in rows]) for name in ("reward", "compute")
    )
    texts = "mean reward, no unit", "computed steps of a sample"
    if _tried(rows):
        panels[0].plot(compute, reward, "o", color=ink, markersize=3.5)
        _named(panels[0], texts[1], texts[0])
        return
    for axis, values, text in zip(panels, (reward, compute), texts, strict=False):
        if len(values) > 3 * SMOOTH:
            axis.plot(values, ".", color=ink, alpha=0.25, markersize=3)
            at = np.arange(len(values))[SMOOTH // 2 : -(SMOOTH // 2)]
            axis.plot(at, np.convolve(values, np.ones(SMOOTH) / SMOOTH, "valid"), color=ink)
        else:
            axis.plot(values, color=ink)
        _named(axis, "iteration", text)


def _named(axis: Any, x: str, y: str) -> None:
    axis.set_xlabel(x, fontsize=7.5, color=QUIET)
    axis.set_ylabel(y, fontsize=7.5, color=QUIET)


def _curve(axis: Any, rows: list[dict[str, str]]) -> None:
    """Every loss as a faint point with its running mean, what was held out as diamonds, and where one
    stage of the training ends and the next begins."""
    ink, mark = FAMILIES["cache"].colour, FAMILIES["quantisation"].colour
    x = np.arange(len(rows))
    if rows[0].get("step"):
        x = np.array([int(row["step"]) for row in rows])
    held_out = [
        (at, float(row["held_out"])) for at, row in zip(x, rows, strict=True) if row.get("held_out")
    ]
    whole = True
    # losses of different things are different lines
    for i, what in enumerate(dict.fromkeys(row.get("loss_of", "") for row in rows)):
        mine = [
            (at, row["loss"])
            for at, row in zip(x, rows, strict=True)
            if row.get("loss_of", "") == what and row["loss"]
        ]
        at, loss = np.array([at for at, _ in mine]), np.array([float(text) for _, text in mine])
        label, style = f"loss of {what}" if what else "loss", "-" if i == 0 else "--"
        if len(loss) > 3 * SMOOTH:
            axis.plot(at, loss, ".", color=ink, alpha=0.25, markersize=3)
            at, loss = (
                at[SMOOTH // 2 : -(SMOOTH // 2)],
                np.convolve(loss, np.ones(SMOOTH) / SMOOTH, "valid"),
            )
        axis.plot(at, loss, style, color=ink, label=label)
        whole = whole and bool((loss > 0).all())
    if held_out:
        axis.plot(
            *zip(*held_out, strict=True),
            "D-",
            color=mark,
            markersize=3.5,
            linewidth=0.8,
            label="held out",
        )
    stages = [row.get("stage", "") for row in rows]
    ends = [at for at, one, other in zip(x[1:], stages, stages[1:], strict=False) if one != other]
    for i, at in enumerate(ends):
        axis.axvline(
            at, linestyle=":", color=QUIET, linewidth=1, label="next stage" if not i else None
        )
    if whole:
        axis.set_yscale("log")
    _named(axis, "iteration", f"loss, no unit{' (log scale)' * whole}")
    # above the axis: inside it would lie on points
    where = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.3}
    handles, labels = axis.get_legend_handles_labels()
    axis.legend(handles, labels, ncols=min(3, len(labels)), fontsize=7.5, labelcolor=INK, **where)
