"""Which devices and processes make the samples of a run, and whether they go together. No torch."""

from __future__ import annotations

import re
from collections.abc import Sequence

ENGINES = ("local", "ray")


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


def check_engine_settings(
    engine: str, address: str, device: str, devices: Sequence[str], workers: int
) -> None:
    """ValueError for an engine that there is not, and for what Ray decides by itself."""
    if engine not in ENGINES:
        raise ValueError(f"engine: {engine!r} is none of {', '.join(ENGINES)}")
    if engine == "local":
        if address:
            raise ValueError("address: it is that of a Ray cluster, for --engine ray")
        return
    if address.startswith("ray://"):
        raise ValueError(
            f"address: {address} is that of a Ray client; the command has to run on a node of the "
            "cluster (HOST:PORT, or none there)"
        )
    if devices or workers > 1 or device not in ("cpu", "cuda"):
        raise ValueError(
            "engine: Ray places the work by itself: give --device cpu or cuda, without a number, "
            "--devices or --workers"
        )
