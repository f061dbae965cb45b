"""Which devices and processes make the samples of a run, and whether they go together. No torch."""

from __future__ import annotations

import re
from collections.abc import Sequence


def check_devices(device: str, devices: Sequence[str], workers: int) -> None:
    """ValueError for a device that there is not, for several that cannot be used together, and for
    workers beside them."""
    for name in (device, *devices):
        if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
            raise ValueError(f"device: {name!r} is neither cpu, cuda nor cuda:N")
    if not devices:
        if workers > 1 and device != "cpu":
            raise ValueError(
                f"workers: {workers} processes share a CPU; GPUs are named by devices, one process each"
            )
        return
    if workers > 1 or "cpu" in devices:
        raise ValueError("devices: these are GPUs, one process each, without workers")
    if len({"cuda" if name == "cuda:0" else name for name in devices}) < len(devices):
        raise ValueError(f"devices: {', '.join(devices)} name one GPU twice")
    if device != devices[0]:
        raise ValueError(f"devices: the first of them times everything, and the device is {device}")
