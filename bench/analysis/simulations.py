"""What intervals cover and how often verdicts err, in simulations that know the truth. numpy only.

    python -m ditbench.analysis.simulations            the table, minutes on one core
    python -m ditbench.analysis.simulations --quick    a tenth of the repetitions

A row of kind `coverage` is the share of runs in which a nominal 95 % interval holds the truth: 93
to 97 %, but for what `note` says: more where scores seldom differ (discrete), less where few
prompts have to show a long tail (skewed). A row of kind `level` is the share of runs that say what
is not so, beside the nominal level that it must not pass. `se` is the binomial standard error of
the share.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ditbench.analysis.controls import Control, Evidence, judge
from ditbench.analysis.simulated_data import (
    DISCRETE,
    LOSSES,
    MACHINES,
    MARGIN,
    SCORES,
    SKEWED,
    World,
    timing,
)
from ditbench.statistics import estimates as statistics
from ditbench.statistics import hypothesis
from ditbench.statistics.estimates import Estimate
from ditbench.statistics.frechet import frechet, frechet_contrast
from ditbench.statistics.influence import contrast
from ditbench.statistics.precision_recall import hits, read_recall
from ditbench.statistics.times import speedup


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One row of the table."""

    kind: str
    """`coverage` or `level`."""
    what: str
    n: int
    share: float
    nominal: float
    repetitions: int
    note: str = ""

    @property
    def se(self) -> float:
        """Binomial standard error of the share."""
        return float(np.sqrt(self.share * (1 - self.share) / self.repetitions))

    @property
    def well(self) -> bool:
        """Whether it is as it should be, within three standard errors (of a share at the bound,
        where none was seen)."""
        low, high = (0.93, 0.97) if self.kind == "coverage" else (0.0, self.nominal)
        low, high = {DISCRETE: (low, 1.0), SKEWED: (0.86, high)}.get(self.note, (low, high))
        slack = [3 * np.sqrt(bound * (1 - bound) / self.repetitions) for bound in (low, high)]
        return bool(low - slack[0] <= self.share <= high + slack[1])


def means(repetitions: int) -> Iterator[Outcome]:
    """Coverage of means of n prompts, and of prompts of unequal numbers of samples."""
    for name, (draw, truth, note) in SCORES.items():
        bounds = (-1.0, 1.0) if "lost" in name else None
        for n in (8, 16, 64, 256):
            r = np.random.default_rng(n)
            estimates = [statistics.mean(draw(r, n), bounds=bounds) for _ in range(repetitions)]
            yield _coverage(
                f"mean, {name}",
                n,
                estimates,
                truth,
                SKEWED if name == "lognormal" and n < 64 else note,
            )
    for n in (8, 16, 64, 256):
        r = np.random.default_rng(n)
        estimates = []
        for _ in range(repetitions):
            group = np.repeat(np.arange(n), r.integers(1, 9, n))
            estimates.append(
                statistics.mean(r.standard_normal(n)[group] + r.standard_normal(len(group)), group)
            )
        yield _coverage("mean, prompts of 1 to 8 samples", n, estimates, 0.0)


def _coverage(
    what: str, n: int, estimates: list[Estimate], truth: float, note: str = ""
) -> Outcome:
    hit = [e.low is not None and e.high is not None and e.low <= truth <= e.high for e in estimates]
    return Outcome(
        kind="coverage",
        what=what,
        n=n,
        share=float(np.mean(hit)),
        nominal=0.95,
        repetitions=len(hit),
        note=note,
    )


def times(repetitions: int) -> Iterator[Outcome]:
    """Coverage of speed-ups, and how often a stack is called beaten by a control that only a slow
    process lets pass for as fast."""
    for name, (process, batch) in MACHINES.items():
        for rounds in (2, 3, 5):
            r = np.random.default_rng(rounds)
            pairs = [
                [timing(r, s, rounds, process, batch) for s in (1.0, 0.5)]
                for _ in range(repetitions)
            ]
            estimates = [s.estimate for pair in pairs if (s := speedup(pair[0], pair[1]))]
            yield _coverage(f"speed-up, {name}", rounds, estimates, 2.0)
        yield _beaten(name, process, batch, repetitions)


def _beaten(name: str, process: float, batch: float, repetitions: int) -> Outcome:
    """Stack at 1 s; the control as fast as it is behind, one 5 % slower is ahead. Three rounds."""
    r, wrong = np.random.default_rng(1), 0
    for _ in range(repetitions):
        stack = timing(r, 1.0, 3, process, batch, 4)
        controls = []
        for steps, seconds, value in ((4, 1.0, 0.1), (5, 1.05, -0.1)):
            ratio = speedup(stack, timing(r, seconds, 3, process, batch, 4))
            assert (
                ratio is not None
                and ratio.estimate.low is not None
                and ratio.estimate.high is not None
            )
            if ratio.estimate.high * 1.02 >= 1:
                over = statistics.of_units(value, value + 0.1 * r.standard_normal(256), (-1.0, 1.0))
                controls.append(
                    Control(
                        stack=str(steps),
                        steps=steps,
                        sure=ratio.estimate.low * 1.02 >= 1,
                        over=over,
                        margin=MARGIN,
                    )
                )
        least = max((c.steps for c in controls if c.sure), default=0)
        interaction = statistics.constant(0.0, 2000, (-2.0, 2.0))
        (row,) = judge(
            [
                Evidence(
                    interaction=interaction,
                    margin=MARGIN,
                    controls=[[c for c in controls if c.steps >= least]],
                    speed={},
                )
            ]
        )
        wrong += row["verdict"] == "beaten"
    what = f"beaten by a control that is slower, {name}"
    return Outcome(
        kind="level",
        what=what,
        n=3,
        share=wrong / repetitions,
        nominal=0.05,
        repetitions=repetitions,
    )


def levels(repetitions: int) -> Iterator[Outcome]:
    """How often what loses the margin is called equivalent or said to stack, and what interacts by
    nothing to clash."""
    for name, draw in LOSSES.items():
        for n in (64, 256, 1024):
            r = np.random.default_rng(n)
            samples = [draw(r, n) for _ in range(repetitions)]
            equal = [
                hypothesis.equivalence_p(statistics.mean(x, bounds=(-1, 1)), MARGIN)
                for x in samples
            ]
            stack = [
                hypothesis.exceeds_p(statistics.mean(x, bounds=(-2, 2)), -MARGIN) for x in samples
            ]
            for what, p, nominal in (("equivalent", equal, 0.05), ("stacks", stack, 0.025)):
                share = float(np.mean([x is not None and x <= nominal for x in p]))
                yield Outcome(
                    kind="level",
                    what=f"{what} at the margin, {name}",
                    n=n,
                    share=share,
                    nominal=nominal,
                    repetitions=repetitions,
                )
    for n in (16, 64, 256):
        r = np.random.default_rng(n)
        runs = []
        for _ in range(repetitions):
            cells = [
                statistics.mean(np.clip(0.1 * r.standard_normal(n), -2, 2), bounds=(-2, 2))
                for _ in range(24)
            ]
            rows = judge(
                [Evidence(interaction=e, margin=MARGIN, controls=[], speed={}) for e in cells]
            )
            runs.append(any(row["verdict"] == "clashes" for row in rows))
        share = float(np.mean(runs))
        yield Outcome(
            kind="level",
            what="a clash anywhere in 24 that are nothing",
            n=n,
            share=share,
            nominal=0.05,
            repetitions=repetitions,
        )


def sets(repetitions: int) -> Iterator[Outcome]:
    """Coverage of paired differences of the statistics of whole sets; of the Fréchet distance that
    of the true difference, at no n."""
    world = World()
    for weaker in (0.3, 0.6):
        base, variant = world.pair(np.random.default_rng(9), 200_000, weaker)
        truth = frechet(variant, world.reference) - frechet(base, world.reference)
        for n in (80, 128, 256):
            estimates = []
            for i in range(repetitions):
                pair = world.pair(np.random.default_rng(1000 * n + i), n, weaker)[::-1]
                estimates.append(frechet_contrast(pair, (1, -1), world.reference))
            yield _coverage(f"Fréchet difference, true {truth:.0f}", n, estimates, truth)
            wrong = float(np.mean([e.high is not None and e.high < 0 for e in estimates]))
            what = f"better by Fréchet distance, truly worse by {truth:.0f}"
            yield Outcome(
                kind="level", what=what, n=n, share=wrong, nominal=0.025, repetitions=repetitions
            )
    for n in (32, 64, 256):
        pairs = [
            world.pair(np.random.default_rng(7000 * n + i), n, 0.6) for i in range(repetitions)
        ]
        recall = [
            contrast([read_recall(x, world.reference) for x in pair], (-1, 1)) for pair in pairs
        ]
        yield _coverage("recall difference", n, recall, float(np.mean([e.value for e in recall])))
        estimates = [
            statistics.delta(*(hits(x, world.reference) for x in pair[::-1]), bounds=(0, 1))
            for pair in pairs
        ]
        yield _coverage(
            "precision difference",
            n,
            estimates,
            float(np.mean([e.value for e in estimates])),
            DISCRETE,
        )


GROUPS: dict[str, tuple[Callable[[int], Iterator[Outcome]], int]] = {
    "means": (means, 4000), "times": (times, 2000), "levels": (levels, 2000), "sets": (sets, 300),
}  # fmt: skip
"""Name of a group of simulations, and its repetitions in full."""


def run(quick: bool = False, groups: list[str] | None = None) -> Iterator[Outcome]:
    """Every row of the table, as it is found."""
    for name in groups or GROUPS:
        simulate, repetitions = GROUPS[name]
        yield from simulate(repetitions // 10 if quick else repetitions)


def main(arguments: list[str] | None = None) -> int:
    """Print the table; 1 where a row is not as it should be."""
    parser = argparse.ArgumentParser(
        prog="python -m ditbench.analysis.simulations",
        description=" ".join((__doc__ or "").partition("\n\n")[0].split()),
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the repetitions")
    parser.add_argument("groups", nargs="*", help=f"of {', '.join(GROUPS)}; all if none is named")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.groups if name not in GROUPS]:
        parser.error(f"no group {unknown[0]!r}: there are {', '.join(GROUPS)}")
    write, wrong = sys.stdout.write, 0
    write(
        "| | what | n | share | nominal | se | repetitions | |\n|---|---|---|---|---|---|---|---|\n"
    )
    for row in run(options.quick, options.groups):
        wrong += not row.well
        mark = row.note if row.well else f"outside {row.note}".strip()
        cells = (
            row.kind,
            row.what,
            row.n,
            f"{row.share:.1%}",
            f"{row.nominal:.1%}",
            f"{row.se:.1%}",
            row.repetitions,
            mark,
        )
        write("| " + " | ".join(map(str, cells)) + " |\n")
        sys.stdout.flush()
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
