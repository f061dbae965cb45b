"""How long some of ditbench's own work takes: `python -m ditbench.testing.benchmarks [NAME...]`,
one table, to be quoted with its machine.

No test asserts a time: how fast a machine is at this moment is no property of the code. Tests
assert work (calls, kernels, bytes, imports), and what that work takes is measured here, by hand, on
a machine with nothing else to do. The shortest of a few repetitions is given, because other work
only ever adds.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ditbench import ROOT
from ditbench.records.environment import processor
from ditbench.suggest import suggest

REPEATS = 3


def shortest(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Seconds of the shortest of `repeats` runs of `work`."""
    took = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return min(took)


def help_() -> list[tuple[str, float]]:
    """The command line until it has answered."""
    command = [sys.executable, "-c", "from ditbench.cli import main; main(['--help'])"]
    return [
        ("--help", shortest(lambda: subprocess.run(command, check=True, capture_output=True), 5))
    ]


def programme() -> list[tuple[str, float]]:
    """The schedule's dynamic programme, PixArt's 20 steps of 84 sub-layers with five levels, by the
    grain of the weights."""
    import numpy as np

    from ditbench.acceleration.caching.knapsack import allocate

    rng, rows = np.random.default_rng(0), 1680
    cost = rng.standard_normal((rows, 5))
    weights = {
        "one unit for all": np.tile(np.arange(5), (rows, 1)),
        "three kinds": np.tile(np.outer([4, 2, 8], np.arange(5)), (rows // 3, 1)),
        "no common divisor": np.sort(rng.integers(0, 10**9, (rows, 5)), 1),
    }
    budgets = {name: int(weight.max(1).sum() * 0.46) for name, weight in weights.items()}
    return [
        (f"programme, 1680 x 5, {name}", shortest(partial(allocate, cost, weight, budgets[name])))
        for name, weight in weights.items()
    ]


def count() -> list[tuple[str, float]]:
    """FLOPs of full-size models on the meta device: calls that are alike run once, and the same
    number of calls all run."""
    from ditbench.method.stack import Stack
    from ditbench.models.table import select
    from ditbench.profiling import counting
    from ditbench.quiet import quiet

    with quiet():
        return [
            (
                f"count {name}, {text}",
                shortest(
                    partial(counting.count_model, select(name)[0], stack=Stack.parse(text)), 1
                ),
            )
            for name in ("dit-xl-2-256", "flux-1-dev")
            for text in ("none", "int8", "fora(interval=2)")
        ]


def frechet() -> list[tuple[str, float]]:
    """The Fréchet distance of 5000 x 2048 features, moments summed before: ours and
    torchmetrics'."""
    import numpy as np
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance

    from ditbench.statistics.frechet import Reference
    from ditbench.statistics.frechet import frechet as ours
    from ditbench.statistics.moments import Moments

    rng = np.random.default_rng(0)
    factor = np.linalg.qr(rng.standard_normal((2048, 2048)))[0] * np.exp(-np.arange(2048) / 400)
    x, y = (rng.standard_normal((5000, 2048)) @ factor.T for _ in range(2))

    class Columns(torch.nn.Module):
        num_features = 2048

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return rows

    theirs = FrechetInceptionDistance(feature=Columns()).set_dtype(torch.float64)
    theirs.update(torch.from_numpy(y), real=True)
    theirs.update(torch.from_numpy(x), real=False)
    mine, reference = Moments.of(x), Reference.through(y)
    return [
        ("Fréchet distance, 2048 features", shortest(lambda: ours(mine, reference))),
        (
            "the same by torchmetrics",
            shortest(lambda: type(theirs).compute(theirs)),
        ),  # past its memory
    ]


def report() -> list[tuple[str, float]]:
    """All tables, figures and the page of every published run, by the command; and the page in
    headless Chromium, from its start to the script at its end, where there is Chromium."""
    rows = []
    for spec in sorted(ROOT.glob("reports/published/*/spec.json")):
        name = spec.parent.name
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, str(ROOT / "run_bench.py"), "report", str(spec.parent)]
            start = time.perf_counter()
            subprocess.run([*command, "--out", folder], capture_output=True, check=False)
            rows.append((f"report {name}", time.perf_counter() - start))
            if seconds := _opening(Path(folder) / "index.html"):
                rows.append((f"page {name} opens", min(seconds)))
    return rows


def _opening(page: Path) -> list[float]:
    """Seconds a browser takes to open a page, several times; none where there is no browser."""
    browsers = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    if not (browser := next(filter(None, browsers), "")):
        return []
    probe = "<script>document.body.append('opened-in-' + performance.now())</script></body>"
    page.write_text(page.read_text(encoding="utf-8").replace("</body>", probe), encoding="utf-8")
    command = [
        browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    pages = [
        subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout
        for _ in range(REPEATS)
    ]
    matches = [re.search(r"opened-in-([\d.]+)", text) for text in pages]
    return [float(match[1]) / 1000 for match in matches if match]


BENCHMARKS = {
    "help": help_,
    "programme": programme,
    "count": count,
    "frechet": frechet,
    "report": report,
}


def main() -> None:
    """Measure what is named, or everything, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    names = parser.parse_args().names or list(BENCHMARKS)
    if unknown := [name for name in names if name not in BENCHMARKS]:
        parser.error(f"no benchmark {unknown[0]!r}; {suggest(unknown[0], BENCHMARKS)}")
    sys.stdout.write(f"{processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    for name in names:
        for what, seconds in BENCHMARKS[name]():
            sys.stdout.write(f"{what:50} {seconds:9.3f} s\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
