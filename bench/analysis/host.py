"""Whether the GPU that timed a cell was itself: what its probe and its state say. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ditbench.profiling.gpus import Gpu, gpu_called
from ditbench.records.gpu_state import SLOWING
from ditbench.records.record import TimedOn, environment_of

LEAST_FLOPS = 0.5
"""Of the published peak, what a product of 8192 x 8192 matrices reaches on a GPU that is whole: 0.6
to 0.8 by experience with H100 and A100."""
LEAST_COPIED = 0.65
"""Of the published bandwidth, what a copy of 1 GiB reaches: 0.8 to 0.93."""
OTHERS_BYTES = 1e9
"""Memory in use before we were on a GPU, above which others are on it too."""


def doubts(record: Mapping[str, Any], beside: Mapping[str, Any] | None = None) -> list[str]:
    """Why the times of a record are not to be trusted, a sentence each; none on the CPU. Of those of a
    baseline, the sessions in which the record `beside` it was timed too: the others of a merged run
    are paired with nothing of it."""
    sentences: list[str] = []
    timed = (beside or {}).get("host") or []
    shared = {state.get("session") for state in timed} if timed else None
    for state in record.get("host") or []:
        if shared is not None and state.get("session") not in shared:
            continue
        environment = environment_of(record, state.get("session", ""))
        device, memory = str(environment.get("device", "")), environment.get("device_memory_bytes")
        sentences += _of_round(state, gpu_called(device, memory))
    return list(dict.fromkeys(sentences))


def _of_round(state: TimedOn, gpu: Gpu | None) -> Sequence[str]:
    probe, before = state.get("probe") or {}, state.get("before") or {}
    after = state.get("after") or {}
    sentences: list[str] = []
    if gpu is not None and probe:
        for name, peak, least, what in (
            ("flops", gpu.flops.get(state.get("dtype", "")), LEAST_FLOPS, "matrix products"),
            ("copied", gpu.bandwidth, LEAST_COPIED, "copies"),
        ):
            if not peak or name not in probe:
                continue
            rate = probe[name]
            if rate is None or not 0 < rate < math.inf:
                sentences.append(f"suspect: the probe of the GPU's {what} gave no rate")
            elif rate < least * peak:
                sentences.append(
                    f"suspect: the GPU reached {rate / peak:.0%} of its published peak in "
                    f"{what}, and {least:.0%} is expected of one that is whole and free"
                )
    reasons = [reason for when in (before, after) for reason in when.get("slowed_by") or ()]
    slowing = sorted({*reasons} & set(SLOWING))
    if slowing:
        sentences.append(f"suspect: the GPU was slowed down ({', '.join(slowing)})")
    if (before.get("used_bytes") or 0) > OTHERS_BYTES:
        sentences.append(
            f"suspect: {before['used_bytes'] / 1e9:.1f} GB of the GPU were in use before the cell "
            "began"
        )
    return sentences
