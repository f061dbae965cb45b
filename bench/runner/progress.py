"""A progress bar that tells the truth: what runs now, how much is done, and the time left by the
rates seen so far."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Step:
    """Progress of a run, told before each unit of work and once at the end."""

    label: str
    """What is about to run; empty at the end."""
    done: int
    """Units finished."""
    of: int
    remaining_s: float | None
    """Time left by the rates seen so far; None while nothing has been seen."""


@contextmanager
def progress() -> Iterator[Callable[[Any], None]]:
    """Yields a function that is told each `Step`. A bar on a terminal's stderr; elsewhere a line at
    most every ten seconds."""
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

        def tell(step: Any) -> None:
            bar.update(
                task,
                description=step.label,
                completed=step.done,
                total=step.of,
                left=_left(step.remaining_s),
            )

        yield tell


def plain(tell: Callable[[Any], None]) -> Callable[[str, int, int], None]:
    """`tell` for a stage that knows only what it works on and how far it is."""
    return lambda label, done, of: tell(Step(label, done, of, None))


def counting(tell: Callable[[Any], None], label: str) -> Callable[[dict[str, Any]], None]:
    """`tell` for work that reports rows with `done` and `of`, all units alike: time left by the
    mean so far."""
    began = time.monotonic()

    def row(told: dict[str, Any]) -> None:
        done, of = told["done"], told["of"]
        left = (time.monotonic() - began) / done * (of - done)
        seen = [
            f"{name} {told[name]:.5f}"
            for name in ("loss", "held_out")
            if told.get(name) is not None
        ]
        tell(Step(" ".join([label, *seen]), done, of, left))

    return row


def _lines() -> Callable[[Any], None]:
    last = -10.0

    def tell(step: Any) -> None:
        nonlocal last
        if step.label and time.monotonic() - last >= 10:
            last = time.monotonic()
            sys.stderr.write(f"[{step.done}/{step.of}] {step.label}  {_left(step.remaining_s)}\n")
            sys.stderr.flush()

    return tell


def _left(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} left"
