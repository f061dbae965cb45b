"""Progress of a run: what runs now, how much is done, and the time left by the rates measured so
far. A bar on a terminal, lines without control characters elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Step:
    """Progress of a run: one before each unit of work, one after each cell, one at the end."""

    label: str
    """What is about to run; empty at the end."""
    done: int
    """Units finished."""
    of: int
    remaining_s: float | None
    """Time left by the rates measured so far; None before the first unit has ended."""
    finished: str = ""
    """The cell that has just ended, and how; empty where none has since the last step."""


@contextmanager
def progress() -> Iterator[Callable[[Step], None]]:
    """Yields a function that takes each `Step`. A bar on a terminal's stderr; elsewhere a line for
    each finished cell, and one for what runs at most every ten seconds."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None, left="")

        def tell(step: Step) -> None:
            if step.finished:
                bar.console.print(step.finished, highlight=False, markup=False)
            bar.update(
                task,
                description=step.label,
                completed=step.done,
                total=step.of,
                left=_left(step.remaining_s),
            )

        yield tell


def plain(tell: Callable[[Step], None]) -> Callable[[str, int, int], None]:
    """`tell` for a stage that knows only what it works on and how far it is: time left by the mean
    so far."""
    began = time.monotonic()

    def step(label: str, done: int, of: int) -> None:
        spent = time.monotonic() - began
        tell(Step(label, done, of, spent / done * (of - done) if done else None))

    return step


def counting(tell: Callable[[Step], None], label: str) -> Callable[[dict[str, Any]], None]:
    """`tell` for work that reports rows with `done` and `of`, all units alike: time left by the
    mean so far."""
    began = time.monotonic()

    def step(row: dict[str, Any]) -> None:
        done, of = row["done"], row["of"]
        left = (time.monotonic() - began) / done * (of - done) if done else None
        seen = [
            f"{name} {row[name]:.5f}" for name in ("loss", "held_out") if row.get(name) is not None
        ]
        tell(Step(" ".join([label, *seen]), done, of, left, row.get("note", "")))

    return step


def _lines() -> Callable[[Step], None]:
    last = -10.0

    def tell(step: Step) -> None:
        nonlocal last
        now = time.monotonic()
        if step.finished or (step.label and now - last >= 10):
            last = now
            left = _left(step.remaining_s) if step.done < step.of else ""
            what = step.finished or step.label
            line = "  ".join(part for part in (f"[{step.done}/{step.of}] {what}", left) if part)
            sys.stderr.write("".join(c if c.isprintable() else "?" for c in line) + "\n")
            sys.stderr.flush()

    return tell


def _left(seconds: float | None) -> str:
    if seconds is None:
        return "no estimate yet"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} left"
