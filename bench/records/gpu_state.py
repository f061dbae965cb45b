"""What a GPU is set to and how it is: by `nvidia-smi`, whose XML names what it knows. Nothing
secret: no names of processes, no serial numbers. No torch.
"""

from __future__ import annotations

import math
import subprocess
import xml.etree.ElementTree as Xml
from typing import Any

SLOWING = ("hw_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown", "sw_thermal_slowdown")
"""Reasons of low clocks by which a GPU is slower than it can be. The power cap is none: big products
reach it on a healthy GPU."""

UNSAID = (
    "",
    "N/A",
    "[N/A]",
    "Not Supported",
    "[Not Supported]",
    "Unknown Error",
    "[Unknown Error]",
)
"""What stands where the driver has no value."""


def read(uuid: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and state of the GPU with this UUID (`GPU-...`; "" for the first); two empty dicts
    where the driver's program is missing or fails.

    Settings: driver, power limit (W), largest clock of the multiprocessors (MHz), persistence, ECC,
    MIG. State: clocks (MHz), power (W), temperature (degrees Celsius), reasons of low clocks, memory
    in use (bytes), processes on it. What the GPU does not say is missing.
    """
    command = ["nvidia-smi", "-q", "-x", *(["-i", uuid] if uuid else [])]
    try:
        done = subprocess.run(command, capture_output=True, timeout=30)
        # bytes that are no UTF-8 (names of processes) and warnings before the document do no harm
        text = done.stdout.decode("utf-8", "replace")
        document = Xml.fromstring(text[text.find("<") :]) if done.returncode == 0 else None
    except (OSError, subprocess.TimeoutExpired, Xml.ParseError):
        document = None
    gpu = document.find("gpu") if document is not None else None
    if document is None or gpu is None:
        return {}, {}
    power = next((tag for tag in ("gpu_power_readings", "power_readings") if _there(gpu, tag)), "")
    settings = {
        "driver": document.findtext("driver_version"),
        "power_limit_w": _number(gpu, f"{power}/current_power_limit", f"{power}/power_limit"),
        "largest_sm_mhz": _number(gpu, "max_clocks/sm_clock"),
        "persistence": gpu.findtext("persistence_mode"),
        "ecc": gpu.findtext("ecc_mode/current_ecc"),
        "mig": gpu.findtext("mig_mode/current_mig"),
    }
    memory = _number(gpu, "fb_memory_usage/used")
    state = {
        "sm_mhz": _number(gpu, "clocks/sm_clock"),
        "memory_mhz": _number(gpu, "clocks/mem_clock"),
        "power_w": _number(gpu, f"{power}/power_draw", f"{power}/instant_power_draw"),
        "temperature_c": _number(gpu, "temperature/gpu_temp"),
        "slowed_by": _reasons(gpu),
        "used_bytes": None if memory is None else int(memory * 2**20),
        "processes": len(gpu.findall("processes/process_info")),
    }
    return _said(settings), _said(state)


def _there(gpu: Xml.Element, tag: str) -> bool:
    return gpu.find(tag) is not None


def _said(values: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in values.items() if v is not None and v not in UNSAID}


def _number(gpu: Xml.Element, *tags: str) -> float | None:
    """The first of the tags that holds a finite number, without its unit."""
    for tag in tags:
        try:
            number = float((gpu.findtext(tag) or "").split()[0])
        except (ValueError, IndexError):
            continue
        if math.isfinite(number):
            return number
    return None


def _reasons(gpu: Xml.Element) -> list[str]:
    """Active reasons of low clocks, without the prefix that changed between drivers."""
    reasons = []
    for prefix in ("clocks_event_reason", "clocks_throttle_reason"):
        for element in gpu.findall(f"{prefix}s/*"):
            if element.text == "Active":
                reasons.append(element.tag.removeprefix(f"{prefix}_"))
    return sorted(set(reasons))
