"""What the harness costs: `python -m ditbench.profiling.overhead [MODEL]` times a pipeline called
bare against the same one run as a `none` cell.

Both in one process, alternating, first one then the other first. The ratio printed is the geometric
mean of the paired ratios, bare / harness, as `speedup_call` would show it: 1.00 is a harness that
costs nothing. The bare loop calls the pipeline with the same arguments and nothing else; the
harness's time is that of the whole `Sampler` call, rounding to bytes and bookkeeping included.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any


def compare(name: str, pairs: int, batch: int) -> dict[str, Any]:
    """Paired times of `pairs` alternations, as plain JSON. Raises ValueError for an unknown
    model."""
    import numpy as np
    import torch

    from ditbench.method.stack import Stack
    from ditbench.models import loading
    from ditbench.models import table as models
    from ditbench.models.requests import call_arguments, make_requests
    from ditbench.models.sampling import sampling_of
    from ditbench.profiling import latency as measure
    from ditbench.quiet import quiet

    model = models.select(name)[0]
    requests, sampling = make_requests(model, batch, 0), sampling_of(model)
    with quiet(), torch.inference_mode():
        pipe = loading.load(model, weights="bundled", device="cpu", dtype="float32")

        def bare() -> float:
            began = time.perf_counter()
            pipe(**call_arguments(model, sampling, requests), output_type="np")
            return time.perf_counter() - began

        def inside() -> float:
            with Stack.parse("none").attached(pipe) as attached:
                sampler = measure.Sampler(pipe, model, sampling, attached, "cpu")
                began = time.perf_counter()
                sampler(requests)
                return time.perf_counter() - began

        bare(), inside()
        times = []
        for i in range(pairs):
            if i % 2:
                b, h = bare(), inside()
            else:
                h, b = inside(), bare()
            times.append((b, h))
    logs = np.log([b / h for b, h in times])
    half = 1.96 * logs.std(ddof=1) / np.sqrt(pairs)
    low, value, high = np.exp([logs.mean() - half, logs.mean(), logs.mean() + half]).tolist()
    return {
        "model": name,
        "pairs": pairs,
        "batch": batch,
        "speedup_call": value,
        "low": low,
        "high": high,
        "times_s": times,
    }


def main() -> None:
    """Print the comparison and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="dit-tiny")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8)
    args = parser.parse_args()
    comparison = compare(args.model, args.pairs, args.batch)
    sys.stdout.write(
        "{model}: speedup_call {speedup_call:.4f} [{low:.4f}, {high:.4f}], {pairs} pairs\n".format(
            **comparison
        )
    )
    sys.stdout.write(json.dumps(comparison) + "\n")


if __name__ == "__main__":
    main()
